"""Measures how work grows with the length of its input."""

from __future__ import annotations

import gc
import time
from collections.abc import Callable

SIZES = (500, 2_000, 4_000, 8_000)
"""A first look, then n, 2n and 4n: of characters, or of other things that an attacker repeats."""
NEGLIGIBLE_S = 0.015
"""Of 4n: below it, work is fast enough. Quadratic work takes at least 32 million steps there."""
HOPELESS_S = 0.3
"""Of any size but the last: above it, larger ones are not tried."""
WORST_RATIO = 10.0
"""Of the time for 4n to the time for n: 4 for linear work, 16 for quadratic work."""
ATTEMPTS = 3


def grows_faster_than_linear(work: Callable[[int], object], attempts: int = ATTEMPTS) -> bool:
    """Whether `work(n)` takes more than linear time, by this thread's processor time.

    It has to be slower than the bound in every attempt, so a busy machine fails no test.
    """
    return all(_is_slow(work) for _ in range(attempts))


def _is_slow(work: Callable[[int], object]) -> bool:
    took_s = []
    for size in SIZES:
        took_s.append(seconds_of(work, size))
        if took_s[-1] > HOPELESS_S and size != SIZES[-1]:
            return True
    return took_s[-1] > max(NEGLIGIBLE_S, WORST_RATIO * took_s[-3])


def seconds_of(work: Callable[[int], object], size: int) -> float:
    """This thread's processor time for one run, without collecting garbage, which reads the whole heap."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        since_s = time.thread_time()
        work(size)
        return time.thread_time() - since_s
    finally:
        if was_enabled:
            gc.enable()
