"""Whether bfloat16 is worth it is measured."""

import pytest
import torch

from sspsam.runtime import bfloat16


@pytest.mark.parametrize(("half_s", "faster"), [(0.5, True), (2.0, False)])
def test_the_faster_precision_wins(monkeypatch: pytest.MonkeyPatch, half_s: float, faster: bool) -> None:
    times_s = {torch.bfloat16: half_s, torch.float32: 1.0}
    clock = [0.0]
    matmul = torch.Tensor.__matmul__

    def multiply(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        clock[0] += times_s[left.dtype]
        return matmul(left, right)

    monkeypatch.setattr(torch.Tensor, "__matmul__", multiply)
    monkeypatch.setattr(bfloat16.time, "process_time", lambda: clock[0])
    assert bfloat16.is_bfloat16_faster(torch.device("cpu")) is faster
