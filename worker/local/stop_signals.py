"""Ctrl-C, `kill` and a closed terminal end a service once, and not within a step that must finish."""

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType, TracebackType
from typing import Any, Self

STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
"""What ends the service: Ctrl-C, `kill`, and a closed terminal."""


class StopRequested(KeyboardInterrupt):
    """A stop signal came. A KeyboardInterrupt, as everything on the way out treats it like Ctrl-C."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


class StopSignals:
    """While entered, the first stop signal raises StopRequested, and those that follow change nothing.

    Several come together where a whole process group is asked to end: each parent passes its own on.
    Signals ignored from outside (nohup) stay ignored. Main thread only.
    """

    def __init__(self) -> None:
        self._came = False
        self._held = False
        self._waiting: int | None = None
        """The signal that came while held."""
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
        """A signal that comes inside raises at the end of it."""
        self._held = True
        try:
            yield
        finally:
            self._held = False
        if self._waiting is not None:
            number, self._waiting = self._waiting, None
            raise StopRequested(number)

    def ignore(self) -> None:
        """From now on stop signals change nothing."""
        self._came = True

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        if self._came:
            return
        self._came = True
        if not self._held:
            raise StopRequested(number)
        self._waiting = number
