"""Every route on mutated real payloads: never a 500, always JSON."""

from __future__ import annotations

import json
from base64 import b64encode
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from hypothesis import example, given
from hypothesis import strategies as st
from redis import Redis

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.backend.colours import COLOURS, encoded, picture
from tests.backend.editor import click, predict_body, prompt, status, task
from tests.fuzzing.trees import JSON, changed

pytestmark = pytest.mark.slow

DATA_URI = "data:image/png;base64," + b64encode(encoded(picture())).decode()
MASK = {
    "id": "5d71ddec85",
    "from_name": "mask",
    "to_name": "image",
    "type": "brushlabels",
    "original_width": 60,
    "original_height": 40,
    "value": {
        "format": "rle",
        "rle": mask_to_brush_rle((picture() == COLOURS["red"]).all(axis=2)),
        "brushlabels": ["object"],
    },
}
ANNOTATION = {"id": 3, "result": [MASK], "was_cancelled": False, "task": 4, "project": 5, "completed_by": 1}
TASK = task(image=DATA_URI, annotations=[ANNOTATION], drafts=[{"result": [MASK]}], predictions=[ANNOTATION])
PREDICT: list[Any] = [
    predict_body([TASK], {"result": [prompt("the red square")]}),
    predict_body([TASK], {"result": [prompt("the red square", "nothing"), status("said")]}),
    predict_body([TASK], {"result": [MASK, click(12, 8, "k1"), click(2, 2, "k2", positive=False)]}),
    predict_body([TASK | {"data": {"image": DATA_URI, "phrases": ["the blue bar"]}}] * 2, None),
]
PROJECT = {"id": 5, "title": "t4 edit", "label_config": RECOMMENDED_CONFIG, "task_number": 1}
WEBHOOK: list[Any] = [
    {"action": "ANNOTATION_CREATED", "annotation": ANNOTATION, "project": PROJECT, "task": {"id": 4}},
    {"action": "ANNOTATION_UPDATED", "annotation": ANNOTATION, "project": PROJECT},
    {"action": "ANNOTATIONS_CREATED", "annotations": [ANNOTATION], "project": PROJECT},
    {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 19}], "project": PROJECT},
    {"action": "START_TRAINING", "project": PROJECT},
    {"action": "PROJECT_UPDATED", "project": PROJECT},
]
SETUP: list[Any] = [
    {
        "project": "5.1795330931",
        "schema": RECOMMENDED_CONFIG,
        "hostname": "http://localhost:8080",
        "access_token": "x",
        "extra_params": {"phrases": ["the red square"]},
    }
]
DEEP = [b"[" * 100_000, b'{"a":' * 100_000, b'{"tasks": ' + b"[" * 5000 + b"]" * 5000 + b"}"]


@pytest.fixture(scope="module")
def client(module_app: Flask) -> FlaskClient:
    return module_app.test_client()


@pytest.fixture(scope="module")
def module_app(redis_url: str, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from backend.settings import Settings
    from backend.web.app import create_app
    from tests.backend.colours import ColourPredictor

    settings = Settings(
        label_studio_url="http://127.0.0.1:9",
        basic_auth_user="",
        basic_auth_pass="",
        webhook_secret="",
        open_access=True,
        requests_per_minute=10**6,
        model_dir=tmp_path_factory.mktemp("models"),
        redis_url=redis_url,
        preset="ssp-sam-test",
        image_max_pixels=10**6,
    )
    app = create_app(settings, Redis.from_url(redis_url), ColourPredictor())
    engine = app.extensions["sspsam"].engine
    engine.start()
    yield app
    engine.stop()


def post(client: FlaskClient, path: str, body: Any) -> Any:
    """Sends JSON, as Python writes what JSON has no word for; checks the answer."""
    answer = client.post(path, data=json.dumps(body), content_type="application/json")
    assert answer.status_code < 500, (answer.status_code, answer.text[:300])
    assert answer.is_json
    return answer


@given(changed(PREDICT))
def test_predict(client: FlaskClient, body: Any) -> None:
    answer = post(client, "/predict", body)
    if answer.status_code == 200:
        assert len(answer.json["results"]) == len(body["tasks"])
        assert "error inside" not in answer.text


@given(changed(WEBHOOK))
def test_webhook(client: FlaskClient, body: Any) -> None:
    assert post(client, "/webhook", body).status_code in (200, 201, 400)


@given(changed(SETUP))
def test_setup(client: FlaskClient, body: Any) -> None:
    assert post(client, "/setup", body).status_code in (200, 400)
    assert client.get("/").status_code == 200, "the page shows what projects are"


@given(st.sampled_from(["/predict", "/setup", "/webhook"]), st.one_of(st.binary(max_size=200), JSON))
@example("/predict", DEEP[0])
@example("/webhook", DEEP[1])
@example("/predict", DEEP[2])
@example("/setup", b'{"project": ' + b"9" * 10_000 + b"}")
@example("/webhook", b'{"action": "\\ud800", "project": {"id": "\\ud800"}}')
def test_bodies_of_anything(client: FlaskClient, path: str, body: Any) -> None:
    data = body if isinstance(body, bytes) else json.dumps(body).encode()
    answer = client.post(path, data=data)
    assert answer.status_code < 500, answer.text[:300]


@given(
    st.sampled_from(["GET", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD"]),
    st.text(st.characters(min_codepoint=33, max_codepoint=382), max_size=30),
    st.dictionaries(st.sampled_from(["project", "X"]), st.text(max_size=9), max_size=2),
)
def test_addresses_of_anything(client: FlaskClient, method: str, path: str, query: dict[str, str]) -> None:
    answer = client.open("/" + path.lstrip("/").replace("?", "").replace("#", ""), method=method)
    assert answer.status_code < 500
    assert client.get("/webhook", query_string=query).status_code == 200


def test_the_seeds_are_good(client: FlaskClient) -> None:
    """Otherwise the tests above would only see refusals."""
    for body in PREDICT:
        assert "brushlabels" in post(client, "/predict", body).text
    for body in WEBHOOK:
        assert post(client, "/webhook", body).status_code in (200, 201)
    for body in SETUP:
        assert post(client, "/setup", body).status_code == 200
