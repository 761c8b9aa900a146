"""Chunks of a project's tasks: each is a job, which processes some tasks at a time.

A thread carries a task from its download to its masks; the engine's queues (`backend.serving`) put together
what they ask of the model: the device works on some tasks while others are fetched, decoded or posted.
"""

from __future__ import annotations

import hashlib
import json
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, TypeVar

from redis import Redis

from backend.errors import LabelStudioError, LabelStudioNotFound
from backend.shared_redis import PRELABEL_CLAIMS_KEY, PRELABEL_PROGRESS_KEY, job_under_way
from backend.state.skipped_items import reason_of
from worker.isolation import CONCERN_ALL

CHUNK_TASKS = 100
"""Tasks per job: each job loads a model."""
TASK_THREADS = 16
"""Tasks that a job processes at a time: two batches of images, one being fetched, decoded or posted."""
PROGRESS_TTL_S = 7 * 24 * 3600

Item = TypeVar("Item")
Result = TypeVar("Result")
Payload = TypeVar("Payload")


@dataclass
class ChunkReport:
    """Results of the tasks of a chunk."""

    tasks: int = 0
    """Processed, successfully or not."""
    posted: int = 0
    masks: int = 0
    skipped: int = 0
    """Already predicted, without a phrase, or another job's."""
    problems: dict[str, str] = field(default_factory=dict)
    """Task id -> reason why it has no prediction."""

    def add(self, other: ChunkReport) -> None:
        """Adds the results of other tasks to these."""
        self.tasks += other.tasks
        self.posted += other.posted
        self.masks += other.masks
        self.skipped += other.skipped
        self.problems |= other.problems


class ChunkProgress:
    """Progress of a run's jobs, in Redis.

    Args:
        redis: The Redis shared by all workers.
        run: Name of the run.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._key = PRELABEL_PROGRESS_KEY.format(run=run)

    def note(self, chunk: str, report: ChunkReport) -> None:
        self._redis.hset(self._key, chunk, json.dumps(asdict(report)))
        self._redis.expire(self._key, PROGRESS_TTL_S)

    def forget(self, chunk: str) -> None:
        self._redis.hdel(self._key, chunk)

    def report(self, chunks: Iterable[str]) -> ChunkReport:
        """Sums the reports of chunks; chunks that have not started are ignored."""
        total = ChunkReport()
        names = list(chunks)
        values: list[Any] = self._redis.hmget(self._key, names) if names else []
        for value in values:
            if value is not None:
                total.add(ChunkReport(**json.loads(value)))
        return total


_TAKE_OVER = """
if redis.call('hget', KEYS[1], ARGV[1]) ~= ARGV[2] then return 0 end
redis.call('hset', KEYS[1], ARGV[1], ARGV[3])
return 1
"""
"""Replaces a task's owner, unless another job has done so meanwhile."""


class TaskClaims:
    """Which job processes a task of a run, in Redis: one at a time, whatever chunks have it.

    A task is in two chunks when the run is started again after tasks were added: the last chunk has grown. A
    claim ends with its job; a job that runs again after an interruption still has its own.

    Args:
        redis: The Redis shared by all workers.
        run: Name of the run.
        chunk: Name of the job's chunk.
    """

    def __init__(self, redis: Redis, run: str, chunk: str) -> None:
        self._redis, self._run, self._chunk = redis, run, chunk
        self._key = PRELABEL_CLAIMS_KEY.format(run=run)
        self._replace = redis.register_script(_TAKE_OVER)

    def take(self, task: int) -> bool:
        """Claims a task; returns False if another job has it. Thread-safe."""
        if self._redis.hsetnx(self._key, str(task), self._chunk):
            self._redis.expire(self._key, PROGRESS_TTL_S)
            return True
        value: Any = self._redis.hget(self._key, str(task))
        owner = value.decode() if value is not None else ""
        if owner == self._chunk:
            return True
        if job_under_way(self._redis, f"{self._run}-{owner}"):
            return False
        return bool(self._replace(keys=[self._key], args=[str(task), owner, self._chunk]))


def each_task(
    task_ids: Iterable[int], work: Callable[[int], tuple[ChunkReport, Payload]], report: ChunkReport
) -> Iterator[Payload | None]:
    """Processes tasks, TASK_THREADS at a time; deleted tasks are skipped.

    Args:
        task_ids: The tasks.
        work: Processes one, in another thread; returns its results, and something for the caller.
        report: Receives the results of each task before its payload is yielded.

    Yields:
        The payload of each task, in order; None if it has none because it failed or was deleted.

    Raises:
        LabelStudioError: it does not respond.
    """
    for number, future in in_parallel(work, task_ids):
        payload: Payload | None = None
        report.tasks += 1
        try:
            done, payload = future.result()
            report.add(done)
        except LabelStudioNotFound:
            report.skipped += 1
        except LabelStudioError:
            raise
        except CONCERN_ALL:
            raise
        except Exception as error:  # odd data of this task
            report.problems[str(number)] = reason_of(error)
        yield payload


def in_parallel(
    work: Callable[[Item], Result], items: Iterable[Item]
) -> Iterator[tuple[Item, Future[Result]]]:
    """Calls a function for some items at a time; yields each with its future, which is done, in order.

    The caller may be as many items behind. Items that have not begun are dropped when it stops.
    """
    rest, begun = iter(items), deque[tuple[Item, "Future[Result]"]]()
    pool = ThreadPoolExecutor(TASK_THREADS, "tasks")

    def begin(count: int) -> None:
        begun.extend((item, pool.submit(work, item)) for item in islice(rest, count))

    try:
        begin(2 * TASK_THREADS)
        while begun:
            item, future = begun.popleft()
            future.exception()  # waits
            begin(1)
            yield item, future
    finally:
        pool.shutdown(cancel_futures=True)


def chunks_of(task_ids: Iterable[int], size: int = CHUNK_TASKS) -> Iterator[list[int]]:
    """Splits task ids into chunks, in order."""
    numbers = iter(task_ids)
    while chunk := list(islice(numbers, size)):
        yield chunk


def chunk_name(task_ids: Sequence[int]) -> str:
    """Derives a chunk's name from its task ids."""
    content = ",".join(map(str, task_ids))
    return f"{task_ids[0]}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"
