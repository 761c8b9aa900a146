"""Settings of the whole process that make a CPU faster: memory allocation and OpenMP's waiting.

A library leaves them alone: the entry points of the service and of training apply them, unless TUNE_PROCESS
turns that off. Matrix products are in `sspsam.runtime.onednn`.

By default glibc returns large freed blocks to the system at once, and the next computation takes them again,
page by page, each cleared by the kernel: up to a third of the time of a batch, or of a large image's mask.

By default GNU OpenMP's threads spin for milliseconds before they sleep, each on a core that other threads
need meanwhile. The next operation of a forward pass comes within microseconds.

Sources: mallopt(3); GOMP_SPINCOUNT in the manual of libgomp.
"""

from __future__ import annotations

import ctypes
import os

MEBIBYTE = 2**20
TUNING_VARIABLE = "TUNE_PROCESS"
_OFF = ("0", "false", "no", "off")

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_MAX, M_ARENA_MAX = -1, -2, -4, -8
"""Numbers of mallopt's parameters, from malloc.h."""
MALLOC_VARIABLES = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "MALLOC_MMAP_MAX_", "GLIBC_TUNABLES")
"""Environment variables with which an operator has configured malloc already."""
SPIN_COUNT = "10000"
"""Iterations before a waiting OpenMP thread sleeps: 1/30 of libgomp's default."""


def tuning_enabled() -> bool:
    """Whether entry points apply these settings; TUNE_PROCESS=0 turns them off."""
    return os.environ.get(TUNING_VARIABLE, "").strip().lower() not in _OFF


def tune_malloc(kept_bytes: int) -> bool:
    """Lets the process keep freed memory for the next computation; all threads share one arena.

    Call it before threads are started. Nothing happens where the C library is not glibc, or where the
    environment configures malloc.

    Args:
        kept_bytes: Free bytes that are kept; what exceeds them returns to the system.

    Returns:
        Whether the settings were applied.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or any(name in os.environ for name in MALLOC_VARIABLES):
        return False
    wanted = {M_ARENA_MAX: 1, M_MMAP_MAX: 0, M_TRIM_THRESHOLD: kept_bytes, M_TOP_PAD: kept_bytes // 4}
    return all([mallopt(parameter, value) == 1 for parameter, value in wanted.items()])


def limit_openmp_spin() -> bool:
    """Limits how long OpenMP threads of this process and of its children spin before they sleep.

    Call it before torch is imported: OpenMP reads the environment once.

    Returns:
        Whether it was applied: not where OMP_WAIT_POLICY or GOMP_SPINCOUNT is set.
    """
    if "OMP_WAIT_POLICY" in os.environ or "GOMP_SPINCOUNT" in os.environ:
        return False
    os.environ["GOMP_SPINCOUNT"] = SPIN_COUNT
    return True
