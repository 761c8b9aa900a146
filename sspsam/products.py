"""Products of float32 matrices on x86 processors, computed by oneDNN.

PyTorch asks MKL for them, which leaves AVX-512 unused on AMD's processors: there oneDNN takes half the time
(docs/performance.md), and with AVX2 alone about as much. PyTorch brings both, and has oneDNN multiply in what
its compiler makes.
"""

from __future__ import annotations

import platform
from functools import cache
from typing import cast

import torch
from torch import Tensor

LEAST_MULTIPLICATIONS = 2**20
"""Below it, what it takes to call oneDNN outweighs what it saves."""


@cache
def use_onednn_matmul() -> bool:
    """Lets this process's large products of float32 matrices on the CPU be oneDNN's, in training, too.

    That is every linear layer, whoever's. Products differ from MKL's in the order of their sums.

    Returns:
        Whether they are: not on other processors than x86, nor where PyTorch does not offer oneDNN's.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    for name, product in {"mm": _mm, "addmm": _addmm}.items():
        _products.impl(name, product, "CPU")  # type: ignore[no-untyped-call]
    return True


_products = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
"""What is registered lasts as long as it does."""


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) by (K, N)."""
    if _is_worth_it(left, right):
        return _linear(left, right.t(), None)
    return torch.mm(left, right, out=left.new_empty(0))


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta` times a bias, and `alpha` times (M, K) by (K, N)."""
    if beta == alpha == 1 and bias.shape == right.shape[1:] and _is_worth_it(left, right):
        return _linear(left, right.t(), bias)
    return torch.addmm(bias, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _is_worth_it(left: Tensor, right: Tensor) -> bool:
    return (
        len(left) * right.numel() >= LEAST_MULTIPLICATIONS
        and left.dtype is right.dtype is torch.float32
        and left.shape[1:] == right.shape[:1]  # otherwise the stock product says what is wrong
    )


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """As `torch.nn.functional.linear`."""
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], ""))
