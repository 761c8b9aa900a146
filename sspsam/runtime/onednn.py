"""Matrix multiplication in float32 on x86 processors by oneDNN, where it is faster than MKL.

PyTorch uses MKL, which does not use AVX-512 on AMD processors: there oneDNN is up to twice as fast. On other
processors, and for some shapes, it is slower (docs/performance.md): `sspsam.runtime.product_speeds` measures
both. PyTorch includes both, and uses oneDNN in compiled code.
"""

from __future__ import annotations

import platform
import warnings
from collections.abc import Callable
from functools import cache
from typing import cast

import torch
from torch import Tensor

LEAST_MULTIPLICATIONS = 2**20
"""Below this size, the overhead of calling oneDNN exceeds its gain."""

IsFaster = Callable[[int, int, int], bool]
"""Whether oneDNN is faster at multiplying (M, K) by (K, N), for M, K and N."""


def use_onednn_matmul(is_faster: IsFaster) -> bool:
    """Makes this process compute large float32 matrix products on the CPU by oneDNN, also in training.

    This affects every linear layer of the process. Results differ from MKL's in the order of summation.

    Args:
        is_faster: Chooses by shape; called for each large product, by any thread. Equal answers for equal
            shapes keep results reproducible.

    Returns:
        Whether it took effect: see `has_onednn`.
    """
    global _is_faster
    if not has_onednn():
        return False
    _is_faster = is_faster
    _override()
    return True


def has_onednn() -> bool:
    """Whether oneDNN can compute products: on x86, if PyTorch offers it."""
    return (
        platform.machine() in ("x86_64", "AMD64")
        and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    )


def multiply_by_mkl(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) by (K, N), as PyTorch does."""
    return torch.mm(left, right, out=left.new_empty(0))


def multiply_by_onednn(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) by (K, N)."""
    return _linear(left, right.t(), None)


_products = torch.library.Library("aten", "IMPL")  # type: ignore[no-untyped-call]
"""Registrations last as long as this object."""
_is_faster: IsFaster = lambda rows, inputs, outputs: False  # noqa: E731 - replaced by `use_onednn_matmul`


@cache
def _override() -> None:
    with warnings.catch_warnings(action="ignore", category=UserWarning):  # PyTorch 2.6 warns of overrides
        for name, product in {"mm": _mm, "addmm": _addmm}.items():
            _products.impl(name, product, "CPU")  # type: ignore[no-untyped-call]


def _mm(left: Tensor, right: Tensor) -> Tensor:
    """(M, K) by (K, N)."""
    if _is_worth_it(left, right):
        return multiply_by_onednn(left, right)
    return multiply_by_mkl(left, right)


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
        and _is_faster(len(left), *right.shape)
    )


def _linear(rows: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Like `torch.nn.functional.linear`."""
    if not (weight.is_contiguous() or weight.t().is_contiguous()):
        weight = weight.contiguous()  # oneDNN multiplies others by a reference kernel, 1000 times slower
    return cast(Tensor, torch.ops.mkldnn._linear_pointwise.default(rows, weight, bias, "none", [], ""))
