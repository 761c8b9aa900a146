"""What the worker writes to Redis for the backend's pages: decisions, progress, counts, queues."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from backend.corrections import CorrectionLog, DayCounts, ProjectTally
from backend.shared_redis import DECISION_KEY, PROGRESS_KEY, QUEUES
from backend.state.guarded_redis import GuardedRedis
from sspsam.version_store.lines import line_key


@dataclass(frozen=True)
class QueueState:
    """Numbers of jobs, and of workers that take from the queue."""

    waiting: int
    running: int
    failed: int
    workers: int


class WorkerState:
    """Reads what the worker has written. Never raises Redis errors."""

    def __init__(self, guarded: GuardedRedis) -> None:
        self._guarded, self._redis = guarded, guarded.redis

    def decision(self, line: str) -> dict[str, Any]:
        """Returns the worker's last fine-tune decision on a line: at, trigger, start, reason; {} if there is
        none.
        """
        return self._guarded.json(DECISION_KEY.format(line=line_key(line)))

    def progress(self, line: str) -> dict[str, Any]:
        """Returns the progress of a line's running fine-tune: run, step, steps; {} if none runs."""
        return self._guarded.json(PROGRESS_KEY.format(line=line_key(line)))

    def corrections(self) -> list[ProjectTally]:
        """Returns the worker's counts of corrections; see `backend.corrections`."""
        nothing: list[ProjectTally] = []
        return self._guarded.attempt(CorrectionLog(self._redis).sums, nothing)

    def correction_days(self, project: int) -> list[DayCounts]:
        """Returns the worker's counts of a project's corrections by day."""
        nothing: list[DayCounts] = []
        return self._guarded.attempt(lambda: CorrectionLog(self._redis).days(project), nothing)

    def waiting_jobs(self) -> dict[str, int]:
        """Returns the number of jobs in each worker queue; {} if Redis does not respond."""

        def count() -> dict[str, int]:
            return {name: int(self._redis.llen(f"rq:queue:{name}")) for name in QUEUES}

        nothing: dict[str, int] = {}
        return self._guarded.attempt(count, nothing)

    def queues(self) -> dict[str, QueueState]:
        """Returns the state of each worker queue; {} if Redis does not respond."""

        def count() -> dict[str, QueueState]:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name in QUEUES:
                    pipeline.llen(f"rq:queue:{name}")
                    pipeline.zcard(f"rq:wip:{name}")
                    pipeline.zcard(f"rq:failed:{name}")
                    pipeline.scard(f"rq:workers:{name}")
                found = [int(number) for number in pipeline.execute()]
            return {name: QueueState(*found[4 * at : 4 * at + 4]) for at, name in enumerate(QUEUES)}

        nothing: dict[str, QueueState] = {}
        return self._guarded.attempt(count, nothing)
