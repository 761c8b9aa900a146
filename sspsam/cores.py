"""The cores of a CPU, shared by the rows of a batch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import TypeVar

import torch
from threadpoolctl import ThreadpoolController

Row = TypeVar("Row")
Answer = TypeVar("Answer")


class Cores:
    """Works on the rows of a batch side by side, with a core or a few for each.

    An operation that is split over cores waits for the slowest of them at its end, and a small one mostly
    waits. Rows do not depend on each other. Making one starts no thread; one thread at a time may call it.
    """

    def map(self, answer: Callable[[Sequence[Row]], Sequence[Answer]], rows: Sequence[Row]) -> list[Answer]:
        """Divides the rows among as many threads as PyTorch has cores, neighbours together.

        Args:
            answer: Answers some rows, in order; called by all threads at once.
            rows: Of a batch. One alone is answered by the caller's own thread, on all cores.

        Returns:
            The answers to all rows, in order.
        """
        cores = torch.get_num_threads()
        parts = min(len(rows), cores)
        if parts <= 1:
            return list(answer(rows))
        openmp = self._openmp

        def work(part: int) -> Sequence[Answer]:
            openmp.limit(limits=cores // parts)  # of this thread alone
            return answer(rows[len(rows) * part // parts : len(rows) * (part + 1) // parts])

        return [one for some in self._threads.map(work, range(parts)) for one in some]

    @cached_property
    def _threads(self) -> ThreadPoolExecutor:
        # PyTorch gives a thread its number of cores when the thread first needs it: not after `limit`.
        return ThreadPoolExecutor(torch.get_num_threads(), "rows", initializer=torch.get_num_threads)

    @cached_property
    def _openmp(self) -> ThreadpoolController:
        """What splits PyTorch's operations."""
        return ThreadpoolController().select(user_api="openmp")
