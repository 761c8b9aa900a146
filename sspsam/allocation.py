"""What glibc does with memory that is freed.

By default it gives large blocks back to the system at once, and what is computed next takes them again, page
by page, each cleared by the kernel: up to a third of the time of a batch, or of a large picture's mask.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import os

MEBIBYTE = 2**20
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Numbers of mallopt's parameters, from malloc.h."""
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Environment variables with which whoever runs the process has decided otherwise."""


def keep_freed_memory(most: int) -> bool:
    """Lets the process keep freed memory for what comes next; all threads share what is kept.

    To be called before threads are started. Nothing happens where the C library is not glibc, or where the
    environment says how it is to allocate.

    Args:
        most: Free bytes that are kept; when there are more, they go back to the system.

    Returns:
        Whether it does now.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in OWN_SETTINGS):
        return False
    wanted = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: most, M_TOP_PAD: most // 4}
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted.items()])
