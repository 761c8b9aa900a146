"""CPU cores: large operations are split over cores, small ones run in parallel.

PyTorch splits operations with GNU OpenMP, which keeps one thread pool per calling thread. If all pools
together have at most as many threads as cores, they spin between operations. Otherwise they sleep, and small
operations take up to twice as long, mostly for waking up. Only one thread at a time should therefore split:
`Cores` ensures this, and `limit_torch_threads` keeps other threads from it.

MKL has a number of its own, of each thread or from MKL_NUM_THREADS, and `torch.set_num_threads` sets both
numbers in every thread that starts later. A thread that is limited to one core for OpenMP alone would go on
splitting its matrix products.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache, cached_property
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Row = TypeVar("Row")
Answer = TypeVar("Answer")


def limit_torch_threads() -> None:
    """Reserves all cores but one for existing `Cores`; all other threads get one core from now on."""
    torch.set_num_threads(1)


class Cores:
    """As many cores as PyTorch has at construction. The constructor starts no thread."""

    def __init__(self) -> None:
        self._count = torch.get_num_threads()

    def map(self, answer: Callable[[Sequence[Row]], Sequence[Answer]], rows: Sequence[Row]) -> list[Answer]:
        """Divides the rows of a batch among as many threads as there are cores, in contiguous parts.

        A split operation waits for its slowest part at the end, and small ones mostly wait; rows are
        independent of each other. Only one thread at a time may call this.

        Args:
            answer: Answers some rows, in order; called by all threads concurrently.
            rows: Rows of a batch. A single row runs in the caller's own thread, on all cores.

        Returns:
            The answers to all rows, in order.
        """
        parts = min(len(rows), self._count)
        if parts <= 1:
            self._take(self._count)
            return list(answer(rows))

        def work(part: int) -> Sequence[Answer]:
            self._take(self._count // parts)
            return answer(rows[len(rows) * part // parts : len(rows) * (part + 1) // parts])

        return [result for some in self._threads.map(work, range(parts)) for result in some]

    def run(self, work: Callable[[], Answer]) -> Answer:
        """Runs large operations on all cores, concurrently with `map`, in a temporary thread."""

        def on_all() -> Answer:
            self._take(self._count)
            return work()

        with ThreadPoolExecutor(1, "large") as thread:
            return thread.submit(on_all).result()

    def _take(self, cores: int) -> None:
        """Allows only this thread to split operations, over this many cores."""
        torch.get_num_threads()  # until a thread has asked, PyTorch would still decide for it
        self._openmp.limit(limits=cores)
        _limit_mkl(cores)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, "rows")

    @cached_property
    def _openmp(self) -> ThreadpoolController:
        """The library that splits PyTorch's operations."""
        return ThreadpoolController().select(user_api="openmp")


def _limit_mkl(cores: int) -> None:
    """Limits the products of this thread; without MKL, as on ARM, nothing happens."""
    limit = _mkl_limiter()
    if limit is not None:
        limit(cores)


@cache
def _mkl_limiter() -> Callable[[int], int] | None:
    """`mkl_set_num_threads_local` of the MKL that PyTorch is linked with; its capitalised name takes a value.

    threadpoolctl finds only a separate libmkl_rt.

    Source: Developer Reference for Intel oneMKL, Threading Control.
    """
    try:
        found: Callable[[int], int] = ctypes.CDLL(torch._C.__file__).MKL_Set_Num_Threads_Local
    except (OSError, AttributeError):
        return None
    return found
