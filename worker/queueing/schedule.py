"""`sspsam schedule`: enqueues small jobs at fixed intervals.

RQ's cron neither locks nor knows of other schedulers, so it only enqueues checks that are safe to run twice
and take their own lock. Jobs that no worker takes within their interval expire, so a queue without a worker
does not fill up.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from datetime import datetime
from time import monotonic
from typing import Any

from redis import Redis
from redis.exceptions import RedisError
from rq.cron import CronJob, CronScheduler
from rq.exceptions import StopRequested
from rq.job import Job

from backend.shared_redis import FAILURE_TTL_S, connect
from worker.queueing.queues import EVENT_TIMEOUT_S, events_queue

logger = logging.getLogger(__name__)

MAX_SLEEP_S = 60.0
REDIS_AGAIN_S = 2.0
"""Delay between attempts to reconnect to Redis."""
CHECK_EVERY_S = 60
RECONCILE_EVERY_S = 15 * 60
PREFETCH_EVERY_S = 60

SCHEDULE: Mapping[str, int] = {
    "worker.jobs.check_projects": CHECK_EVERY_S,
    "worker.jobs.reconcile_projects": RECONCILE_EVERY_S,
    "worker.jobs.prefetch_projects": PREFETCH_EVERY_S,
}
"""Job name -> seconds between runs. Each job also runs once at the start."""


class EventsCronJob(CronJob):
    """A cron job whose arguments are serialized as JSON; RQ's own pickles them.

    It is due by the monotonic clock, since RQ's would wait for an hour after the clock is set back by one.
    """

    due_s = 0.0

    def __init__(self, clock: Callable[[], float], **options: Any) -> None:
        super().__init__(**options)
        self._clock = clock

    def enqueue(self, connection: Redis) -> Job:
        return events_queue(connection).enqueue(self.func_name, **self.job_options)

    def should_run(self) -> bool:
        return self._clock() >= self.due_s

    def set_enqueue_time(self, time: datetime) -> None:
        super().set_enqueue_time(time)
        self.due_s = self._clock() + float(self.interval or 0)


class Schedule(CronScheduler):
    """RQ's cron loop over SCHEDULE. `start` blocks until SIGTERM or SIGINT.

    Args:
        connection: Connection to Redis; first used by `start`.
        intervals: Job name -> seconds.
        clock: Seconds that are never set back.
    """

    def __init__(
        self,
        connection: Redis,
        intervals: Mapping[str, int] = SCHEDULE,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        super().__init__(connection)
        self._clock = clock
        options: dict[str, Any] = {
            "job_timeout": EVENT_TIMEOUT_S,
            "result_ttl": 0,
            "failure_ttl": FAILURE_TTL_S,
        }
        for name, interval_s in intervals.items():
            self._cron_jobs.append(
                EventsCronJob(
                    clock,
                    queue_name="events",
                    func_name=name,
                    interval=interval_s,
                    ttl=interval_s,
                    **options,
                )
            )

    def calculate_sleep_interval(self) -> float:
        due_s = min(job.due_s for job in self._cron_jobs if isinstance(job, EventsCronJob))
        return max(0.0, min(due_s - self._clock(), MAX_SLEEP_S))


def run_schedule(redis_url: str, intervals: Mapping[str, int] = SCHEDULE) -> None:
    """Runs the scheduler until SIGTERM or SIGINT; restarts it when Redis is available again."""
    try:
        while True:
            try:
                cron: CronScheduler = Schedule(connect(redis_url), intervals)
                cron.start()
                return
            except RedisError as error:
                logger.warning("Redis does not respond (%s); retrying in %.0f s", error, REDIS_AGAIN_S)
                time.sleep(REDIS_AGAIN_S)
    except StopRequested:  # raised by RQ's signal handler, at any point
        return
