"""Messages and metrics under concurrent load, and the work started when a task is opened."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from threading import Event
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from backend.labelstudio import prompt_text
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor, Referent
from tests.backend.editor import ask, masks, predict_body, prompt, task, texts
from tests.backend.parts import service_of
from tests.facts import untold
from tests.waiting import wait_until

NO_STATUS = RECOMMENDED_CONFIG.replace('name="status"', 'name="remark"')


class Held(ColourPredictor):
    """Answers only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may, self.begun = Event(), Event()

    def decode(self, questions: Sequence[Any], models: Any = None) -> list[Referent]:
        if questions[0].phrase != "warm up":
            self.begun.set()
            assert self.may.wait(20)
        return super().decode(questions, models)


@pytest.fixture
def predictor() -> Held:
    return Held()


@pytest.fixture
def settings(settings: Settings) -> Settings:
    return settings.model_copy(update={"queue_limit": 1, "predict_timeout_s": 20.0})


@pytest.fixture
def app(app: Flask, predictor: Held) -> Iterator[Flask]:
    yield app
    predictor.may.set()


@pytest.mark.parametrize(
    ("config", "name"), [(RECOMMENDED_CONFIG, "status"), (NO_STATUS, "prompt")], ids=["status", "prompt"]
)
def test_an_annotator_reads_that_the_model_is_busy(
    app: Flask, predictor: Held, config: str, name: str
) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, app.test_client(), prompt("the red square"))
        assert predictor.begun.wait(20)

        refused = ask(app.test_client(), prompt("the blue bar"), config=config)
        predictor.may.set()

        assert list(masks(first.result(20))) == ["the red square"]
    (said,) = texts(refused, name) or []
    assert untold(said, "busy", "1") == []
    (entry,) = texts(refused, "prompt") or []
    assert prompt_text.has_failed(entry), "it is asked again with the next phrase"
    again = ask(app.test_client(), prompt(entry, "the red square"))
    assert set(masks(again)) == {"the blue bar", "the red square"}
    assert 'sspsam_refused_total{reason="busy"} 1.0' in app.test_client().get("/metrics").text


def test_a_busy_model_stores_nothing_for_a_batch(app: Flask, predictor: Held) -> None:
    tasks = predict_body([{**task(), "data": {**task()["data"], "phrase": "red"}}], None)
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, app.test_client(), prompt("the red square"))
        assert predictor.begun.wait(20)
        response = app.test_client().post("/predict", json=tasks)
        predictor.may.set()
        first.result(20)

    assert (response.status_code, response.json) == (200, {"results": [[]]})


def test_other_routes_answer_while_the_model_is_busy(app: Flask, predictor: Held) -> None:
    with ThreadPoolExecutor(1) as pool:
        first = pool.submit(ask, app.test_client(), prompt("the red square"))
        assert predictor.begun.wait(20)
        for path in ("/health", "/metrics", "/versions", "/"):
            assert app.test_client().get(path).status_code == 200
        predictor.may.set()
        first.result(20)


def test_label_studios_time_bounds_how_long_a_request_waits(
    settings: Settings, redis_server: Redis, predictor: Held
) -> None:
    app = create_app(settings.model_copy(update={"predict_timeout_s": 0.1}), redis_server, predictor)
    service_of(app).engine.start()
    assert service_of(app).engine.wait(20)

    (said,) = texts(ask(app.test_client(), prompt("the red square")), "status") or []

    assert "did not answer in time" in said
    predictor.may.set()
    service_of(app).engine.stop()


def test_opening_a_task_embeds_its_picture(app: Flask, predictor: Held) -> None:
    assert service_of(app).engine.wait(20)
    at_load = predictor.embedded

    answer = app.test_client().post("/predict", json=predict_body([task()], None)).json

    assert answer["results"][0]["result"] == []
    wait_until(lambda: "sspsam_prefetched_total 1.0" in app.test_client().get("/metrics").text, "embedded")
    predictor.may.set()
    ask(app.test_client(), prompt("the red square"))
    assert predictor.embedded == at_load + 1
    text = app.test_client().get("/metrics").text
    assert 'sspsam_embeddings_total{source="memory"} 1.0' in text
    assert "sspsam_waiting" in text


def test_many_tasks_at_once_have_not_been_opened(app: Flask, predictor: Held) -> None:
    app.test_client().post("/predict", json=predict_body([task(1), task(2)], None))

    assert service_of(app).engine.waiting()["ahead"] == 0
    assert "sspsam_prefetched_total 0.0" in app.test_client().get("/metrics").text
