"""The console's pages of jobs and operations: odd values in Redis spoil one row, not the page."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import pytest
from flask import Flask
from redis import Redis
from rq.job import Job, JobStatus
from rq.results import Result

from backend.settings import Settings
from backend.shared_redis import (
    OPERATIONS_KEY,
    PRELABEL_PROGRESS_KEY,
    PROGRESS_KEY,
    QUEUES,
    TRAINING,
    ServiceQueue,
)
from backend.web.app import create_app
from backend.worker_requests import request_batch, request_export
from tests.backend.colours import ColourPredictor
from tests.backend.console.browser import Person, at_project

PAGES = ("/projects/7", "/projects/7/operations", "/jobs")
ODD = ("", "x", "\x00", "-1", "1e999", "NaN", "null", "[]", "{}", '"x"', "[" * 5000, "9" * 5000)
"""Values of fields of a job."""
ODD_JSON: tuple[Any, ...] = (None, "x", -1, 10**30, 1e308, True, [], {}, ["x"], {"x": 1}, [[]], "\x1b[2J")
"""Values within a job's result, its progress and its reports."""


@pytest.fixture
def app(settings: Settings, redis_server: Redis) -> Flask:
    return create_app(settings, redis_server, ColourPredictor())


@pytest.fixture
def person(app: Flask) -> Person:
    return at_project(app)


def unreadable(person: Person) -> list[str]:
    """Pages that do not answer, or no longer show the other operation."""
    answers = {path: person.open(path) for path in PAGES}
    return [
        path
        for path, answer in answers.items()
        if answer.status_code != 200 or "Export as png" not in answer.text
    ]


def finished(redis: Redis, command: str, result: object) -> str:
    """A batch with this result."""
    request_batch(redis, 7, command, {})
    job_id = redis.lindex(OPERATIONS_KEY.format(project=7), 0)
    assert isinstance(job_id, bytes)
    queue = ServiceQueue("reconcile", redis)
    job = queue.fetch_job(job_id.decode())
    assert job is not None
    queue.remove(job)
    end(job, result)
    return job.id


def end(job: Job, result: object) -> None:
    job.set_status(JobStatus.FINISHED)
    Result.create(job, Result.Type.SUCCESSFUL, ttl=-1, return_value=result)


@pytest.mark.slow
def test_odd_fields_of_a_job_spoil_only_its_row(person: Person, redis_server: Redis) -> None:
    request_batch(redis_server, 7, "rank", {})
    request_export(redis_server, 7, "png")
    odd_id = redis_server.lindex(OPERATIONS_KEY.format(project=7), -1).decode()
    key = f"rq:job:{odd_id}"
    fields = redis_server.hgetall(key)
    assert unreadable(person) == []
    for field in (*fields, b"meta", b"worker_name", b"started_at", b"ended_at", b"exc_info"):
        for value in ODD:
            redis_server.hset(key, field, value)
            assert unreadable(person) == [], (field, value[:50])
        redis_server.delete(key)
        redis_server.hset(key, mapping=fields)


@pytest.mark.parametrize("name", ["tasks", "chunks", "jobs", "run", "problem", "reason"])
def test_odd_results_of_a_batch_spoil_only_its_row(person: Person, redis_server: Redis, name: str) -> None:
    request_export(redis_server, 7, "png")
    for value in ODD_JSON:
        result = {"tasks": 3, "chunks": ["0"], "jobs": [], "run": "r", name: value}
        job_id = finished(redis_server, "rank", result)
        assert unreadable(person) == [], value
        assert person.send("/projects/7/cancel", job=job_id).status_code == 303, value
        redis_server.lrem(OPERATIONS_KEY.format(project=7), 0, job_id)


@pytest.mark.parametrize("name", ["tasks", "posted", "skipped", "problems"])
def test_odd_reports_of_a_batch_spoil_only_its_row(person: Person, redis_server: Redis, name: str) -> None:
    request_export(redis_server, 7, "png")
    finished(redis_server, "rank", {"tasks": 3, "chunks": ["0"], "jobs": [], "run": "r"})
    for value in ODD_JSON:
        report = {"tasks": 1, "posted": 1, "skipped": 0, "problems": {}, name: value}
        redis_server.hset(PRELABEL_PROGRESS_KEY.format(run="r"), "0", json.dumps(report))
        assert unreadable(person) == [], value


@pytest.mark.parametrize("result", [*ODD_JSON, {"masks": [], "problems": 5, "file": ["x"], "images": "\x00"}])
def test_odd_results_of_an_export_spoil_only_its_row(
    person: Person, redis_server: Redis, result: object
) -> None:
    request_export(redis_server, 7, "coco")
    odd_id = redis_server.lindex(OPERATIONS_KEY.format(project=7), 0).decode()
    redis_server.hset(f"rq:job:{odd_id}", "status", "finished")
    redis_server.xadd(
        f"rq:results:{odd_id}", {"type": 1, "return_value": json.dumps(result), "created_at": 1}
    )
    request_export(redis_server, 7, "png")
    assert unreadable(person) == []


def test_a_result_that_cannot_be_read_spoils_only_its_row(person: Person, redis_server: Redis) -> None:
    request_export(redis_server, 7, "png")
    for value in ("x", "", "AAAA", "W10=" * 1000):
        job_id = finished(redis_server, "rank", {})
        redis_server.xadd(f"rq:results:{job_id}", {"type": 1, "return_value": value, "created_at": 1})
        assert unreadable(person) == [], value
        assert person.send("/projects/7/cancel", job=job_id).status_code == 303, value


@pytest.mark.parametrize("odd", ["a:b", "", "a b", "\x00", "x" * 5000])
def test_odd_ids_of_jobs_spoil_no_page(person: Person, redis_server: Redis, odd: str) -> None:
    request_export(redis_server, 7, "png")
    redis_server.lpush(OPERATIONS_KEY.format(project=7), odd)
    for name in QUEUES:
        queue = ServiceQueue(name, redis_server)
        redis_server.lpush(queue.key, odd)
        for registry in (queue.started_job_registry, queue.failed_job_registry):
            redis_server.zadd(registry.key, {odd: 2**40})
    assert unreadable(person) == []


@pytest.mark.parametrize("name", ["step", "steps", "run"])
def test_an_odd_progress_spoils_no_page(person: Person, redis_server: Redis, name: str) -> None:
    request_export(redis_server, 7, "png")
    queue = ServiceQueue(TRAINING, redis_server)
    job = queue.enqueue("worker.jobs.finetune", kwargs={"project_id": 7, "run_id": "run"}, job_id="run")
    redis_server.zadd(queue.started_job_registry.key, {f"{job.id}:x": 2**40})
    for value in ODD_JSON:
        progress: Mapping[str, Any] = {"run": "run", "step": 1, "steps": 5, name: value}
        for line in ("project-7", "all"):
            redis_server.set(PROGRESS_KEY.format(line=line), json.dumps(progress))
        assert unreadable(person) == [], value


def test_an_odd_log_of_a_fine_tune_spoils_no_page(
    person: Person, redis_server: Redis, settings: Settings
) -> None:
    request_export(redis_server, 7, "png")
    queue = ServiceQueue(TRAINING, redis_server)
    job = queue.enqueue("worker.jobs.finetune", kwargs={"project_id": 7, "run_id": "run"}, job_id="run")
    redis_server.zadd(queue.started_job_registry.key, {f"{job.id}:x": 2**40})
    log = settings.model_dir / "runs" / "run" / "training" / "log.jsonl"
    log.parent.mkdir(parents=True)
    for value in ("1e999", "9" * 400, "-1", "true", "[]", '"x"', "9" * 5000, "[" * 100_000):
        lines = [
            f'{{"step": {a}, "total": {b}, "left_s": {b}}}' for a, b in ((1, 0.5), (value, value), (2, value))
        ]
        log.write_text("\n".join(lines))
        assert unreadable(person) == [], value[:20]


@pytest.mark.parametrize("number", ["9" * 4301, "9" * 30, "-1", "0", "7" * 20])
def test_projects_with_odd_numbers_are_not_found(person: Person, number: str) -> None:
    for path in (f"/projects/{number}", f"/projects/{number}/operations", f"/projects/{number}/exports/x"):
        assert person.open(path).status_code in (200, 404), path
    for path in ("finetune", "promote", "roll-back", "export", "cancel", "rank"):
        assert person.send(f"/projects/{number}/{path}", format="x", limit="x").status_code in (303, 404)
