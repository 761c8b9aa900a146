"""Authorization of webhooks, and the jobs enqueued for their events."""

from __future__ import annotations

import json
import timeit
from collections.abc import Callable
from datetime import datetime
from functools import partial
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from werkzeug.test import TestResponse

from backend.events import read_event
from backend.settings import Settings
from backend.shared_redis import FAILURE_TTL_S
from backend.web.app import create_app
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.backend.colours import ColourPredictor
from tests.backend.web_server import Web

Json = dict[str, Any]
SECRET = "s3cret"
CREATED: Json = {
    "action": "ANNOTATION_CREATED",
    "annotation": {"id": 3, "task": 4, "project": 5, "result": []},
    "project": {"id": 5, "title": "t4 edit", "label_config": "<View/>"},
    "task": {"id": 4, "data": {"image": "/data/upload/5/3bcd762a-shapes.png"}},
}
START_TRAINING: Json = {"action": "START_TRAINING", "project": {"id": 5}}


def client_with(settings: Settings, redis: Redis, **changes: Any) -> FlaskClient:
    """A client of an app whose settings have these changes."""
    changed = Settings.model_validate(settings.model_dump() | changes)
    return create_app(changed, redis, ColourPredictor()).test_client()


def jobs(redis: Redis) -> list[tuple[str, Json]]:
    """Name and arguments of what was queued."""
    queues = [Queue(name, connection=redis, serializer=JSONSerializer) for name in ("events", "reconcile")]
    return [(job.func_name, job.kwargs) for queue in queues for job in queue.get_jobs()]


COLLECT = ("worker.jobs.collect_annotation", {"project_id": 5, "annotation_id": 3, "task_id": 4})
RECONCILE = ("worker.jobs.reconcile_project", {"project_id": 5})


@pytest.mark.parametrize(
    ("event", "expected"),
    [
        (CREATED, [COLLECT]),
        (CREATED | {"action": "ANNOTATION_UPDATED"}, [COLLECT]),
        (
            {"action": "ANNOTATIONS_CREATED", "annotations": [{"id": 3, "task": 4}], "project": {"id": 5}},
            [COLLECT],
        ),
        (
            {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 19}, {"id": 20}], "project": {"id": 5}},
            [("worker.jobs.forget_annotations", {"project_id": 5, "annotation_ids": [19, 20]})],
        ),
        (
            {"action": "ANNOTATION_DELETED", "annotation": {"id": 19}, "project": {"id": 5}},
            [("worker.jobs.forget_annotations", {"project_id": 5, "annotation_ids": [19]})],
        ),
        (START_TRAINING, [("worker.jobs.maybe_finetune", {"project_id": 5, "trigger": "start-training"})]),
        (
            {"action": "TASKS_DELETED", "tasks": [{"id": 1}], "project": {"id": 5}},
            [RECONCILE],
        ),
        # Such as the hosting server's own tests send: something was saved, but not said what.
        ({"action": "ANNOTATION_CREATED", "project": {"id": 5}}, [RECONCILE]),
        ({"action": "ANNOTATIONS_CREATED", "annotations": [], "project": {"id": 5}}, [RECONCILE]),
        ({"action": "ANNOTATIONS_DELETED", "annotation": None, "project": {"id": 5}}, [RECONCILE]),
        ({"action": "TASKS_CREATED", "tasks": [{"id": 1}], "project": {"id": 5}}, []),
        ({"action": "PROJECT_UPDATED", "project": {"id": 5}}, []),
        ({"action": "SOMETHING_NEW"}, []),
    ],
    ids=lambda value: value["action"] if isinstance(value, dict) else "",
)
def test_events_become_jobs(
    app: Flask, redis_server: Redis, event: Json, expected: list[tuple[str, Json]]
) -> None:
    response = app.test_client().post("/webhook", json=event)

    assert response.status_code == (201 if expected else 200)
    assert jobs(redis_server) == expected


def test_that_a_projects_webhook_works_is_kept(settings: Settings, redis_server: Redis) -> None:
    client = client_with(settings, redis_server, webhook_secret=SECRET)
    shown = {"X-ML-Secret": SECRET}
    event = {"action": "PROJECT_UPDATED", "project": {"id": 5}}

    def last_event(project: int) -> str:
        answer = client.get(f"/webhook?project={project}", headers=shown)
        found: str = answer.json["last_event"]
        return found

    assert client.post("/webhook", json=event).status_code == 401
    assert client.post("/webhook", json=START_TRAINING).status_code == 201, "which comes another way"
    assert last_event(5) == ""

    client.post("/webhook", json=event, headers=shown)

    first = last_event(5)
    assert datetime.fromisoformat(first).tzinfo is not None
    assert last_event(6) == ""
    client.post("/webhook", json=event, headers=shown)
    assert last_event(5) > first
    assert client.get("/webhook?project=5").status_code == 401


def test_a_job_survives_its_worker_and_is_tried_again(app: Flask, redis_server: Redis) -> None:
    app.test_client().post("/webhook", json=CREATED)

    (job,) = Queue("events", connection=redis_server, serializer=JSONSerializer).get_jobs()

    assert job.timeout
    assert (job.retries_left or 0) >= 3
    assert job.failure_ttl == FAILURE_TTL_S, "as the page of jobs says"


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"[]",
        b"{}",
        b'{"action": 7}',
        b'{"action": "ANNOTATION_CREATED"}',
        b'{"action": "ANNOTATION_CREATED", "annotation": {"id": 3}}',
        b'{"action": "ANNOTATION_CREATED", "annotation": {"id": "x"}, "project": {"id": 5}}',
        b'{"action": "ANNOTATIONS_DELETED", "annotations": [7], "project": {"id": 5}}',
        b'{"action": "START_TRAINING"}',
    ],
)
def test_events_that_lack_something_are_refused(app: Flask, redis_server: Redis, body: bytes) -> None:
    response = app.test_client().post("/webhook", data=body, content_type="application/json")

    assert response.status_code == 400
    assert response.json
    assert jobs(redis_server) == []


def test_an_event_is_only_queued(settings: Settings, redis_server: Redis, label_studio: Web) -> None:
    """Label Studio waits a second at most, as does the annotator: no mask is read, no request sent."""
    mask = np.random.default_rng(0).random((700, 900)) > 0.5
    region = {"id": "a", "from_name": "mask", "value": {"rle": mask_to_brush_rle(mask)}}
    event = {**CREATED, "annotation": {**CREATED["annotation"], "result": [region, region]}}
    app = create_app(settings, redis_server, ColourPredictor())

    response = app.test_client().post("/webhook", json=event)

    assert response.status_code == 201
    assert jobs(redis_server) == [COLLECT], "ids alone"
    assert label_studio.asked == []
    assert app.extensions["sspsam"].engine.status().state == "loading", "the model was not needed"


def test_of_a_large_event_only_ids_are_read() -> None:
    """What makes Label Studio wait is the reading of masks, which the worker fetches anyway."""
    mask = np.random.default_rng(0).random((350, 450)) > 0.5
    region = {"id": "a", "value": {"rle": mask_to_brush_rle(mask)}}
    body = json.dumps({**CREATED, "annotation": {**CREATED["annotation"], "result": [region]}}).encode()

    assert read_event(body) == {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": 3, "task": 4},
        "project": {"id": 5, "title": "t4 edit"},
        "task": {"id": 4},
    }
    took_s: dict[Callable[[bytes], object], float] = {
        read: min(timeit.repeat(partial(read, body), number=1, repeat=9)) for read in (read_event, json.loads)
    }
    assert took_s[json.loads] > 3 * took_s[read_event]


@pytest.mark.parametrize(
    "event",
    [
        CREATED | {"annotation": {"id": "3", "task": "4"}, "project": {"id": "5"}},
        CREATED | {"annotation": {"id": 3}, "task": {"id": "4"}, "project": "5.1795330931"},
        CREATED | {"annotations": "none", "title": "\ud800"},
    ],
)
def test_events_in_other_words_become_the_same_jobs(app: Flask, redis_server: Redis, event: Json) -> None:
    assert app.test_client().post("/webhook", data=json.dumps(event)).status_code == 201
    assert jobs(redis_server) == [COLLECT]


def test_without_redis_start_training_fails_visibly(settings: Settings) -> None:
    app = create_app(
        settings.model_copy(update={"redis_url": "unix:///nonexistent.sock"}), None, ColourPredictor()
    )

    response = app.test_client().post("/webhook", json=START_TRAINING)

    assert response.status_code == 503
    assert "REDIS_URL" in str(response.json)


# Access


def post(client: FlaskClient, event: Json, **headers: str) -> TestResponse:
    return client.post(
        "/webhook", json=event, headers={name.replace("_", "-"): v for name, v in headers.items()}
    )


def test_the_secret_opens_the_webhook(settings: Settings, redis_server: Redis) -> None:
    client = client_with(settings, redis_server, webhook_secret=SECRET)

    assert post(client, CREATED, X_ML_Secret=SECRET).status_code == 201
    for wrong in ("", "s3cre", "s3cret ", "S3CRET", "schlüssel"):
        assert post(client, CREATED, X_ML_Secret=wrong).status_code == 401
    assert post(client, CREATED).status_code == 401
    assert len(jobs(redis_server)) == 1


def test_start_training_has_no_secret_to_show(settings: Settings, redis_server: Redis) -> None:
    """It comes by another way, which sends Basic auth alone; without Basic auth it has nothing."""
    client = client_with(settings, redis_server, webhook_secret=SECRET)

    assert post(client, START_TRAINING).status_code == 201


def test_basic_auth_closes_everything_but_health(settings: Settings, redis_server: Redis) -> None:
    client = client_with(
        settings, redis_server, webhook_secret=SECRET, basic_auth_user="user", basic_auth_pass="pass"
    )

    assert client.get("/health").status_code == 200
    for path in ("/", "/versions", "/metrics", "/nothing"):
        response = client.get(path)
        assert response.status_code == 401, path
        assert response.headers["WWW-Authenticate"].startswith("Basic")
        assert client.get(path, auth=("user", "pass")).status_code in (200, 404), path
    assert client.post("/setup", json={"project": "1.1"}).status_code == 401
    assert client.post("/setup", json={"project": "1.1"}, auth=("user", "pass")).status_code == 200
    for wrong in (("user", "Pass"), ("User", "pass"), ("", ""), ("user", "päss")):
        assert client.get("/versions", auth=wrong).status_code == 401


def test_with_basic_auth_the_webhook_takes_either(settings: Settings, redis_server: Redis) -> None:
    client = client_with(
        settings, redis_server, webhook_secret=SECRET, basic_auth_user="user", basic_auth_pass="pass"
    )

    assert post(client, CREATED, X_ML_Secret=SECRET).status_code == 201
    assert client.post("/webhook", json=START_TRAINING, auth=("user", "pass")).status_code == 201
    assert post(client, START_TRAINING).status_code == 401
    assert post(client, CREATED, X_ML_Secret="wrong").status_code == 401


def test_the_secret_opens_nothing_else(settings: Settings, redis_server: Redis) -> None:
    client = client_with(
        settings, redis_server, webhook_secret=SECRET, basic_auth_user="user", basic_auth_pass="pass"
    )

    assert client.get("/versions", headers={"X-ML-Secret": SECRET}).status_code == 401


def test_an_empty_secret_is_no_secret(settings: Settings, redis_server: Redis) -> None:
    client = client_with(settings, redis_server, basic_auth_user="user", basic_auth_pass="pass")

    assert post(client, CREATED, X_ML_Secret="").status_code == 401
