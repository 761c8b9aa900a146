"""The page of jobs, and the settings."""

from __future__ import annotations

import inspect
import json
import logging
import time
from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask
from redis import Redis
from rq.job import Job
from rq.results import Result

from backend.console.administration import setting_rows
from backend.console.jobs import WORDS
from backend.settings import Settings
from backend.shared_redis import QUEUES, ServiceQueue
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.backend.console.browser import PASSWORD, SECRET, VIEWER_PASSWORD, Person, closed
from tests.facts import untold
from worker import jobs, requested_jobs

KEY = "planted-key"


@pytest.fixture
def app(settings: Settings, redis_server: Redis) -> Flask:
    """Without a loaded model: these pages need none."""
    return create_app(closed(settings, label_studio_api_key=KEY), redis_server, ColourPredictor())


@pytest.fixture
def person(app: Flask) -> Person:
    person = Person(app)
    person.sign_in()
    return person


def failed(redis: Redis, name: str, exc_string: str, **kwargs: Any) -> Job:
    """A job as a worker leaves it."""
    queue = ServiceQueue("events", redis)
    job = queue.enqueue_call(name, kwargs=kwargs)
    queue.remove(job.id)
    job.set_status("failed")
    queue.failed_job_registry.add(job, ttl=300)
    Result.create(job, Result.Type.FAILED, ttl=300, exc_string=exc_string)
    return job


def test_every_job_has_words() -> None:
    functions = {
        f"{module.__name__}.{name}"
        for module in (jobs, requested_jobs)
        for name, found in inspect.getmembers(module, inspect.isroutine)
        if found.__module__ == module.__name__ and not name.startswith("_")
    }
    assert functions == WORDS.keys()


def test_failed_jobs_say_why_and_can_be_retried_or_removed(person: Person, redis_server: Redis) -> None:
    trace = f"Traceback:\n  File\nValueError: <odd> {KEY} http://u:{PASSWORD}@h/?token=planted-token"
    first = failed(redis_server, "worker.jobs.collect_annotation", trace, project_id=7, annotation_id=12)
    second = failed(redis_server, "worker.jobs.reconcile_project", "", project_id=9)

    answer = person.open("/jobs")
    page = person.page("/jobs")
    assert (
        untold(page.text, "Collect annotation 12, project 7", "ValueError: <odd>", "may have been killed")
        == []
    )
    for secret in (KEY, PASSWORD, "planted-token"):
        assert secret not in answer.text

    person.send("/jobs/retry", job=first.id)
    assert ServiceQueue("events", redis_server).get_job_ids() == [first.id]
    person.send("/jobs/dismiss", job=second.id)
    assert not second.exists(second.id, redis_server)
    assert "Nothing has failed" in person.page("/jobs").text
    assert untold(person.page("/audit").text, "queued again", "removed") == []


def test_waiting_jobs_can_be_stopped(person: Person, redis_server: Redis) -> None:
    job = ServiceQueue("training", redis_server).enqueue_call(
        "worker.jobs.finetune", kwargs={"project_id": 7, "run_id": "r"}
    )
    assert "Fine-tune, project 7" in person.page("/jobs").text
    assert person.page("/jobs").values("div", "hx-get") == ["/jobs/list"]
    person.send("/jobs/stop", job=job.id)
    assert "Nothing waits" in person.page("/jobs").text
    assert person.page("/jobs/list").values("div", "hx-get") == []


def test_a_silent_redis_ends_no_polling(settings: Settings) -> None:
    """Redis may respond again: the page then shows the lists without a reload."""
    silent = settings.model_copy(update={"redis_url": "unix:///nonexistent.sock"})
    person = Person(create_app(silent, None, ColourPredictor()))
    for path in ("/jobs/list", "/projects/7/operations"):
        page = person.page(path)
        assert "Redis does not respond" in page.text
        assert page.values("div", "hx-get") == [path]


@pytest.mark.parametrize("path", ["retry", "dismiss", "stop"])
@pytest.mark.parametrize("job", ["", "nothing", "../x", "x" * 5000])
def test_jobs_that_do_not_exist_change_nothing(
    person: Person, redis_server: Redis, path: str, job: str
) -> None:
    assert person.send(f"/jobs/{path}", job=job).status_code == 303
    assert [ServiceQueue(name, redis_server).count for name in QUEUES] == [0] * len(QUEUES)


def test_a_job_that_cannot_be_read_hides_no_other(person: Person, redis_server: Redis) -> None:
    redis_server.hset("rq:job:bad", mapping={"data": b"\x80\x05", "created_at": "never"})
    redis_server.rpush("rq:queue:events", "bad")
    ServiceQueue("events", redis_server).enqueue_call("worker.jobs.elsewhere", kwargs={"x": 1}, job_id="good")
    assert "Job good" in person.page("/jobs").text


def test_a_running_fine_tune_shows_its_course(
    person: Person, redis_server: Redis, settings: Settings
) -> None:
    queue = ServiceQueue("training", redis_server)
    job = queue.enqueue_call(
        "worker.jobs.finetune", kwargs={"project_id": 7, "run_id": "7-run"}, job_id="7-run"
    )
    queue.remove(job.id)
    job.set_status("started")
    redis_server.zadd("rq:wip:training", {"7-run": time.time() + 300})
    assert "Reading images and labels" in person.page("/jobs").text

    redis_server.set("sspsam:progress:7", json.dumps({"run": "7-run", "step": 160, "steps": 400}))
    folder = settings.model_dir / "runs" / "7-run" / "training"
    folder.mkdir(parents=True)
    lines = [{"step": step, "total": 4 - step / 100, "left_s": 120.0} for step in (20, 40, 160)]
    (folder / "log.jsonl").write_text("\n".join(map(json.dumps, lines)) + '\n{"step": 1')
    page = person.page("/jobs")
    assert untold(page.text, "Training, step 160 of 400 (40 %), 2 minutes left", "Loss 3.8") == []
    assert len(page.values("polyline", "points")) == 1

    redis_server.set("sspsam:progress:7", json.dumps({"run": "7-run", "step": 400, "steps": 400}))
    assert "Comparing both versions" in person.page("/jobs").text


def test_settings_hide_secrets_and_say_where_they_are_from(app: Flask, person: Person) -> None:
    answer = person.open("/settings")
    for secret in (PASSWORD, VIEWER_PASSWORD, SECRET, KEY):
        assert secret not in answer.text
    settings = Settings(redis_url="redis://user:planted@h:1/0", finetune_after=8)
    rows = {row.name: row for row in setting_rows(settings)}
    assert rows.keys() == {name.upper() for name in Settings.model_fields}
    assert (rows["REDIS_URL"].value, rows["REDIS_URL"].source) == ("redis://h:1/0", "set")
    assert (rows["FINETUNE_AFTER"].value, rows["FINETUNE_AFTER"].source) == ("8", "set")
    assert (rows["PORT"].value, rows["PORT"].source) == ("9090", "default")
    assert "planted" not in str(rows)


@pytest.fixture
def _level() -> Iterator[None]:
    level = logging.getLogger().level
    yield
    logging.getLogger().setLevel(level)


@pytest.mark.usefixtures("_level")
def test_the_log_level_can_be_set(person: Person) -> None:
    person.send("/settings/log-level", level="ERROR")
    assert logging.getLogger().level == logging.ERROR
    person.send("/settings/log-level", level="LOUD")
    assert logging.getLogger().level == logging.ERROR
    assert "expected one of DEBUG" in person.page("/settings").text
