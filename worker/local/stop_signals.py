"""The signals that stop the service, as one exception at a time when it can be handled."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""Signals that stop the service: Ctrl-C, `kill`, and a closed terminal."""


class StopRequested(KeyboardInterrupt):
    """A stop signal was received. A KeyboardInterrupt, so callers handle it like Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """While entered, the first stop signal raises StopRequested; later ones are ignored.

    Stopping a whole process group sends several at once: each parent forwards its own. Signals already
    ignored at the start (nohup) stay ignored. Main thread only.
    """

    def __init__(self) -> None:
        self._came = False
        self._held = False
        self._waiting: int | None = None
        """The signal received while held."""
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> Self:
        numbers = [number for number in STOP_SIGNALS if signal.getsignal(number) != signal.SIG_IGN]
        self._before = {number: signal.signal(number, self._interrupt) for number in numbers}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextmanager
    def held(self) -> Iterator[None]:
        """Defers a signal received inside the block to its end."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            raise StopRequested(number)

    def ignore(self) -> None:
        """Ignores all further stop signals."""
        self._came = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            return
        self._came = True
        if not self._held:
            raise StopRequested(number)
        self._waiting = number
