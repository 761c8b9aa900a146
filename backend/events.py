"""Webhook events to jobs. Events are only queued here, since an annotator's save waits for the response.

Events are only hints: the worker reads the annotation again from Label Studio. Therefore only IDs are read
from a body, which may contain megabytes of masks.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypedDict

import msgspec
from redis import Redis, RedisError
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import JobStatus

from backend.errors import QueueUnavailableError, RequestError
from backend.queries import project_number
from backend.shared_redis import (
    EVENT_COUNT_KEY,
    EVENTS,
    FAILURE_TTL_S,
    JOB_RETRY,
    RECONCILE,
    RECONCILE_TIMEOUT_S,
    ServiceJob,
    ServiceQueue,
    fetch_job,
)

COLLECT = "worker.jobs.collect_annotation"
FORGET = "worker.jobs.forget_annotations"
MAYBE_FINETUNE = "worker.jobs.maybe_finetune"
RECONCILE_ALL = "worker.jobs.reconcile_projects"
RECONCILE_ONE = "worker.jobs.reconcile_project"
JOB_TIMEOUT_S = 300
MAX_ANNOTATIONS = 100
"""Of one event; more become a reconciliation."""
MAX_JOBS_PER_MINUTE = 600
"""Of one project; more become a reconciliation."""
MAX_WAITING = 10_000
"""Jobs of a queue. Callers can name any number of projects: further events become one reconciliation of all,
and further requests for a fine-tune are refused.
"""
MAX_DIGITS = 19
ENDED = (JobStatus.FAILED, JobStatus.FINISHED, JobStatus.STOPPED, JobStatus.CANCELED)
SAVED = frozenset({"ANNOTATION_CREATED", "ANNOTATION_UPDATED"})
SAVED_MANY = "ANNOTATIONS_CREATED"
DELETED = frozenset({"ANNOTATIONS_DELETED", "ANNOTATION_DELETED"})
TASKS_DELETED = "TASKS_DELETED"
START_TRAINING = "START_TRAINING"
_OF_ANNOTATIONS = SAVED | DELETED | {SAVED_MANY}

logger = logging.getLogger(__name__)


class _Annotation(TypedDict, total=False):
    id: int
    task: int | None


class _Task(TypedDict, total=False):
    id: int


class _Project(TypedDict, total=False):
    id: int
    title: str


class _Event(TypedDict, total=False):
    action: str
    annotation: _Annotation
    annotations: list[_Annotation]
    project: _Project
    task: _Task


_DECODER = msgspec.json.Decoder(_Event)


def read_event(body: bytes) -> Mapping[str, object] | None:
    """Reads the fields that jobs need from a webhook's body, and skips the rest.

    Returns:
        None for a body that is not an event of Label Studio.
    """
    try:
        event: Mapping[str, object] = _DECODER.decode(body)
    except (msgspec.MsgspecError, RecursionError):
        return None
    return event


class EventQueue:
    """Queues jobs for the worker, by name. The constructor opens nothing.

    Args:
        redis: Connected lazily.
        clock: The time in seconds, whose minutes bound the jobs of a project.
    """

    def __init__(self, redis: Redis, clock: Callable[[], float] = time.time) -> None:
        self._redis = redis
        self._clock = clock

    def handle(self, payload: object) -> list[str]:
        """Queues the jobs of an event.

        A job that is queued already is not queued again. Events that name no annotation, those with many, and
        those beyond MAX_JOBS_PER_MINUTE of a project become one reconciliation, which reads all that has
        changed.

        Args:
            payload: The webhook's body.

        Returns:
            IDs of the jobs; none for events that need no work.

        Raises:
            RequestError: the body lacks what its action needs.
            QueueUnavailableError: Redis does not respond, or too many jobs wait.
        """
        if not isinstance(payload, Mapping) or not isinstance(payload.get("action"), str):
            raise RequestError("the body of /webhook needs an `action`")
        found = _jobs(payload["action"], payload)
        try:
            if any(job.function != MAYBE_FINETUNE for job in found) and self._is_too_much(found):
                found = [_reconciliation(_project(payload))]
            return [self._enqueue(job) for job in self._admitted(found)]
        except RedisError as error:
            raise QueueUnavailableError(
                f"Redis does not accept jobs ({type(error).__name__}): check that it is running, and "
                "REDIS_URL"
            ) from error

    def reconcile(self) -> None:
        """Queues a reconciliation of all projects: events may have been lost while no backend ran."""
        try:
            self._enqueue(_EVERYTHING)
        except RedisError as error:
            logger.warning("labels are not reconciled at the start: Redis does not respond (%s)", error)

    def _is_too_much(self, jobs: Sequence[_Job]) -> bool:
        """Counts the jobs of a project's current minute; whether they are too many."""
        if len(jobs) > MAX_ANNOTATIONS or any(
            len(job.kwargs.get("annotation_ids", ())) > MAX_ANNOTATIONS for job in jobs
        ):
            return True
        key = EVENT_COUNT_KEY.format(project=jobs[0].kwargs["project_id"], minute=int(self._clock() // 60))
        with self._redis.pipeline() as pipeline:
            pipeline.incrby(key, len(jobs))
            pipeline.expire(key, 120)
            count: int = pipeline.execute()[0]
        return count > MAX_JOBS_PER_MINUTE

    def _admitted(self, jobs: Sequence[_Job]) -> Sequence[_Job]:
        """The jobs, if their queue has room; else what replaces them.

        Raises:
            QueueUnavailableError: they are requests for fine-tunes, which nothing replaces.
        """
        if not jobs or ServiceQueue(jobs[0].queue, self._redis).count < MAX_WAITING:
            return jobs
        if any(job.function == MAYBE_FINETUNE for job in jobs):
            raise QueueUnavailableError(f"{MAX_WAITING} jobs wait: start the training again later")
        return [_EVERYTHING]

    def _enqueue(self, job: _Job) -> str:
        """Queues a job unless the same one waits; one that runs may have read the state before this event."""
        queue = ServiceQueue(job.queue, self._redis)
        for job_id in (job.job_id, f"{job.job_id}-again"):
            try:
                with suppress(NoSuchJobError):
                    if fetch_job(job_id, self._redis).get_status(refresh=False) in ENDED:
                        fetch_job(job_id, self._redis).delete()
                self._enqueue_as(queue, job, job_id)
            except DuplicateJobError:
                try:
                    if fetch_job(job_id, self._redis).get_status(refresh=False) == JobStatus.STARTED:
                        continue
                except NoSuchJobError:  # it has just ended, or cannot be read
                    self._redis.delete(ServiceJob.key_for(job_id))
                    self._enqueue_as(queue, job, job_id)
            return job_id
        return job.job_id

    def _enqueue_as(self, queue: ServiceQueue, job: _Job, job_id: str) -> None:
        queue.enqueue_call(
            job.function,
            kwargs=job.kwargs,
            job_id=job_id,
            unique=True,
            timeout=RECONCILE_TIMEOUT_S if job.queue == RECONCILE else JOB_TIMEOUT_S,
            result_ttl=0,
            failure_ttl=FAILURE_TTL_S,
            retry=JOB_RETRY,
        )
        logger.info("queued %s %s", job.function, job.kwargs)


@dataclass(frozen=True)
class _Job:
    """A job to be queued."""

    function: str
    kwargs: dict[str, Any]
    job_id: str
    """The same for jobs that do the same."""
    queue: str = EVENTS


_EVERYTHING = _Job(RECONCILE_ALL, {}, "reconcile-projects")


def _reconciliation(project: int) -> _Job:
    return _Job(RECONCILE_ONE, {"project_id": project}, f"reconcile-{project}", RECONCILE)


def _jobs(action: str, payload: Mapping[str, Any]) -> list[_Job]:
    """Jobs of an event, without duplicates."""
    if action in _OF_ANNOTATIONS and not any(payload.get(name) for name in ("annotation", "annotations")):
        return [_reconciliation(_project(payload))]
    if action in SAVED:
        return [_collect(payload, _object(payload, "annotation"))]
    if action == SAVED_MANY:
        jobs = [_collect(payload, annotation) for annotation in _objects(payload)]
        return list({job.job_id: job for job in jobs}.values())
    if action in DELETED:
        gone = [_number(annotation.get("id"), "annotations[].id") for annotation in _objects(payload)]
        project, ids = _project(payload), list(dict.fromkeys(gone))
        digest = hashlib.sha256(repr(sorted(ids)).encode()).hexdigest()[:16]
        return [_Job(FORGET, {"project_id": project, "annotation_ids": ids}, f"forget-{project}-{digest}")]
    if action == TASKS_DELETED:
        return [_reconciliation(_project(payload))]
    if action == START_TRAINING:
        project = _project(payload)
        kwargs = {"project_id": project, "trigger": "start-training"}
        return [_Job(MAYBE_FINETUNE, kwargs, f"start-training-{project}", RECONCILE)]
    return []


def _collect(payload: Mapping[str, Any], annotation: Mapping[str, Any]) -> _Job:
    task = annotation.get("task")
    if task is None and isinstance(payload.get("task"), Mapping):
        task = payload["task"].get("id")
    kwargs = {
        "project_id": _project(payload),
        "annotation_id": _number(annotation.get("id"), "annotation.id"),
        "task_id": None if task is None else _number(task, "annotation.task"),
    }
    return _Job(COLLECT, kwargs, f"collect-{kwargs['project_id']}-{kwargs['annotation_id']}")


def _project(payload: Mapping[str, Any]) -> int:
    project = payload.get("project")
    number = project.get("id") if isinstance(project, Mapping) else project_number(project)
    return _number(number, "project.id")


def _objects(payload: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    found = payload.get("annotations")
    if found is None and "annotation" in payload:
        found = [payload["annotation"]]
    if isinstance(found, Mapping):
        found = [found]
    if not isinstance(found, list) or not all(isinstance(entry, Mapping) for entry in found):
        raise RequestError("the event needs a list `annotations` of objects")
    return found


def _object(payload: Mapping[str, Any], name: str) -> Mapping[str, Any]:
    value = payload.get(name)
    if not isinstance(value, Mapping):
        raise RequestError(f"the event needs an object `{name}`")
    return value


def _number(value: object, place: str) -> int:
    text = str(value)
    if not (
        text.isascii() and text.isdecimal() and int(text[:MAX_DIGITS]) < 2**63 and len(text) <= MAX_DIGITS
    ):
        raise RequestError(f"{place} must be a number, not {text[:40]!r}")
    return int(text)
