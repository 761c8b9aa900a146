"""Answers as JSON: all numbers are encoded, and an encoding failure becomes an error on the form."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from fractions import Fraction
from typing import Any

import numpy as np
import pytest
from flask import Flask, jsonify
from redis import Redis

import sspsam
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.queries import PredictQuery
from backend.serving.shared_model import SwappablePredictor
from backend.settings import Settings
from backend.web.app import create_app
from sspsam import Referent
from sspsam.results import Question
from tests.backend.colours import ColourPredictor
from tests.backend.editor import ask, click, predict_body, prompt, task, texts
from tests.backend.parts import service_of
from tests.plain import not_plain


@contextmanager
def started(settings: Settings, redis: Redis, predictor: SwappablePredictor) -> Iterator[Flask]:
    app = create_app(settings, redis, predictor)
    service_of(app).engine.start()
    yield app
    service_of(app).engine.stop()


class Unwritable(ColourPredictor):
    """Its scores are numbers that JSON encoders do not take."""

    def decode(self, questions: Sequence[Question], models: Any = None) -> list[Referent]:
        return [replace(referent, score=Fraction(3, 4)) for referent in super().decode(questions, models)]


@pytest.fixture
def unwritable(settings: Settings, redis_server: Redis) -> Iterator[Flask]:
    with started(settings, redis_server, Unwritable()) as app:
        yield app


def test_numpy_s_numbers_are_written_and_others_refused(app: Flask) -> None:
    numbers = [np.float64(0.5), np.float32(0.25), np.int64(3), np.bool_(True), np.uint8(7)]
    with app.test_request_context():
        assert jsonify(numbers).json == [0.5, 0.25, 3, True, 7]
        with pytest.raises(NotImplementedError, match="cannot write object as JSON"):
            jsonify(object())


@pytest.mark.parametrize(
    "results",
    [[prompt("the dog", "a cat")], [click(20, 8, "c1")], [click(20, 8, "c2", positive=False)], []],
)
def test_answers_of_the_tiny_model_are_plain(
    settings: Settings, redis_server: Redis, results: list[dict[str, Any]]
) -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    body = predict_body([task()], {"result": results})
    with started(settings, redis_server, predictor) as app:
        assert not_plain(service_of(app).assistant.answer(PredictQuery.parse(body))) == []
        assert app.test_client().post("/predict", json=body).status_code == 200


def test_a_batch_of_the_tiny_model_is_plain(settings: Settings, redis_server: Redis) -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    body = predict_body([task(data={**task()["data"], "phrases": ["the dog", "a cat"]})], None)
    with started(settings, redis_server, predictor) as app:
        assert not_plain(service_of(app).assistant.answer(PredictQuery.parse(body))) == []
        [prediction] = app.test_client().post("/predict", json=body).json["results"]
        nothing = service_of(app).redis_store.nothing_found("2", "1")
    read = read_annotation(prediction, LabelingConfig.parse(RECOMMENDED_CONFIG))
    assert {region.phrase for region in read.regions} | {*nothing} == {"the dog", "a cat"}


def test_a_phrase_whose_answer_cannot_be_written_stays_with_the_reason(unwritable: Flask) -> None:
    answer = ask(unwritable.test_client(), prompt("the red square"))

    [entry] = texts(answer, "prompt") or []
    assert entry.startswith("the red square")
    assert "an error inside the backend" in entry
    assert "an error inside the backend" in (texts(answer, "status") or [""])[0]
    assert [problem.task for problem in service_of(unwritable).redis_store.problems("2")] == ["1"]


def test_a_click_whose_answer_cannot_be_written_is_told_on_the_form(unwritable: Flask) -> None:
    answer = ask(unwritable.test_client(), click(20, 8, "c1"))
    assert re.search(r"request [0-9a-f-]+", (texts(answer, "status") or [""])[0]), "for the log"


def test_a_batch_that_cannot_be_written_stores_nothing(unwritable: Flask) -> None:
    body = predict_body([task(data={**task()["data"], "phrase": "the red square"})], None)
    response = unwritable.test_client().post("/predict", json=body)
    assert (response.status_code, response.json) == (200, {"results": [[]]})


def test_half_a_character_in_a_phrase_is_answered_in_the_form(app: Flask) -> None:
    """JSON can hold a lone surrogate, UTF-8 cannot."""
    body = json.dumps(predict_body([task()], {"result": [prompt("the \ud800 square")]}))
    response = app.test_client().post("/predict", data=body, content_type="application/json")
    assert response.status_code == 200
    [answer] = response.json["results"]
    assert any("the ? square" in entry for entry in texts(answer, "prompt") or [])
