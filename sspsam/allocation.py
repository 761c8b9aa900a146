"""What glibc does with memory that is freed.

By default it gives blocks of a few megabytes back to the system at once, and what a network computes next
takes them again, page by page, each cleared by the kernel: a third of the time of a batch on a CPU.

Source: mallopt(3).
"""

from __future__ import annotations

import ctypes
import os

MEBIBYTE = 2**20
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -3, -4, -8
"""Numbers of mallopt's parameters, from malloc.h."""
LARGEST_KEPT = 32 * MEBIBYTE
"""The most that glibc takes for M_MMAP_THRESHOLD: larger blocks are always given back."""
OWN_SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Environment variables with which whoever runs the process has decided otherwise."""


def keep_freed_memory(most: int, large_blocks: bool = False) -> bool:
    """Lets the process keep freed memory for what comes next; all threads share what is kept.

    To be called before threads are started. Nothing happens where the C library is not glibc, or where the
    environment says how it is to allocate.

    Args:
        most: Bytes that are kept, at least; the rest goes back to the system.
        large_blocks: Keep those above 32 MiB, too: for training, whose memory is soon needed again.

    Returns:
        Whether it does now.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in OWN_SETTINGS):
        return False
    wanted = {M_ARENA_MAX: 1, M_TRIM_THRESHOLD: most, M_TOP_PAD: most // 4, M_MMAP_THRESHOLD: LARGEST_KEPT}
    if large_blocks:
        wanted[M_MMAP_MAX] = 0
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted.items()])
