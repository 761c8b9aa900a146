"""Moves jobs whose retry is due back into their queue."""

from __future__ import annotations

import logging
import time
from collections.abc import Sequence

from redis import Redis
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from backend.shared_redis import ServiceJob, ServiceQueue
from worker.queueing.workers import HEARTBEAT_S, SILENCE_S

logger = logging.getLogger(__name__)

FURTHEST_RETRY_S = 600
"""Longest delay of a retry; see JOB_RETRY and `worker.jobs.LABEL_STUDIO_RETRY`."""
TOLERANCE_S = 30
"""Tolerated difference between the clocks of machines."""


class Retries(RQScheduler):
    """RQ's scheduler, which reads jobs as ServiceJob and survives a clock that is set back.

    RQ stores times of day. After the clock is set back by an hour, a retry would wait an hour longer, and so
    would the job of a killed worker. Times that lie further ahead than any delay are therefore brought back.
    """

    def __init__(self, queues: Sequence[str], connection: Redis) -> None:
        super().__init__(list(queues), connection, serializer=JSONSerializer)

    def enqueue_scheduled_jobs(self) -> None:
        """Enqueues the jobs that are due, of the queues whose lock this process holds."""
        for name in self._acquired_locks:
            queue = ServiceQueue(name, self.connection)
            self._bring_back(queue.scheduled_job_registry, FURTHEST_RETRY_S)
            self._bring_back(queue.started_job_registry, HEARTBEAT_S + SILENCE_S)
            self._enqueue_due(queue)

    def _enqueue_due(self, queue: ServiceQueue) -> None:
        registry = queue.scheduled_job_registry
        due = registry.get_jobs_to_schedule()
        for job_id, job in zip(due, ServiceJob.fetch_many(due, self.connection), strict=True):
            with self.connection.pipeline() as pipeline:
                if job is not None:
                    queue._enqueue_job(job, pipeline=pipeline, at_front=bool(job.should_enqueue_at_front()))
                pipeline.zrem(registry.key, job_id)
                pipeline.execute()

    def _bring_back(self, registry: ScheduledJobRegistry | StartedJobRegistry, furthest_s: float) -> None:
        latest = time.time() + furthest_s
        ahead = self.connection.zrangebyscore(registry.key, latest + TOLERANCE_S, "+inf")
        if ahead:
            logger.warning("the clock was set back: %d jobs of %s are due again", len(ahead), registry.name)
            self.connection.zadd(registry.key, {member: latest for member in ahead}, xx=True)
