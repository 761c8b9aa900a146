"""Matrix products in bfloat16: computing in it, and whether a device is faster in it than in float32."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal, get_args

import torch

Precision = Literal["float32", "bfloat16"]
"""Of matrix products; bfloat16 is faster on devices that have it, and less exact."""

SIDE = 384
"""Of the measured matrices: as wide as the layers of a small model, and measured in milliseconds."""
ROUNDS = 3
"""Products in each precision; the fastest counts."""


def check_precision(precision: str) -> None:
    """Refuses unknown ones.

    Raises:
        ValueError: neither float32 nor bfloat16.
    """
    if precision not in get_args(Precision):
        raise ValueError(f"unknown precision {precision!r}, expected float32 or bfloat16")


def computing_in(precision: Precision, device: torch.device) -> torch.autocast:
    """Context in which the matrix products of this thread are computed in a precision."""
    return torch.autocast(device.type, torch.bfloat16, enabled=precision == "bfloat16")


@torch.inference_mode()
def product_s(dtype: torch.dtype) -> float:
    """Processor time of a product on the CPU, which other programs change little."""
    left, right = (torch.ones(SIDE, SIDE, dtype=dtype) for _ in range(2))
    taken_s = []
    for _ in range(ROUNDS):
        since_s = time.process_time()
        left @ right
        taken_s.append(time.process_time() - since_s)
    return min(taken_s)


def is_bfloat16_faster(device: torch.device, product_s: Callable[[torch.dtype], float] = product_s) -> bool:
    """Whether a device computes faster in bfloat16.

    Processors without bfloat16 instructions emulate them, several times as slowly as float32. PyTorch says
    it of GPUs.

    Args:
        device: The device.
        product_s: Measures a product in a precision, for CPUs.
    """
    if device.type != "cpu":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return product_s(torch.bfloat16) < product_s(torch.float32)
