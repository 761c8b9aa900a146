"""Distributed processes, as started by accelerate or torchrun; or a single one."""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

WORLD_SIZE_VARIABLE = "WORLD_SIZE"

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """Rank, number of processes, and their communication."""

    rank: int = 0
    count: int = 1
    device: torch.device | None = None
    """GPU of this process, if the launcher assigned one."""

    @property
    def is_first(self) -> bool:
        """The process that writes files and prints."""
        return self.rank == 0

    def device_name(self, wanted: str) -> str:
        """Device of this process: the launcher's, or else the user's."""
        return wanted if self.device is None else str(self.device)

    def share(self, length: int) -> range:
        """This process's positions of 0..length: contiguous parts whose sizes differ by at most one."""
        return range(length * self.rank // self.count, length * (self.rank + 1) // self.count)

    def gather(self, value: T) -> list[T]:
        """Every process's value, by rank."""
        if self.count == 1:
            return [value]
        from accelerate.utils import gather_object

        gathered: list[T] = gather_object([value])
        return gathered

    def mean(self, value: Tensor) -> Tensor:
        """The mean of every process's tensor."""
        if self.count == 1:
            return value
        from accelerate.utils import reduce

        mean: Tensor = reduce(value, reduction="mean")
        return mean

    def average_gradients(self, parameters: Iterable[torch.nn.Parameter]) -> None:
        """Replaces the gradients by their mean over the processes.

        All processes must have gradients for the same parameters. They are sent as one tensor per dtype.
        """
        if self.count == 1:
            return
        gradients = [p.grad for p in parameters if p.grad is not None]
        for kind in sorted({gradient.dtype for gradient in gradients}, key=str):
            own = [gradient for gradient in gradients if gradient.dtype == kind]
            mean = self.mean(torch.cat([gradient.flatten() for gradient in own]))
            sizes = [gradient.numel() for gradient in own]
            for gradient, part in zip(own, torch.split(mean, sizes), strict=True):
                gradient.copy_(part.view_as(gradient))

    def wait(self) -> None:
        """Waits for all processes."""
        if self.count > 1:
            torch.distributed.barrier()


def join_ranks(device: str = "auto") -> Ranks:
    """Joins the processes started by a launcher, if any.

    Args:
        device: `cpu`, or anything else for the launcher's GPU assignment.
    """
    if int(os.environ.get(WORLD_SIZE_VARIABLE, "1")) == 1:
        return Ranks()
    from accelerate import PartialState

    state = PartialState(cpu=device == "cpu" or not torch.cuda.is_available())
    return Ranks(state.process_index, state.num_processes, state.device)
