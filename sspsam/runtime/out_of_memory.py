"""Batches that do not fit in a device's memory."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TypeVar

import torch

Row = TypeVar("Row")
Answer = TypeVar("Answer")

logger = logging.getLogger(__name__)


def is_out_of_memory(error: BaseException) -> bool:
    """Whether the memory of a device, or of the machine, did not suffice: PyTorch raises three kinds."""
    return isinstance(error, MemoryError | torch.OutOfMemoryError) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )


def in_halves(run: Callable[[Sequence[Row]], Sequence[Answer]], rows: Sequence[Row]) -> list[Answer]:
    """Runs a batch; if the device's memory does not suffice, its halves, and so on.

    Args:
        run: Answers some rows, in order.
        rows: At least one.

    Returns:
        The answers to all rows, in order.

    Raises:
        torch.OutOfMemoryError: one row alone is too much.
    """
    try:
        return list(run(rows))
    except torch.OutOfMemoryError:
        if len(rows) == 1:
            raise
    # Outside the handler: the error's frames, which hold the batch's tensors, are gone by now.
    torch.cuda.empty_cache()
    half = len(rows) // 2
    logger.warning("the device has no memory for a batch of %d: trying %d at a time", len(rows), half)
    return in_halves(run, rows[:half]) + in_halves(run, rows[half:])
