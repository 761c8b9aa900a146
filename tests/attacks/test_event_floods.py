"""Floods of webhook events: bounded work for the workers, and nothing lost."""

from __future__ import annotations

import json
from typing import Any

import pytest
from redis import Redis
from rq.job import JobStatus

from backend.errors import RequestError
from backend.events import MAX_ANNOTATIONS, MAX_JOBS_PER_MINUTE, EventQueue, read_event
from backend.shared_redis import EVENTS, JOB_RETRY, RECONCILE, ServiceQueue

PROJECT = 5
Json = dict[str, Any]


def saved(annotation: int, project: int = PROJECT) -> Json:
    return {
        "action": "ANNOTATION_UPDATED",
        "annotation": {"id": annotation, "task": 4},
        "project": {"id": project},
    }


def queued(redis: Redis, queue: str = EVENTS) -> list[str]:
    return ServiceQueue(queue, redis).get_job_ids()


def test_one_large_event_becomes_one_reconciliation(redis_server: Redis) -> None:
    annotations = [{"id": number, "task": 4} for number in range(5000)]
    event = {"action": "ANNOTATIONS_CREATED", "annotations": annotations, "project": {"id": PROJECT}}
    EventQueue(redis_server).handle(read_event(json.dumps(event).encode()))
    deleted = {**event, "action": "ANNOTATIONS_DELETED"}
    EventQueue(redis_server).handle(read_event(json.dumps(deleted).encode()))
    assert queued(redis_server) == []
    assert queued(redis_server, RECONCILE) == [f"reconcile-{PROJECT}"]


def test_an_event_of_usual_size_keeps_its_jobs(redis_server: Redis) -> None:
    annotations = [{"id": number, "task": 4} for number in range(MAX_ANNOTATIONS)]
    event = {"action": "ANNOTATIONS_CREATED", "annotations": annotations, "project": {"id": PROJECT}}
    assert len(EventQueue(redis_server).handle(event)) == len(queued(redis_server)) == MAX_ANNOTATIONS


def test_replays_are_queued_once(redis_server: Redis) -> None:
    events = EventQueue(redis_server)
    answers = {tuple(events.handle(saved(7))) for _ in range(100)}
    assert queued(redis_server) == [f"collect-{PROJECT}-7"]
    assert answers == {(f"collect-{PROJECT}-7",)}


def test_300_start_trainings_are_one_reconciliation(redis_server: Redis) -> None:
    events = EventQueue(redis_server)
    for _ in range(300):
        events.handle({"action": "START_TRAINING", "project": {"id": PROJECT}})
    assert queued(redis_server, RECONCILE) == [f"start-training-{PROJECT}"]
    assert queued(redis_server) == []


def test_a_minute_of_a_project_is_bounded_and_others_are_not_affected(redis_server: Redis) -> None:
    events = EventQueue(redis_server, clock=lambda: 60.0)
    for number in range(MAX_JOBS_PER_MINUTE + 50):
        events.handle(saved(number))
    events.handle(saved(1, project=6))
    assert len(queued(redis_server)) == MAX_JOBS_PER_MINUTE + 1
    assert queued(redis_server, RECONCILE) == [f"reconcile-{PROJECT}"], "reads what has no job"
    assert f"collect-{6}-1" in queued(redis_server)


@pytest.mark.parametrize(
    ("status", "expected"),
    [
        (JobStatus.QUEUED, []),
        (JobStatus.SCHEDULED, []),
        (JobStatus.STARTED, [f"collect-{PROJECT}-7-again"]),
        (JobStatus.FAILED, [f"collect-{PROJECT}-7"]),
        (JobStatus.FINISHED, [f"collect-{PROJECT}-7"]),
    ],
)
def test_a_save_after_its_job_began_is_collected_too(
    redis_server: Redis, status: JobStatus, expected: list[str]
) -> None:
    """A running job may have read the annotation before this save."""
    events, queue = EventQueue(redis_server), ServiceQueue(EVENTS, redis_server)
    job = queue.enqueue_call("worker.jobs.collect_annotation", job_id=f"collect-{PROJECT}-7", retry=JOB_RETRY)
    queue.remove(job.id)
    job.set_status(status)
    for _ in range(3):
        events.handle(saved(7))
    assert queued(redis_server) == expected


@pytest.mark.parametrize("number", ["1" * 5000, 2**63, -1, "１", "1e3", None, "", [], 1.5])
def test_numbers_that_are_none_are_refused(redis_server: Redis, number: object) -> None:
    event = {"action": "START_TRAINING", "project": {"id": number}}
    with pytest.raises(RequestError):
        EventQueue(redis_server).handle(event)
    with pytest.raises(RequestError):
        EventQueue(redis_server).handle({**saved(1), "annotation": {"id": number}})


def test_a_starting_backend_asks_for_a_reconciliation_once(redis_server: Redis) -> None:
    for _ in range(3):
        EventQueue(redis_server).reconcile()
    assert queued(redis_server) == ["reconcile-projects"]


def test_a_job_that_cannot_be_read_does_not_swallow_events(redis_server: Redis) -> None:
    events, queue = EventQueue(redis_server), ServiceQueue(EVENTS, redis_server)
    [number] = events.handle(saved(7))
    queue.remove(number)
    redis_server.hset(f"rq:job:{number}", "timeout", "unlimited")
    events.handle(saved(7))
    assert queued(redis_server) == [number]
    assert queue.fetch_job(number) is not None
