"""CUDA streams for independent work of different threads."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def own_stream(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Creates a CUDA stream.

    Returns:
        A context manager: kernels launched within it run on the stream, concurrently with others, and have
        finished on exit. On the CPU it does nothing.
    """
    if device.type != "cuda":
        return nullcontext
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]

    @contextmanager
    def on_stream() -> Iterator[None]:
        with torch.cuda.stream(stream):
            yield
        stream.synchronize()

    return on_stream
