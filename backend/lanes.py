"""Work that waits for the model: queues that are fair, bounded, and forget whom nobody waits for.

A lane is a queue and the one thread that works it off, several pieces at a time where they come close
together. Images and phrases have a lane each, so neither holds up the other.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock, Thread
from typing import Any, Generic, TypeVar

from backend.errors import ModelBusyError, ModelUnavailableError, TooLateError

END_S = 4.0
"""How long `stop_lanes` waits for the work at hand."""

Work = TypeVar("Work")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """For whom something is computed."""

    name: str = ""
    """Callers take turns: whoever asks much waits for himself."""
    until_s: float = math.inf
    """When nobody waits for the answer any more, by `time.monotonic`."""

    @property
    def left_s(self) -> float:
        """Seconds until then; 0 when it has passed."""
        return max(self.until_s - time.monotonic(), 0.0)


@dataclass
class Pending(Generic[Work, Result]):
    """A piece of work in a lane."""

    work: Work
    caller: Caller
    since_s: float = field(default_factory=time.monotonic)
    future: Future[Result] = field(default_factory=Future)


class FairQueue(Generic[Work, Result]):
    """Callers take turns, each with its oldest piece of work. Not safe to share without a lock."""

    def __init__(self) -> None:
        self._by_caller: OrderedDict[str, deque[Pending[Work, Result]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def put(self, pending: Pending[Work, Result]) -> None:
        self._by_caller.setdefault(pending.caller.name, deque()).append(pending)
        self._count += 1

    def take(self) -> Pending[Work, Result]:
        """The next piece; raises KeyError when there is none."""
        name, pieces = self._by_caller.popitem(last=False)
        pending = pieces.popleft()
        self._count -= 1
        if pieces:
            self._by_caller[name] = pieces
        return pending


class Lane(Generic[Work, Result]):
    """Works off a queue in a thread of its own. Making one starts nothing.

    Args:
        name: Of the thread.
        perform: Does several pieces of work, and returns their results in order.
        max_batch: How many at a time, at most.
        gather_s: For how long several wait for more. Who comes alone waits for nobody.
        on_batch: Told how many pieces were done together, and how long the first of them had waited.
        on_late: Called for each piece that nobody waited for any more when its turn came.
    """

    def __init__(
        self,
        name: str,
        perform: Callable[[Sequence[Work]], Sequence[Result]],
        max_batch: int = 1,
        gather_s: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda size, waited_s: None,
        on_late: Callable[[], None] = lambda: None,
    ) -> None:
        self._name = name
        self._perform = perform
        self._max_batch = max_batch
        self._gather_s = gather_s
        self._on_batch = on_batch
        self._on_late = on_late
        self._queue: FairQueue[Work, Result] = FairQueue()
        self._come_together = False
        self._changed = Condition()
        self._stopped = False
        self._thread: Thread | None = None

    def __len__(self) -> int:
        """How many pieces wait."""
        return len(self._queue)

    def start(self) -> None:
        with self._changed:
            if self._thread is None and not self._stopped:
                self._thread = Thread(target=self._run, name=self._name, daemon=True)
                self._thread.start()

    def stop(self) -> None:
        """Ends the thread after the work at hand; what still waits is cancelled. Waits for nothing."""
        with self._changed:
            self._stopped = True
            self._cancel_all()
            self._changed.notify_all()

    def join(self, timeout_s: float) -> None:
        """Waits until the thread has ended."""
        if self._thread is not None:
            self._thread.join(timeout_s)

    def submit(self, works: Sequence[Work], caller: Caller) -> list[Future[Result]]:
        """Queues pieces of work; `wait_for` waits for them. Once the lane was stopped, they are cancelled."""
        pieces: list[Pending[Work, Result]] = [Pending(work, caller) for work in works]
        with self._changed:
            for piece in pieces:
                self._queue.put(piece)
            if self._stopped:
                self._cancel_all()
            self._changed.notify_all()
        return [piece.future for piece in pieces]

    def _run(self) -> None:
        while batch := self._next_batch():
            waited_s = time.monotonic() - batch[0].since_s
            self._do(batch)
            self._on_batch(len(batch), waited_s)

    def _cancel_all(self) -> None:
        while len(self._queue):
            self._queue.take().future.cancel()

    def _next_batch(self) -> list[Pending[Work, Result]]:
        """Waits for work; an empty list means that the lane was stopped."""
        batch: list[Pending[Work, Result]] = []
        with self._changed:
            while not batch and not self._stopped:
                self._changed.wait_for(lambda: len(self._queue) or self._stopped)
                if self._come_together or len(self._queue) > 1:
                    self._changed.wait_for(
                        lambda: len(self._queue) >= self._max_batch or self._stopped, self._gather_s
                    )
                while not self._stopped and len(self._queue) and len(batch) < self._max_batch:
                    batch += self._wanted(self._queue.take())
            self._come_together = len(batch) > 1
        return batch

    def _wanted(self, piece: Pending[Work, Result]) -> list[Pending[Work, Result]]:
        """The piece, unless nobody waits for it any more."""
        if not piece.future.set_running_or_notify_cancel():
            self._on_late()
            return []
        if not piece.caller.left_s:
            self._on_late()
            piece.future.set_exception(_too_late())
            return []
        return [piece]

    def _do(self, batch: Sequence[Pending[Work, Result]]) -> None:
        try:
            results = self._perform([piece.work for piece in batch])
            for piece, result in zip(batch, results, strict=True):
                piece.future.set_result(result)
        except Exception as error:  # for whoever waits, whatever it is
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            logger.warning("%d pieces failed together (%s): each is tried alone", len(batch), error)
            for piece in batch:
                self._do([piece])


def stop_lanes(lanes: Iterable[Lane[Any, Any]]) -> None:
    """Ends lanes side by side, after the work at hand, or END_S."""
    lanes, until_s = list(lanes), time.monotonic() + END_S
    for lane in lanes:
        lane.stop()
    for lane in lanes:
        lane.join(max(until_s - time.monotonic(), 0.0))


def wait_for(future: Future[Result], caller: Caller) -> Result:
    """Waits for a piece of work as long as the caller does.

    Raises:
        TooLateError: the caller has stopped waiting; what has not begun is not done.
        ModelUnavailableError: the lane was stopped.
    """
    try:
        return future.result(None if math.isinf(caller.until_s) else caller.left_s)
    except CancelledError as error:
        raise ModelUnavailableError("the backend is stopping: try again in a minute") from error
    except FutureTimeoutError as error:
        future.cancel()
        raise _too_late() from error


def _too_late() -> TooLateError:
    return TooLateError("the model did not come to it in time: ask again")


class Entrance:
    """Bounds how many requests are inside, at the model or waiting for it; half of them may be one caller's.

    Args:
        limit: How many.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._inside: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def inside(self) -> int:
        """How many there are now."""
        return self._inside.total()

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[None]:
        """Lets a request in for the block.

        Raises:
            ModelBusyError: there are too many.
        """
        with self._lock:
            too_many = self.inside >= self._limit
            if too_many or self._inside[caller.name] >= max(1, self._limit // 2):
                raise ModelBusyError(f"the model is busy, {self.inside} requests wait: try again in a moment")
            self._inside[caller.name] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside[caller.name] -= 1
                if not self._inside[caller.name]:
                    del self._inside[caller.name]
