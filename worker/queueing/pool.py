"""`sspsam worker`: one supervised process per queue.

The pool also runs what RQ calls the scheduler: it moves jobs whose retry is due back into their queue.
"""

from __future__ import annotations

import importlib
import logging
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from types import FrameType

from redis.exceptions import RedisError
from rq.scheduler import RQScheduler

from backend.logs import configure_logging
from backend.settings import Settings
from backend.shared_redis import EVENTS, RECONCILE, connect
from worker.queueing.healthcheck import RECENT, Heartbeat, queues_served
from worker.queueing.retries import Retries
from worker.queueing.workers import ask_self_to_end, follow_parent, make_worker

logger = logging.getLogger(__name__)

POLL_S = 0.2
RETRIES_EVERY_S = 1.0
HEALTH_EVERY_S = 5.0
"""Interval of health checks of a healthy pool."""
HEALTH_AGAIN_S = 1.0
"""Interval while it is not healthy, for example at its start."""
END_S = 6.0
"""Time for workers to exit on SIGTERM before they are killed."""
ASK_AGAIN_S = 4.0
"""Time until SIGTERM is repeated, which interrupts the current job."""
MIN_RESTART_S = 1.0
MAX_RESTART_S = 30.0
STABLE_S = 60.0
"""A worker that ran this long is restarted without a longer delay."""


@dataclass
class Member:
    """The worker process of one queue."""

    queue: str
    process: subprocess.Popen[bytes]
    started_at: float = field(default_factory=time.monotonic)
    restart_in_s: float = MIN_RESTART_S

    @classmethod
    def start(cls, queue: str, restart_in_s: float = MIN_RESTART_S) -> Member:
        command = [sys.executable, "-P", "-m", "worker.queueing.pool", queue]
        return cls(queue, subprocess.Popen(command, start_new_session=True), restart_in_s=restart_in_s)


class Pool:
    """Runs the workers of some queues until it is stopped.

    Args:
        queues: Names of the queues.
        settings: For the connection to Redis; workers read their own from the environment.
        is_outdated: Whether to stop, since workers of these variables are no longer wanted.
    """

    def __init__(
        self, queues: Sequence[str], settings: Settings, is_outdated: Callable[[], bool] = lambda: False
    ) -> None:
        self.queues = list(queues)
        self._is_outdated = is_outdated
        self._stopping = False
        self._retries: RQScheduler = Retries(queues, connect(settings.redis_url))
        self._retries_at = 0.0
        self._redis_url = settings.redis_url
        self._heartbeat = Heartbeat()
        self._next_health_at = 0.0

    def run(self) -> None:
        """Blocks until SIGTERM or SIGINT, or until it is outdated.

        All its processes have exited when it returns.
        """
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._request_stop)
        members = [Member.start(queue) for queue in self.queues]
        try:
            while not self._stopping:
                members = [self._keep_alive(member) for member in members]
                self._enqueue_due_retries()
                self._report_health(members)
                time.sleep(POLL_S)
        finally:
            self._heartbeat.remove()
            end_all([member.process for member in members])
            self._give_up_retries()

    def _request_stop(self, signum: int, frame: FrameType | None) -> None:
        self._stopping = True

    def _keep_alive(self, member: Member) -> Member:
        status = member.process.poll()
        if status is None:
            return member
        if time.monotonic() - member.started_at > STABLE_S:
            member.restart_in_s = MIN_RESTART_S
        logger.error(
            "the worker of %r exited (exit status %s); restarting in %.0f s",
            member.queue,
            status,
            member.restart_in_s,
        )
        self._sleep(member.restart_in_s)
        return Member.start(member.queue, min(2 * member.restart_in_s, MAX_RESTART_S))

    def _sleep(self, duration_s: float) -> None:
        until = time.monotonic() + duration_s
        while time.monotonic() < until and not self._stopping:
            time.sleep(POLL_S)

    def _enqueue_due_retries(self) -> None:
        if time.monotonic() - self._retries_at < RETRIES_EVERY_S:
            return
        self._retries_at = time.monotonic()
        try:
            if self._retries.should_reacquire_locks:
                self._retries.acquire_locks()
            self._retries.heartbeat()
            self._retries.enqueue_scheduled_jobs()
        except RedisError as error:
            logger.warning("retries are delayed: Redis does not respond: %s", error)

    def _report_health(self, members: Sequence[Member]) -> None:
        """Refreshes the file of `python -m worker.queueing.healthcheck` while every queue is served and
        Redis responds.
        """
        if time.monotonic() < self._next_health_at:
            return
        self._stopping = self._stopping or self._is_outdated()
        pids = {member.process.pid for member in members}
        try:
            healthy = queues_served(self._redis_url, self.queues, datetime.now(UTC) - RECENT, pids)
        except RedisError as error:
            logger.warning("the health check fails: Redis does not respond: %s", error)
            healthy = False
        try:
            if healthy:
                self._heartbeat.beat()
        except OSError as error:
            logger.warning("the health check fails: its file cannot be written: %s", error)
        self._next_health_at = time.monotonic() + (HEALTH_EVERY_S if healthy else HEALTH_AGAIN_S)

    def _give_up_retries(self) -> None:
        try:
            self._retries.stop()
        except RedisError as error:
            logger.warning("Redis does not respond: %s", error)


def end_all(processes: Sequence[subprocess.Popen[bytes]]) -> None:
    """Sends SIGTERM to processes, repeats it, and kills the remaining ones after END_S."""
    started = time.monotonic()
    for process in processes:
        process.terminate()
    asked_again = False
    while any(process.poll() is None for process in processes):
        waited = time.monotonic() - started
        if waited > END_S:
            break
        if waited > ASK_AGAIN_S and not asked_again:
            asked_again = True
            for process in processes:
                process.terminate()
        time.sleep(POLL_S / 4)
    for process in processes:
        if process.poll() is None:
            logger.warning("process %d did not exit and is killed", process.pid)
            process.kill()
            process.wait()


def work_off(queues: Sequence[str]) -> None:
    """Runs the workers of queues one after the other, each until its queue is empty."""
    for queue in queues:
        subprocess.run([sys.executable, "-P", "-m", "worker.queueing.pool", queue, "--burst"], check=True)


def run_worker(queue: str, settings: Settings, burst: bool = False) -> None:
    """Runs the worker of one queue in this process.

    Args:
        queue: Its name.
        settings: Where Redis is, and how to log.
        burst: End when the queue is empty instead of waiting for jobs.
    """
    follow_parent(ask_self_to_end)
    if queue in (EVENTS, RECONCILE):
        # Jobs are forks of this process, so modules imported here need not be imported by each job.
        for module in settings.job_modules:
            importlib.import_module(module)
    connection = connect(settings.redis_url)
    member = make_worker(queue, connection, settings.job_modules, settings.training_cores)
    member.work(burst=burst, logging_level=None)


if __name__ == "__main__":
    configure_logging(Settings())
    run_worker(sys.argv[1], Settings(), burst="--burst" in sys.argv[2:])
