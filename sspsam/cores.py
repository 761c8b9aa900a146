"""The cores of a CPU: a large operation is split over them, small ones run side by side.

PyTorch splits operations with GNU OpenMP, which has threads for each thread that ever asked for a split.
While they are no more than cores, they watch for the next operation. Otherwise they sleep between any two,
and small operations take up to twice as long: most of it is waking up. So one thread at a time should split:
`Cores` sees to it, and `reserve_cores` keeps others from it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Row = TypeVar("Row")
Answer = TypeVar("Answer")


def reserve_cores() -> None:
    """Leaves more than one core to `Cores` that were made before; whatever else runs has one from now on."""
    torch.set_num_threads(1)


class Cores:
    """As many cores as PyTorch has when it is made. Making one starts no thread."""

    def __init__(self) -> None:
        self._count = torch.get_num_threads()

    def map(self, answer: Callable[[Sequence[Row]], Sequence[Answer]], rows: Sequence[Row]) -> list[Answer]:
        """Divides the rows of a batch among as many threads as there are cores, neighbours together.

        An operation that is split waits for the slowest part at its end, and a small one mostly waits. Rows
        do not depend on each other. One thread at a time may call this.

        Args:
            answer: Answers some rows, in order; called by all threads at once.
            rows: Of a batch. One alone is answered by the caller's own thread, on all cores.

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

        return [one for some in self._threads.map(work, range(parts)) for one in some]

    def run(self, work: Callable[[], Answer]) -> Answer:
        """Runs large operations on all cores, beside `map`, in a thread that ends and leaves none behind."""

        def on_all() -> Answer:
            self._take(self._count)
            return work()

        with ThreadPoolExecutor(1, "large") as thread:
            return thread.submit(on_all).result()

    def _take(self, cores: int) -> None:
        """Lets this thread, and no other, split operations over so many cores."""
        torch.get_num_threads()  # before a thread has asked, PyTorch would still decide for it
        self._openmp.limit(limits=cores)

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(self._count, "rows")

    @cached_property
    def _openmp(self) -> ThreadpoolController:
        """What splits PyTorch's operations."""
        return ThreadpoolController().select(user_api="openmp")
