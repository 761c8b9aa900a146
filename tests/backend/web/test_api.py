"""The routes other than masks: responses and refusals."""

from __future__ import annotations

import re
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from pydantic import SecretStr
from redis import Redis

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.logs import add_request_id
from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.backend.editor import ask, prompt
from tests.backend.parts import BASE, service_of
from tests.backend.web_server import Web
from tests.waiting import wait_until

Json = dict[str, Any]


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"{", b'{"tasks": 7}', b'{"tasks": [7]}', b'{"tasks": [{"data": 7}]}']
)
def test_what_is_no_predict_request_is_refused(client: FlaskClient, body: bytes) -> None:
    response = client.post("/predict", data=body, content_type="application/json")

    assert response.status_code == 400
    assert "must be an object" in response.json["error"] or "needs a list" in response.json["error"]


def test_health_and_setup_do_not_wait_for_the_model(settings: Settings, redis_server: Redis) -> None:
    app = create_app(settings, redis_server, ColourPredictor())
    client = app.test_client()

    health = client.get("/health")
    ready = client.get("/ready")
    setup = client.post(
        "/setup",
        json={
            "project": "1.1795330868",
            "schema": RECOMMENDED_CONFIG,
            "hostname": "http://evil.example",
            "access_token": "s3cret",
            "extra_params": "",
        },
    )

    assert health.json == {
        "status": "UP",
        "model_class": "SSP-SAM",
        "model_version": BASE,
        "model_state": "loading",
    }
    assert (ready.status_code, ready.json) == (503, {"model_state": "loading"})
    assert setup.json == {"model_version": BASE}
    assert b"s3cret" not in b"".join(redis_server.hvals("sspsam:projects"))


def test_a_load_balancer_sends_phrases_once_the_model_is_loaded(
    app: Flask, settings: Settings, redis_server: Redis
) -> None:
    client = app.test_client()
    wait_until(lambda: client.get("/ready").json == {"model_state": "ready"})
    assert client.get("/ready").status_code == 200
    closed = settings.model_copy(update={"basic_auth_user": "user", "basic_auth_pass": SecretStr("secret")})
    assert create_app(closed, redis_server, ColourPredictor()).test_client().get("/ready").status_code == 503


def test_what_a_form_lacks_is_logged_once(client: FlaskClient, caplog: pytest.LogCaptureFixture) -> None:
    bare = {"project": "7.1", "schema": '<View><Image name="image" value="$image"/></View>'}
    caplog.set_level("INFO")

    for _ in range(3):  # Label Studio calls again and again
        assert client.post("/setup", json=bare).status_code == 200
    client.post("/setup", json={"project": "8.1", "schema": "<View>"})

    required = [record.getMessage() for record in caplog.records if record.levelname == "WARNING"]
    assert len(required) == 3
    assert required[0].startswith('project 7: there is no <TextArea name="prompt">')
    assert "Add <BrushLabels" in required[1]
    assert required[2].startswith("project 8: labeling config is not XML")


def test_versions(client: FlaskClient) -> None:
    assert client.get("/versions").json == {"versions": [BASE]}


def test_metrics_count_what_was_asked(client: FlaskClient) -> None:
    ask(client, prompt("the red square", "zebra", "very " * 90))

    text = client.get("/metrics").text

    for line in (
        'sspsam_phrases_total{outcome="mask"} 1.0',
        'sspsam_phrases_total{outcome="no_match"} 1.0',
        'sspsam_phrases_total{outcome="failed"} 1.0',
        'sspsam_requests_total{endpoint="predict",status="200"} 1.0',
        f'sspsam_model_info{{state="ready",version="{BASE}"}} 1.0',
        "sspsam_embedding_cache_images 1.0",
    ):
        assert line in text


@pytest.mark.parametrize("given", [None, "a b", "x" * 65, "\u00e9"])
def test_answers_carry_an_id_that_the_log_has(
    client: FlaskClient, caplog: pytest.LogCaptureFixture, given: str | None
) -> None:
    handler = caplog.handler
    handler.addFilter(add_request_id)
    headers = {} if given is None else {"X-Request-Id": given}

    response = client.post("/predict", data=b"[]", headers=headers)

    number = response.headers["X-Request-Id"]
    assert number != given
    assert re.fullmatch(r"[0-9a-f]{12}", number)
    assert response.json["request_id"] == number
    (line,) = [record for record in caplog.records if record.levelname == "WARNING"]
    assert line.request_id == number
    assert client.get("/health").headers["X-Request-Id"] != number
    handler.removeFilter(add_request_id)


def test_health_setup_and_webhook_load_nothing_and_ask_nobody(
    settings: Settings, redis_server: Redis, label_studio: Web
) -> None:
    """How quick they are, benchmarks/protocol.py measures."""
    app = create_app(settings, redis_server, ColourPredictor())
    client = app.test_client()
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1, "task": 2}, "project": {"id": 5}}

    assert client.get("/health").json["model_state"] == "loading"
    assert client.post("/setup", json={"project": "5.1", "schema": RECOMMENDED_CONFIG}).status_code == 200
    assert client.post("/webhook", json=event).status_code == 201

    assert app.extensions["sspsam"].engine.status().state == "loading"
    assert label_studio.asked == []


@pytest.mark.parametrize(
    ("accept", "is_page"),
    [
        ("text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8", True),
        ("*/*", False),
        ("application/json", False),
    ],
    ids=["a browser", "Label Studio", "a program"],
)
def test_only_a_browser_gets_the_start_page(client: FlaskClient, accept: str, is_page: bool) -> None:
    answer = client.get("/", headers={"Accept": accept})

    assert answer.content_type.startswith("text/html" if is_page else "application/json")
    if not is_page:
        assert answer.json == client.get("/health").json


def test_unknown_pages_are_json(client: FlaskClient) -> None:
    response = client.get("/nothing")

    assert response.status_code == 404
    assert response.json


def test_a_swap_is_counted_and_shown(app: Flask, client: FlaskClient) -> None:
    import torch

    from sspsam.version_store.store import VersionCard

    store = service_of(app).versions
    wait_until(lambda: service_of(app).engine.status().state == "ready", "the model is loaded")
    version = store.publish({"shift": torch.tensor(2)}, VersionCard(), {}).version_id
    store.promote(version)
    wait_until(lambda: service_of(app).engine.version == version, "the version serves")

    assert ask(client, prompt("red"))["model_version"] == version
    assert client.get("/versions").json == {"versions": [version, BASE]}
    assert client.post("/setup", json={"project": "1.1"}).json == {"model_version": version}
    assert "sspsam_version_swaps_total 1.0" in client.get("/metrics").text
