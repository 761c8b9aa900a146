"""Whether bfloat16 is worth it is measured."""

import pytest
import torch

from sspsam.runtime.bfloat16 import is_bfloat16_faster, product_s


@pytest.mark.parametrize(("half_s", "faster"), [(0.5, True), (1.0, False), (2.0, False)])
def test_the_faster_precision_wins(half_s: float, faster: bool) -> None:
    taken_s = {torch.bfloat16: half_s, torch.float32: 1.0}
    assert is_bfloat16_faster(torch.device("cpu"), taken_s.__getitem__) is faster


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_products_take_processor_time(dtype: torch.dtype) -> None:
    assert product_s(dtype) > 0
