"""The adapter gives a hosting server what the service answers.

With the package `label_studio_ml` where it is installed, else with a stand-in for its base class.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from werkzeug.wrappers import Response

from backend.errors import RequestError
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.service import Service
from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.colours import encoded, picture
from tests.backend.editor import click
from tests.backend.web_server import Web

HOSTED = Path(__file__).parent / "hosted"
TASK: dict[str, Any] = {"id": 1, "data": {"image": "/data/upload/a.png"}}
MODULES = (
    "label_studio_ml",
    "label_studio_ml.api",
    "label_studio_ml.model",
    "backend.label_studio_ml_adapter",
)
SECRET = "s3cret"
EMPTY_FORM = "<View></View>"
PROMPT = {"id": "p", "from_name": "prompt", "value": {"text": ["the dog"]}}
REQUESTS: list[tuple[str, str, Any, int]] = [
    # What the hosting server's own tests send, with the status that they expect.
    ("GET", "/health", None, 200),
    ("GET", "/metrics", None, 200),
    ("POST", "/setup", {"project": "1.1000000000", "schema": EMPTY_FORM, "extra_params": {}}, 200),
    (
        "POST",
        "/predict",
        {
            "project": "1.1000000000",
            "label_config": EMPTY_FORM,
            "tasks": {"id": 1},
            "params": {"context": {}},
        },
        200,
    ),
    (
        "POST",
        "/webhook",
        {"action": "ANNOTATION_CREATED", "project": {"id": 1, "label_config": EMPTY_FORM}},
        201,
    ),
    # What Label Studio sends.
    ("GET", "/versions", None, 200),
    ("GET", "/ready", None, 200),
    ("GET", "/webhook?project=3", None, 200),
    ("POST", "/setup", {"project": "3.1", "schema": RECOMMENDED_CONFIG, "extra_params": ""}, 200),
    ("POST", "/predict", {"tasks": [TASK], "params": {"context": {"result": [PROMPT]}}}, 200),
    ("POST", "/predict", {"tasks": [TASK], "params": {"context": {"result": []}}}, 200),
    ("POST", "/predict", {"tasks": [TASK | {"data": {"phrase": "x"}}], "params": {"context": None}}, 200),
    (
        "POST",
        "/webhook",
        {"action": "ANNOTATIONS_DELETED", "annotations": [{"id": 3}], "project": {"id": 5}},
        201,
    ),
    ("POST", "/webhook", {"action": "PROJECT_UPDATED", "project": {"id": 5}}, 200),
    # What neither sends.
    ("POST", "/predict", {"tasks": 7}, 400),
    ("POST", "/predict", [], 400),
    ("POST", "/setup", None, 400),
    ("POST", "/webhook", {"action": "ANNOTATION_CREATED"}, 400),
    ("POST", "/webhook", {}, 400),
]


@pytest.fixture
def adapter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str, redis_server: Redis
) -> Iterator[ModuleType]:
    """The adapter's module, on the environment that a hosting server would be started with."""
    for name in MODULES:
        monkeypatch.delitem(sys.modules, name, raising=False)
    if importlib.util.find_spec("label_studio_ml") is None:
        monkeypatch.syspath_prepend(HOSTED)
    with Web({"/data/upload/a.png": Response(encoded(picture()))}) as label_studio:
        for name, value in {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": "key",
            "REDIS_URL": redis_url,
            "MODEL_DIR": str(tmp_path),
            "PRESET": "ssp-sam-test",
            "DEVICE": "cpu",
        }.items():
            monkeypatch.setenv(name, value)
        module = importlib.import_module("backend.label_studio_ml_adapter")
        yield module
        module.shared_service().engine.stop()


def test_phrases_are_answered(adapter: ModuleType) -> None:
    model = adapter.SspSamModel("3", RECOMMENDED_CONFIG)
    prompt = {"id": "p", "from_name": "prompt", "value": {"text": ["the dog"]}}

    (answer,) = model.predict([TASK], context={"result": [prompt]})
    (silent,) = model.predict([TASK], context=None)

    assert model.get("model_version") == answer["model_version"] == "ssp-sam-test-base"
    assert {result["from_name"].partition("-")[0] for result in answer["result"]} >= {"prompt"}
    assert silent == {"result": [], "model_version": "ssp-sam-test-base"}


def test_what_is_typed_at_connecting_and_what_a_form_lacks_is_known(
    adapter: ModuleType, caplog: pytest.LogCaptureFixture
) -> None:
    config = '<View><TextArea name="prompt" toName="image"/><Image name="image" value="$image"/></View>'
    adapter.SspSamModel("4", config)
    assert "project 4: there is no <BrushLabels>" in caplog.text

    adapter.SspSamModel("4", RECOMMENDED_CONFIG).set_extra_params('{"phrase": "the dog"}')
    (answer,) = adapter.SspSamModel("4", RECOMMENDED_CONFIG).predict([TASK], context=None)

    nothing = adapter.shared_service().redis_store.nothing_found("4", str(TASK["id"]))
    content = read_annotation(answer, LabelingConfig.parse(RECOMMENDED_CONFIG))
    assert {region.phrase for region in content.regions} | set(nothing) == {"the dog"}


def test_clicks_are_answered(adapter: ModuleType) -> None:
    model = adapter.SspSamModel("3", RECOMMENDED_CONFIG)

    (answer,) = model.predict([TASK], context={"result": [click(12, 7, "1")]})

    assert answer["model_version"] == "ssp-sam-test-base"
    assert {result["from_name"].partition("-")[0] for result in answer["result"]} <= {"mask", "status"}
    assert answer["result"]


def of_hosted(adapter: ModuleType) -> FlaskClient:
    """A client of the hosting server, as its generated `_wsgi.py` makes the app."""
    server = importlib.import_module("label_studio_ml.api").init_app(model_class=adapter.SspSamModel)
    assert adapter.shared_service().engine.wait(60)
    client: FlaskClient = server.test_client()
    return client


@pytest.fixture
def own(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> Iterator[FlaskClient]:
    """A client of our own app on the same environment."""
    monkeypatch.setenv("OPEN_ACCESS", "true")
    app = create_app(Settings())
    engine = app.extensions["sspsam"].engine
    engine.start()
    assert engine.wait(60)
    yield app.test_client()
    engine.stop()


def without_varying_parts(answer: dict[str, Any]) -> dict[str, Any]:
    """An answer without times, request IDs, and the ID of the status line, which is a new one each time."""
    for name in ("request_id", "last_event"):
        answer.pop(name, None)
    for prediction in answer.get("results", ()):
        for result in prediction["result"]:
            result["id"] = result["id"] if result["from_name"] != "status" else ""
    return answer


def test_the_hosting_server_answers_as_our_own(adapter: ModuleType, own: FlaskClient) -> None:
    hosted = of_hosted(adapter)

    for method, path, body, expected in REQUESTS:
        if path == "/predict" and isinstance(body, dict):
            body = {"project": "3.1795330931", "label_config": RECOMMENDED_CONFIG, **body}
        answers = [client.open(path, method=method, json=body) for client in (hosted, own)]
        assert [answer.status_code for answer in answers] == [expected] * 2, (path, body, answers[0].text)
        if path == "/metrics":
            assert b"sspsam_requests_total" in answers[0].data
            continue
        theirs, ours = (without_varying_parts(answer.get_json()) for answer in answers)
        assert theirs == ours, (path, body)
        assert "Traceback" not in answers[0].text


@pytest.mark.parametrize("params", [None, {}, {"context": None}, {"context": {}}])
def test_what_has_no_context_is_a_batch(adapter: ModuleType, params: object) -> None:
    """The hosting server itself makes an empty context of a missing one."""
    task = {**TASK, "data": {**TASK["data"], "phrase": "the dog"}}
    body = {"project": "3.1", "label_config": RECOMMENDED_CONFIG, "tasks": [task], "params": params}
    expected = adapter.SspSamModel("3", RECOMMENDED_CONFIG).predict([task], context={})

    answer = of_hosted(adapter).post("/predict", json=body)

    assert answer.json == {"results": expected}
    (prediction,) = expected
    assert any(result["type"] == "brushlabels" for result in prediction["result"])


def test_events_show_the_secret_to_the_hosting_server(
    adapter: ModuleType, monkeypatch: pytest.MonkeyPatch, redis_server: Redis
) -> None:
    monkeypatch.setenv("WEBHOOK_SECRET", SECRET)
    event = {"action": "TASKS_DELETED", "project": {"id": 5}}
    hosted = of_hosted(adapter)

    assert hosted.post("/webhook", json=event).status_code == 401
    assert hosted.get("/webhook?project=5").status_code == 401
    assert hosted.post("/webhook", json=event, headers={"X-ML-Secret": SECRET}).status_code == 201
    assert hosted.post("/predict", json={"tasks": []}).status_code == 200, "which has Basic auth, if any"


def test_bodies_that_cannot_be_read_are_refused(adapter: ModuleType) -> None:
    hosted = of_hosted(adapter)
    deep = b'{"project": "3.1", "extra_params": ' + b"[" * 5000 + b"]" * 5000 + b"}"

    assert hosted.post("/setup", data=deep).status_code == 400
    assert hosted.post("/setup", data=b'{"project": "3.1", "schema": "\\ud800"}').status_code == 400


def test_events_are_queued(adapter: ModuleType, redis_server: Redis) -> None:
    event: dict[str, Any] = {"annotation": {"id": 3, "task": 4}, "project": {"id": 5}}

    adapter.SspSamModel("5", RECOMMENDED_CONFIG).fit("ANNOTATION_CREATED", event, job_id=None)

    assert adapter.shared_service().redis_store.projects.get_last_webhook_time("5"), "as by our own route"
    (job,) = Queue("events", connection=redis_server, serializer=JSONSerializer).get_jobs()
    assert job.func_name == "worker.jobs.collect_annotation"
    with pytest.raises(RequestError):
        adapter.SspSamModel("5", RECOMMENDED_CONFIG).fit("ANNOTATION_CREATED", {})


def test_the_first_requests_share_one_service(adapter: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    made, build = [], adapter.build_service

    def slowly(settings: Settings) -> Service:
        time.sleep(0.2)
        made.append(build(settings))
        return made[-1]

    monkeypatch.setattr(adapter, "build_service", slowly)
    with ThreadPoolExecutor(4) as pool:
        services = list(pool.map(lambda _: adapter.shared_service(), range(4)))
    assert len(made) == 1
    assert services == made * 4
