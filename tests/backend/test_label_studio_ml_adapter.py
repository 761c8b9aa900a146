"""The adapter gives a hosting server what the service answers.

With the package `label_studio_ml` where it is installed, else with a stand-in for its base class.
"""

from __future__ import annotations

import importlib
import importlib.util
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from redis import Redis
from rq import Queue
from rq.serializers import JSONSerializer
from werkzeug.wrappers import Response

from backend.errors import RequestError
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from tests.backend.colours import encoded, picture
from tests.backend.editor import click
from tests.backend.web_server import Web

HOSTED = Path(__file__).parent / "hosted"
TASK = {"id": 1, "data": {"image": "/data/upload/a.png"}}
MODULES = ("label_studio_ml", "label_studio_ml.model", "backend.label_studio_ml_adapter")


@pytest.fixture
def adapter(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, redis_url: str, redis_server: Redis
) -> Iterator[ModuleType]:
    """The adapter's module, on the environment that a hosting server would be started with."""
    for module in MODULES:
        monkeypatch.delitem(sys.modules, module, raising=False)
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
    assert {result["from_name"] for result in answer["result"]} >= {"prompt"}
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
    assert {result["from_name"] for result in answer["result"]} <= {"mask", "status"}
    assert answer["result"]


def test_events_are_queued(adapter: ModuleType, redis_server: Redis) -> None:
    event: dict[str, Any] = {"annotation": {"id": 3, "task": 4}, "project": {"id": 5}}

    adapter.SspSamModel("5", RECOMMENDED_CONFIG).fit("ANNOTATION_CREATED", event, job_id=None)

    assert adapter.shared_service().redis_store.get_last_webhook_time("5"), "as by our own route"
    (job,) = Queue("events", connection=redis_server, serializer=JSONSerializer).get_jobs()
    assert job.func_name == "worker.jobs.collect_annotation"
    with pytest.raises(RequestError):
        adapter.SspSamModel("5", RECOMMENDED_CONFIG).fit("ANNOTATION_CREATED", {})
