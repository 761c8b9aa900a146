"""Fair, bounded request queues that drop abandoned requests.

A lane is a queue with one worker thread, or some, which batch items that arrive close together. Images and
phrases have separate lanes, so encoding an image never blocks a phrase. Items that are not urgent wait in a
second queue of the lane. Urgent ones overtake them for OVERTAKEN_S; then batches of both take turns: constant
load delays the others, and does not keep them out.
"""

from __future__ import annotations

import logging
import math
import time
from collections import Counter, OrderedDict, deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Condition, Lock, Semaphore, Thread
from typing import Any, Generic, TypeVar

from backend.errors import ModelBusyError, ModelUnavailableError, TooLateError

RESERVED_PART = 8
"""Part of the limit that is admitted beyond it for projects without a request, 1 / RESERVED_PART."""
MOST_RESERVED = 16
"""Half of the server's spare threads (`backend.web.serve`): the others keep /health responsive."""
OVERTAKEN_S = 0.5
"""Time for which urgent items overtake others."""
END_S = 4.0
"""Time that `stop_queues` waits for running work."""

Work = TypeVar("Work")
Result = TypeVar("Result")

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Caller:
    """The requester of a computation."""

    name: str = ""
    """Callers take turns, so a caller with many requests delays only itself."""
    until_s: float = math.inf
    """When the caller times out, by `time.monotonic`."""
    project: str = ""
    """ID of the project, whose line of versions answers; empty without a project."""

    @property
    def left_s(self) -> float:
        """Seconds until then; 0 if it has passed."""
        return max(self.until_s - time.monotonic(), 0.0)


@dataclass
class Pending(Generic[Work, Result]):
    """An item in a lane."""

    work: Work
    caller: Caller
    since_s: float = field(default_factory=time.monotonic)
    future: Future[Result] = field(default_factory=Future)
    urgent: bool = True


class FairQueue(Generic[Work, Result]):
    """Round-robin over callers, each with its oldest item first. Not thread-safe.

    Args:
        kind: Items of one kind are cheaper together.
    """

    def __init__(self, kind: Callable[[Work], Hashable] = lambda work: None) -> None:
        self._kind = kind
        self._by_caller: OrderedDict[str, deque[Pending[Work, Result]]] = OrderedDict()
        self._count = 0

    def __len__(self) -> int:
        return self._count

    @property
    def waited_s(self) -> float:
        """Time that the caller whose turn is next has waited; 0 without items."""
        if not self._count:
            return 0.0
        return time.monotonic() - next(iter(self._by_caller.values()))[0].since_s

    def put(self, pending: Pending[Work, Result]) -> None:
        self._by_caller.setdefault(pending.caller.name, deque()).append(pending)
        self._count += 1

    def take(self, most: int = 1) -> list[Pending[Work, Result]]:
        """The next caller's item, and those of its kind of the callers behind, one each; empty without items.

        The caller that waits longest is always served, so a kind with many callers delays no other one by
        more than its items ahead.
        """
        if not self._count:
            return []
        wanted = self._kind(next(iter(self._by_caller.values()))[0].work)
        names = [name for name, pieces in self._by_caller.items() if self._kind(pieces[0].work) == wanted]
        return [self._take_from(name) for name in names[:most]]

    def _take_from(self, name: str) -> Pending[Work, Result]:
        pieces = self._by_caller.pop(name)
        pending = pieces.popleft()
        self._count -= 1
        if pieces:
            self._by_caller[name] = pieces  # behind all others
        return pending


class BatchQueue(Generic[Work, Result]):
    """Processes a queue in threads of its own. The constructor starts nothing.

    Args:
        name: Name of the thread.
        perform: Processes a batch and returns the results in order.
        max_batch: Maximum batch size.
        gather_s: Time to wait for further items. A single caller does not wait.
        on_batch: Called with the batch size and the waiting time of its first item.
        on_late: Called for each urgent item whose caller had timed out.
        kind: Items of one kind are cheaper in the same batch.
        threads: Number of threads, each with a batch of its own.
        room: Acquired before a batch is taken, so that items wait here, where callers take turns. Released by
            the user of the results.
    """

    def __init__(
        self,
        name: str,
        perform: Callable[[Sequence[Work]], Sequence[Result]],
        max_batch: int = 1,
        gather_s: float = 0.0,
        on_batch: Callable[[int, float], None] = lambda size, waited_s: None,
        on_late: Callable[[], None] = lambda: None,
        kind: Callable[[Work], Hashable] = lambda work: None,
        threads: int = 1,
        room: Semaphore | None = None,
    ) -> None:
        self._perform = perform
        self._max_batch = max_batch
        self._gather_s = gather_s
        self._on_batch = on_batch
        self._on_late = on_late
        self._urgent: FairQueue[Work, Result] = FairQueue(kind)
        self._later: FairQueue[Work, Result] = FairQueue(kind)
        self._come_together = self._took_later = False
        self._changed = Condition()
        self._started = self._stopped = False
        self._room = room
        self._threads = [
            Thread(target=self._run, name=name if threads == 1 else f"{name}-{number}", daemon=True)
            for number in range(threads)
        ]

    def __len__(self) -> int:
        """Number of waiting items."""
        return len(self._urgent) + len(self._later)

    def start(self, max_batch: int | None = None) -> None:
        """Starts the threads.

        Args:
            max_batch: Replaces the constructor's.
        """
        with self._changed:
            if not self._stopped and not self._started:
                self._started, self._max_batch = True, max_batch or self._max_batch
                for thread in self._threads:
                    thread.start()

    def stop(self) -> None:
        """Ends the threads after the running work and cancels waiting items. Does not block."""
        with self._changed:
            self._stopped = True
            self._cancel_all()
            self._changed.notify_all()
        if self._room is not None:
            self._room.release(len(self._threads))

    def join(self, timeout_s: float) -> None:
        """Waits until the threads have ended."""
        until_s = time.monotonic() + timeout_s
        for thread in self._threads if self._started else []:
            thread.join(max(until_s - time.monotonic(), 0.0))

    def submit(self, works: Sequence[Work], caller: Caller, urgent: bool = True) -> list[Future[Result]]:
        """Queues items; `wait_for` waits for them. After a stop they are cancelled.

        Items that are not urgent wait for others, of any caller: see OVERTAKEN_S.
        """
        pieces: list[Pending[Work, Result]] = [Pending(work, caller, urgent=urgent) for work in works]
        with self._changed:
            for piece in pieces:
                (self._urgent if urgent else self._later).put(piece)
            if self._stopped:
                self._cancel_all()
            self._changed.notify_all()
        return [piece.future for piece in pieces]

    def _run(self) -> None:
        while self._do_next():
            pass

    def _do_next(self) -> bool:
        """Processes a batch, and holds none of its items afterwards; False if the lane was stopped."""
        if self._room is not None:
            self._room.acquire()
        batch = self._next_batch()
        if not batch:
            return False
        waited_s = time.monotonic() - batch[0].since_s
        self._do(batch)
        self._on_batch(len(batch), waited_s)
        return True

    def _cancel_all(self) -> None:
        for queue in (self._urgent, self._later):
            while pieces := queue.take():
                for piece in pieces:
                    piece.future.cancel()

    def _next_batch(self) -> list[Pending[Work, Result]]:
        """Waits for a batch; empty if the lane was stopped."""
        batch: list[Pending[Work, Result]] = []
        with self._changed:
            while not batch and not self._stopped:
                self._changed.wait_for(lambda: len(self) or self._stopped)
                # Waiting for company would cost a lone annotator gather_s on each phrase, so it is done only
                # when the last batch had several pieces or more are here already.
                if self._come_together or len(self) > 1:
                    self._changed.wait_for(
                        lambda: len(self._urgent) >= self._max_batch or self._stopped, self._gather_s
                    )
                # A batch of urgent items is not filled up with others, which would make its pass longer.
                overtaken = self._later.waited_s > OVERTAKEN_S and not self._took_later
                self._took_later = overtaken or not len(self._urgent)
                queue = self._later if self._took_later else self._urgent
                while not self._stopped and len(queue) and len(batch) < self._max_batch:
                    for piece in queue.take(self._max_batch - len(batch)):
                        batch += self._wanted(piece)
            self._come_together = len(batch) > 1
        return batch

    def _wanted(self, piece: Pending[Work, Result]) -> list[Pending[Work, Result]]:
        """The item, unless its caller has timed out."""
        if not piece.future.set_running_or_notify_cancel():
            if piece.urgent:
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
        except Exception as error:  # passed on to the caller, whatever it is
            if len(batch) == 1:
                batch[0].future.set_exception(error)
                return
            logger.warning("a batch of %d items failed (%s): retrying them one by one", len(batch), error)
            for piece in batch:
                self._do([piece])


def stop_queues(lanes: Iterable[BatchQueue[Any, Any]]) -> None:
    """Stops lanes in parallel, after the running work or END_S."""
    lanes, until_s = list(lanes), time.monotonic() + END_S
    for lane in lanes:
        lane.stop()
    for lane in lanes:
        lane.join(max(until_s - time.monotonic(), 0.0))


def wait_for(future: Future[Result], caller: Caller) -> Result:
    """Waits for an item until the caller's timeout.

    Raises:
        TooLateError: the caller timed out; items that have not started are dropped.
        ModelUnavailableError: the lane was stopped.
    """
    try:
        return future.result(None if math.isinf(caller.until_s) else caller.left_s)
    except CancelledError as error:
        raise ModelUnavailableError("the backend is stopping: try again in a minute") from error
    except FutureTimeoutError as error:
        future.cancel()
        raise _too_late() from error


def when_done(futures: Sequence[Future[Any]], call: Callable[[], None]) -> None:
    """Calls a function once, when all of at least one future have a result or were cancelled."""
    lock, left = Lock(), len(futures)

    def note(_: Future[Any]) -> None:
        nonlocal left
        with lock:
            left -= 1
            is_last = not left
        if is_last:
            call()

    for future in futures:
        future.add_done_callback(note)


def _too_late() -> TooLateError:
    return TooLateError("the model did not answer in time: ask again")


class AdmissionLimit:
    """Limits the number of requests at the model or waiting for it; one caller may hold half of them.

    A project that has none inside is admitted beyond the limit, so that busy projects do not lock it out.

    Args:
        limit: Maximum number.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._reserve = max(1, min(limit // RESERVED_PART, MOST_RESERVED))
        self._inside: Counter[str] = Counter()
        self._of_project: Counter[str] = Counter()
        self._lock = Lock()

    @property
    def inside(self) -> int:
        """Current number."""
        return self._inside.total()

    @contextmanager
    def enter(self, caller: Caller) -> Iterator[None]:
        """Admits a request for the duration of the block.

        Raises:
            ModelBusyError: the limit is reached.
        """
        with self._lock:
            limit = self._limit + (0 if self._of_project[caller.project] else self._reserve)
            too_many = self.inside >= limit
            if too_many or self._inside[caller.name] >= max(1, self._limit // 2):
                raise ModelBusyError(f"the model is busy, {self.inside} requests wait: try again in a moment")
            self._inside[caller.name] += 1
            self._of_project[caller.project] += 1
        try:
            yield
        finally:
            with self._lock:
                self._inside -= Counter([caller.name])  # drops names that have none
                self._of_project -= Counter([caller.project])
