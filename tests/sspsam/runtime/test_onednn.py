"""Matrix products by oneDNN: equal results for every memory layout."""

from __future__ import annotations

import platform
import time
from collections.abc import Iterator

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sspsam.runtime.onednn import LEAST_MULTIPLICATIONS, use_onednn_matmul

LARGE = {
    "rows": torch.randn(300, 400),
    "columns": torch.randn(400, 300).t(),
    "a row for all": torch.randn(400).expand(300, 400),
    "every other": torch.randn(300, 800)[:, ::2],
    "from the second on": torch.randn(300, 401)[:, 1:],
}
"""As (M, K); their mirror images serve as (K, M)."""


pytestmark = pytest.mark.skipif(
    platform.machine() not in ("x86_64", "AMD64"), reason="other processors multiply as before"
)


@pytest.fixture(autouse=True)
def by_onednn() -> None:
    assert use_onednn_matmul(lambda *shape: True)


def close(found: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(found, expected.to(found.dtype), rtol=1e-4, atol=1e-3)


@pytest.mark.parametrize("left", LARGE)
@pytest.mark.parametrize("right", LARGE)
def test_every_layout_gives_the_same_sums(left: str, right: str) -> None:
    rows, columns = LARGE[left], LARGE[right].t()
    assert len(rows) * columns.numel() >= LEAST_MULTIPLICATIONS
    exact = rows.double() @ columns.double()
    close(rows @ columns, exact)
    for bias in (torch.randn(300), torch.randn(300, 300), torch.randn(1), torch.randn(300, 1)):
        close(torch.addmm(bias, rows, columns), exact + bias)
        close(torch.addmm(bias, rows, columns, beta=0.5, alpha=2), 2 * exact + 0.5 * bias)


@pytest.mark.parametrize("layout", LARGE)
def test_no_layout_takes_much_longer(layout: str) -> None:
    """A reference kernel takes 1000 times as long, which the noise of a busy machine does not."""

    def fastest_s(columns: Tensor) -> float:
        times = []
        for _ in range(3):
            since_s = time.process_time()
            torch.mm(LARGE["rows"], columns)
            times.append(time.process_time() - since_s)
        return min(times)

    assert fastest_s(LARGE[layout].t()) < 50 * max(fastest_s(LARGE["rows"].t()), 0.001)


def test_layers_learn_what_they_learned() -> None:
    leaves = [torch.randn(4, 100, 128), torch.randn(256, 128), torch.randn(256)]

    def gradients(dtype: torch.dtype) -> Iterator[Tensor]:
        own = [leaf.to(dtype, copy=True).requires_grad_() for leaf in leaves]
        F.linear(*own).sin().sum().backward()
        return (leaf.grad for leaf in own if leaf.grad is not None)

    for found, exact in zip(gradients(torch.float32), gradients(torch.float64), strict=True):
        close(found, exact)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64, torch.int64])
def test_other_numbers_are_multiplied_as_before(dtype: torch.dtype) -> None:
    left, right = torch.arange(256 * 64).view(256, 64) % 3, torch.arange(64 * 128).view(64, 128) % 2
    product = left.to(dtype) @ right.to(dtype)
    assert product.dtype == dtype
    assert torch.equal(product.to(torch.int64), left @ right)


def test_small_and_empty_matrices_have_products() -> None:
    assert torch.equal(torch.eye(3) @ torch.ones(3, 2), torch.ones(3, 2))
    assert (torch.zeros(0, 4) @ torch.zeros(4, 3)).shape == (0, 3)
    assert torch.equal(torch.zeros(2, 0) @ torch.zeros(0, 2), torch.zeros(2, 2))


@pytest.mark.parametrize("right", [torch.randn(300, 4000), torch.randn(400, 3000, dtype=torch.float64)])
def test_what_does_not_fit_is_refused_in_pytorchs_words(right: Tensor) -> None:
    with pytest.raises(RuntimeError, match=r"cannot be multiplied|same dtype"):
        LARGE["rows"] @ right
