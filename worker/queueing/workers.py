"""RQ worker processes that stop promptly and lose no job.

`EventsWorker` forks for each job: cheap, and fine for jobs that touch no GPU. `ModelWorker` starts a fresh
interpreter for each job, so CUDA starts clean and all memory is released; unlike RQ's own SpawnWorker, it
keeps the Redis password off the command line.

On SIGTERM a worker takes no further job. The current job may continue for `grace_s`; then, or at a second
SIGTERM, its process is killed and the job returns to the front of its queue. Jobs are safe to run again.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from collections.abc import Callable, Collection
from contextlib import suppress
from threading import Thread, Timer
from types import FrameType
from typing import Any

from redis import Redis
from rq import Queue, Worker
from rq.executions import Execution
from rq.job import Job
from rq.serializers import JSONSerializer

from backend.settings import JOB_MODULES
from backend.shared_redis import EVENTS, PRELABEL, QUEUES, RECONCILE, TRAINING, ServiceJob, ServiceQueue
from worker.queueing.allowlist import refusal
from worker.queueing.yielding import limit_threads

logger = logging.getLogger(__name__)

WORKER_TTL_S = 25
"""RQ waits 15 s less than this for a job, then runs its maintenance."""
MAINTENANCE_INTERVAL_S = 10
"""Interval of the search for jobs of dead workers."""
HEARTBEAT_S = 10
SILENCE_S = 30
"""Delay of a heartbeat after which a worker counts as dead. With the intervals above and the first delay of
JOB_RETRY, another worker takes its job within 90 s."""
EVENTS_GRACE_S = 3.0
MODEL_GRACE_S = 0.0
"""Short: a fine-tune resumes from its checkpoint, and posted tasks of a chunk are kept."""
PARENT_POLL_S = 1.0


class StoppableWorker(Worker):
    """An RQ worker that returns an interrupted job to its queue."""

    grace_s = EVENTS_GRACE_S
    job_class = ServiceJob
    queue_class: type[Queue] = ServiceQueue
    job_modules: Collection[str] = JOB_MODULES
    """Modules whose public functions it runs."""
    cores = 0
    """Cores of a job that needs the model; 0: all of the machine's but one."""
    _cut_short = False
    _cleaned_s = float("-inf")

    @property
    def should_run_maintenance_tasks(self) -> bool:
        """By the monotonic clock: RQ stops for an hour when the system's clock is set back by one."""
        return time.monotonic() - self._cleaned_s > self.maintenance_interval

    def run_maintenance_tasks(self) -> None:
        self._cleaned_s = time.monotonic()
        level = self.log.level
        self.log.setLevel(logging.WARNING)  # RQ logs each search, whether or not it finds anything
        try:
            Worker.run_maintenance_tasks(self)
        finally:
            self.log.setLevel(level)

    def get_heartbeat_ttl(self, job: Job, working_time: float = 0.0) -> int:
        """How long the job's entry stays valid without another heartbeat; RQ allows 60 s of silence."""
        left_s = float(job.timeout or 0) - working_time
        return (int(min(left_s, HEARTBEAT_S)) if left_s > 0 else HEARTBEAT_S) + SILENCE_S

    def handle_warm_shutdown_request(self) -> None:
        self.log.info("worker %s is stopping; its job may continue for %.0f s", self.name, self.grace_s)
        timer = Timer(self.grace_s, self._cut_job_short)
        timer.daemon = True
        timer.start()

    def request_force_stop(self, signum: int, frame: FrameType | None) -> None:
        """Handles the second SIGTERM: kills the job's process; the worker exits once that is recorded."""
        self._cut_job_short()

    def handle_job_failure(
        self,
        job: Job,
        queue: Queue,
        started_job_registry: Any = None,
        exc_string: str = "",
        execution: Execution | None = None,
    ) -> None:
        if not self._cut_short:
            super().handle_job_failure(job, queue, started_job_registry, exc_string, execution)
            return
        logger.info("job %s was interrupted and returns to the queue %s", job.id, queue.name)
        with self.connection.pipeline() as pipeline:
            queue.enqueue_job(job, pipeline=pipeline, at_front=True)
            self.cleanup_execution(job, pipeline=pipeline, execution=execution)
            pipeline.execute()
        queue.intermediate_queue.remove(job.id)

    def perform_job(self, job: Job, queue: Queue, *rest: Any) -> bool:
        """Runs a job if it is allowed; a refused one fails and is not retried."""
        reason = refusal(job, self.job_modules)
        if not reason:
            if isinstance(job, ServiceJob):
                job.modules = self.job_modules
            return bool(super().perform_job(job, queue, *rest))
        self.log.error("job %s: %s", job.id, reason)
        job.retries_left = 0
        self.handle_job_failure(job, queue, exc_string=reason, execution=self.execution)
        return False

    def main_work_horse(self, job: Job, queue: Queue) -> None:
        follow_parent(kill_own_group)
        super().main_work_horse(job, queue)

    def _cut_job_short(self) -> None:
        pid = self._horse_pid
        if not pid:
            return
        self._cut_short = True
        with suppress(ProcessLookupError):
            group = os.getpgid(pid)
            if group == os.getpgrp():  # just forked, not yet in its own group
                os.kill(pid, signal.SIGKILL)
            else:
                os.killpg(group, signal.SIGKILL)


class EventsWorker(StoppableWorker):
    """Forks for each job."""


class ModelWorker(StoppableWorker):
    """Starts a fresh interpreter for each job; worker.queueing.job_process is its entry point."""

    grace_s = MODEL_GRACE_S

    def fork_work_horse(self, job: Job, queue: Queue) -> None:
        assert self.execution is not None
        os.environ["RQ_WORKER_ID"], os.environ["RQ_JOB_ID"] = self.name, job.id
        command = [
            sys.executable,
            "-P",
            "-m",
            "worker.queueing.job_process",
            self.key,
            job.id,
            self.execution.id,
        ]
        environment = {**os.environ}
        limit_threads(environment, self.cores)
        self._horse_pid = os.posix_spawn(sys.executable, command, environment, setpgroup=0)


WORKERS: dict[str, type[StoppableWorker]] = {
    EVENTS: EventsWorker,
    RECONCILE: EventsWorker,
    TRAINING: ModelWorker,
    PRELABEL: ModelWorker,
}


def make_worker(
    queue_name: str, connection: Redis, job_modules: Collection[str] = JOB_MODULES, cores: int = 0
) -> StoppableWorker:
    """Creates the worker of a queue without running it.

    Args:
        queue_name: Name of the queue.
        connection: To the Redis shared by all workers.
        job_modules: Modules whose public functions it may run.
        cores: Of a job that needs the model; 0: all of the machine's but one.

    Raises:
        ValueError: no such queue.
    """
    if queue_name not in WORKERS:
        raise ValueError(f"no queue {queue_name!r}, expected one of: {', '.join(QUEUES)}")
    worker = WORKERS[queue_name](
        [queue_name],
        connection=connection,
        worker_ttl=WORKER_TTL_S,
        maintenance_interval=MAINTENANCE_INTERVAL_S,
        job_monitoring_interval=HEARTBEAT_S,
        serializer=JSONSerializer,
    )
    worker.job_modules, worker.cores = job_modules, cores
    return worker


def follow_parent(end: Callable[[], None]) -> None:
    """Calls `end` once the parent process has exited for any reason."""
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(PARENT_POLL_S)
        end()

    Thread(target=watch, daemon=True, name="follow-parent").start()


def kill_own_group() -> None:
    """Kills this process, which leads its group, and all its children."""
    os.killpg(os.getpgrp(), signal.SIGKILL)


def ask_self_to_end() -> None:
    os.kill(os.getpid(), signal.SIGTERM)
