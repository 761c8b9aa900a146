"""CUDA streams: work that another thread's work must not wait behind."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch


def own_stream(device: torch.device) -> Callable[[], AbstractContextManager[None]]:
    """Makes a stream of one's own on a CUDA device.

    Returns:
        What makes a context: kernels in it run on the stream, beside those of others, and have ended when it
        is left. On the CPU it does nothing.
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
