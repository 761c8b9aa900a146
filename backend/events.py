"""Webhook events to jobs. Events are only queued here, since an annotator's save waits for the response.

Events are only hints: the worker reads the annotation again from Label Studio. Therefore only IDs are read
from a body, which may contain megabytes of masks.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any, TypedDict

import msgspec
from redis import Redis, RedisError

from backend.errors import QueueUnavailableError, RequestError
from backend.queries import project_number
from backend.shared_redis import EVENTS, JOB_RETRY, ServiceQueue

COLLECT = "worker.jobs.collect_annotation"
FORGET = "worker.jobs.forget_annotations"
MAYBE_FINETUNE = "worker.jobs.maybe_finetune"
JOB_TIMEOUT_S = 300
SAVED = frozenset({"ANNOTATION_CREATED", "ANNOTATION_UPDATED"})
SAVED_MANY = "ANNOTATIONS_CREATED"
DELETED = frozenset({"ANNOTATIONS_DELETED", "ANNOTATION_DELETED"})
START_TRAINING = "START_TRAINING"

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
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def handle(self, payload: object) -> list[str]:
        """Queues the jobs of an event.

        Args:
            payload: The webhook's body.

        Returns:
            IDs of the jobs; none for events that need no work.

        Raises:
            RequestError: the body lacks what its action needs.
            QueueUnavailableError: Redis does not respond.
        """
        if not isinstance(payload, Mapping) or not isinstance(payload.get("action"), str):
            raise RequestError("the body of /webhook needs an `action`")
        return [self._enqueue(name, kwargs) for name, kwargs in _jobs(payload["action"], payload)]

    def _enqueue(self, name: str, kwargs: dict[str, Any]) -> str:
        try:
            queue = ServiceQueue(EVENTS, self._redis)
            job = queue.enqueue_call(name, kwargs=kwargs, timeout=JOB_TIMEOUT_S, retry=JOB_RETRY)
        except RedisError as error:
            raise QueueUnavailableError(
                f"Redis does not accept jobs ({type(error).__name__}): check that it is running, and "
                "REDIS_URL"
            ) from error
        logger.info("queued %s %s", name, kwargs)
        return str(job.id)


def _jobs(action: str, payload: Mapping[str, Any]) -> list[tuple[str, dict[str, Any]]]:
    """Jobs of an event: names and arguments."""
    if action in SAVED:
        return [_collect(payload, _object(payload, "annotation"))]
    if action == SAVED_MANY:
        return [_collect(payload, annotation) for annotation in _objects(payload)]
    if action in DELETED:
        gone = [_number(annotation.get("id"), "annotations[].id") for annotation in _objects(payload)]
        return [(FORGET, {"project_id": _project(payload), "annotation_ids": gone})]
    if action == START_TRAINING:
        return [(MAYBE_FINETUNE, {"project_id": _project(payload), "trigger": "start-training"})]
    return []


def _collect(payload: Mapping[str, Any], annotation: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    task = annotation.get("task")
    if task is None and isinstance(payload.get("task"), Mapping):
        task = payload["task"].get("id")
    return COLLECT, {
        "project_id": _project(payload),
        "annotation_id": _number(annotation.get("id"), "annotation.id"),
        "task_id": None if task is None else _number(task, "annotation.task"),
    }


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
    try:
        return int(str(value))
    except ValueError as error:
        raise RequestError(f"{place} must be a number, not {value!r:.40}") from error
