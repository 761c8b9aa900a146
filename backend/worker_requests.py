"""What people ask the worker for, in the console or by a command: jobs, named by strings."""

from __future__ import annotations

from collections.abc import Mapping
from secrets import token_hex
from typing import Any

from redis import Redis, RedisError
from rq.job import Job

from backend.errors import QueueUnavailableError
from backend.shared_redis import (
    EVENTS,
    OPERATIONS_KEY,
    PRELABEL,
    RECONCILE,
    RECONCILE_TIMEOUT_S,
    ServiceQueue,
)

MAYBE_FINETUNE = "worker.jobs.maybe_finetune"
START_BATCH = "worker.requested_jobs.start_batch"
EXPORT = "worker.requested_jobs.export_project"
ADOPT = "worker.requested_jobs.adopt_version"
EXPORTS = "exports"
"""Folder in MODEL_DIR, with a folder of finished exports for each project."""
EXPORT_TIMEOUT_S = 4 * 3600
EVENT_TIMEOUT_S = 300
RESULT_TTL_S = 7 * 24 * 3600
OPERATIONS_KEPT = 12
"""Per project: the latest."""


def request_finetune(redis: Redis, project: int, now: bool = True, start_version: str = "") -> Job:
    """Asks for a decision about a fine-tune.

    Args:
        redis: The Redis shared by all workers.
        project: Number of the project.
        now: Whether a person asks, who does not wait for corrections or quiet hours.
        start_version: Version that training is to start from, or `base`; default: the serving version.

    Raises:
        RedisError: Redis does not respond.
    """
    asked = {"start_version": start_version} if start_version else {}
    name, timeout_s = (RECONCILE, RECONCILE_TIMEOUT_S) if now else (EVENTS, EVENT_TIMEOUT_S)
    return ServiceQueue(name, redis).enqueue_call(
        MAYBE_FINETUNE,
        kwargs={"project_id": project, "trigger": "now" if now else "schedule", **asked},
        timeout=timeout_s,
        result_ttl=RESULT_TTL_S,
        failure_ttl=RESULT_TTL_S,
    )


def request_batch(redis: Redis, project: int, command: str, options: Mapping[str, Any]) -> Job:
    """Asks for `prelabel`, `rank` or `prefetch`; see `worker.requested_jobs.start_batch`."""
    kwargs = {"project_id": project, "command": command, **options}
    return _request(ServiceQueue(RECONCILE, redis), START_BATCH, command, kwargs, RECONCILE_TIMEOUT_S)


def request_export(redis: Redis, project: int, file_format: str) -> Job:
    """Asks for an export to a file that the console gives out."""
    kwargs = {"project_id": project, "file_format": file_format}
    queue = ServiceQueue(PRELABEL, redis)
    return _request(queue, EXPORT, "export", kwargs, EXPORT_TIMEOUT_S, at_front=True)


def request_adoption(redis: Redis, project: int, source: int) -> Job:
    """Asks to start a project from the version that serves another."""
    kwargs = {"project_id": project, "source_id": source}
    return _request(ServiceQueue(EVENTS, redis), ADOPT, "adopt", kwargs, EVENT_TIMEOUT_S)


def note_operation(redis: Redis, project: int, job_id: str) -> None:
    """Adds a job to those shown on the project's page."""
    key = OPERATIONS_KEY.format(project=project)
    with redis.pipeline() as pipeline:
        pipeline.lpush(key, job_id)
        pipeline.ltrim(key, 0, OPERATIONS_KEPT - 1)
        pipeline.expire(key, RESULT_TTL_S)
        pipeline.execute()


def _request(
    queue: ServiceQueue,
    function: str,
    name: str,
    kwargs: dict[str, Any],
    timeout_s: int,
    at_front: bool = False,
) -> Job:
    """Queues a job and shows it on the page of its project.

    Raises:
        QueueUnavailableError: Redis does not respond.
    """
    try:
        job = queue.enqueue_call(
            function,
            kwargs=kwargs,
            job_id=f"{name}-{kwargs['project_id']}-{token_hex(4)}",
            timeout=timeout_s,
            result_ttl=RESULT_TTL_S,
            failure_ttl=RESULT_TTL_S,
            at_front=at_front,
        )
        note_operation(queue.connection, kwargs["project_id"], job.id)
    except RedisError as error:
        raise QueueUnavailableError(
            f"Redis does not accept jobs ({type(error).__name__}): check that it is running, and REDIS_URL"
        ) from error
    return job
