"""Matrix multiplication in float32 on x86 processors by oneDNN.

PyTorch uses MKL, which does not use AVX-512 on AMD processors: oneDNN takes half the time there
(docs/performance.md), and about the same with AVX2 alone. PyTorch includes both, and uses oneDNN in compiled
code.
"""

from __future__ import annotations

import platform
import warnings
from functools import cache
from typing import cast

import torch
from torch import Tensor

LEAST_MULTIPLICATIONS = 2**20
"""Below this size, the overhead of calling oneDNN exceeds its gain."""


@cache
def use_onednn_matmul() -> bool:
    """Makes this process compute large float32 matrix products on the CPU by oneDNN, also in training.

    This affects every linear layer of the process. Results differ from MKL's in the order of summation.

    Returns:
        Whether it took effect: not on other processors than x86, nor if PyTorch does not offer oneDNN.
    """
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    if not torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # PyTorch 2.6 warns of overrides
        for name, product in {"mm": _mm, "addmm": _addmm}.items():
            _products.impl(name, product, "CPU")  # type: ignore[no-untyped-call]
    return True


_products = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
"""Registrations last as long as this object."""


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) by (K, N)."""
    if _is_worth_it(left, right):
        return _linear(left, right.t(), None)
    return torch.mm(left, right, out=left.new_empty(0))


def _addmm(bias: Tensor, left: Tensor, right: Tensor, *, beta: float = 1, alpha: float = 1) -> Tensor:
    """`beta` times a bias, plus `alpha` times (M, K) by (K, N)."""
    if beta == alpha == 1 and bias.shape == right.shape[1:] and _is_worth_it(left, right):
        return _linear(left, right.t(), bias)
    return torch.addmm(bias, left, right, beta=beta, alpha=alpha, out=left.new_empty(0))


def _is_worth_it(left: Tensor, right: Tensor) -> bool:
    return (
        len(left) * right.numel() >= LEAST_MULTIPLICATIONS
        and left.dtype is right.dtype is torch.float32
        and left.shape[1:] == right.shape[:1]  # otherwise the stock operator reports the error
    )


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Like `torch.nn.functional.linear`."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN multiplies others by a reference kernel, 1000 times slower
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], ""))
