"""Phrases that cannot be answered: the annotator reads why, and loses nothing."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import read_annotation
from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.backend.editor import (
    CONFIG,
    PATH,
    ask,
    masks,
    predict_body,
    prompt,
    status,
    task,
    texts,
)
from tests.backend.parts import BASE, service_of
from tests.backend.web_server import Web


@pytest.mark.parametrize("text", ["  ", ""])
def test_an_empty_phrase_is_told(client: FlaskClient, text: str) -> None:
    prediction = ask(client, prompt(text))

    (said,) = texts(prediction, "status") or []
    assert said.startswith("The phrase is empty")
    after = ask(client, prompt(*(texts(prediction, "prompt") or []), "the red square"), status(said))
    assert list(masks(after)) == ["the red square"]
    assert texts(after, "prompt") == []
    assert texts(after, "status") == []


def test_a_phrase_of_80_words_is_told_and_the_others_are_answered(client: FlaskClient) -> None:
    long = "very " * 79 + "red"

    prediction = ask(client, prompt(long, "the blue bar"))

    assert list(masks(prediction)) == ["the blue bar"]
    (said,) = texts(prediction, "status") or []
    assert "too long" in said
    assert len(said) < 200
    (entry,) = texts(prediction, "prompt") or []
    assert prompt_text.plain_phrase(entry) == long


@pytest.mark.parametrize(
    ("image", "reason"),
    [
        ("/data/upload/2/nothing.png", "answers 404"),
        ("http://127.0.0.1:9/a.png", "IMAGE_HOSTS"),
        ("data:image/png;base64,AAAA", "not an image"),
        ("ftp://example.com/a.png", "only http"),
        (None, "has no image"),
    ],
)
def test_an_image_that_cannot_be_had_is_told_and_loses_nothing(
    client: FlaskClient, image: object, reason: str
) -> None:
    prediction = ask(client, prompt("the red square"), one=task(image=image))

    (said,) = texts(prediction, "status") or []
    assert "“the red square” was not looked for" in said
    assert reason in said
    (entry,) = texts(prediction, "prompt") or []
    assert prompt_text.has_failed(entry)
    assert read_annotation({"result": [prompt(entry)]}, CONFIG).no_target_phrases == ()
    mended = ask(client, prompt(entry, "the blue bar"))
    assert list(masks(mended)) == ["the blue bar", "the red square"]
    assert texts(mended, "prompt") == []


def test_an_unreadable_image_is_told(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response(b"no picture")

    (said,) = texts(ask(client, prompt("the red square")), "status") or []

    assert "not an image" in said


def test_a_refused_key_is_told(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response("", 401)

    (said,) = texts(ask(client, prompt("the red square")), "status") or []

    assert "LABEL_STUDIO_API_KEY" in said


def test_a_model_that_is_still_loading_is_told(settings: Settings, redis_server: Redis) -> None:
    hurried = settings.model_copy(update={"predict_timeout_s": 0.1})
    client = create_app(hurried, redis_server, ColourPredictor()).test_client()  # it has not even begun

    prediction = ask(client, prompt("the red square"))

    assert "loading" in str(texts(prediction, "status"))
    assert prompt_text.has_failed(str(texts(prediction, "prompt")))


def test_a_broken_model_is_told(settings: Settings, redis_server: Redis) -> None:
    class Broken(ColourPredictor):
        def decode(self, questions: Any, models: Any = None) -> Any:
            if questions[0].phrase != "warm up":
                raise RuntimeError("CUDA out of memory at 0x7f")
            return super().decode(questions, models)

    app = create_app(settings, redis_server, Broken())
    service_of(app).engine.start()

    headers = {"X-Request-Id": "from-a-proxy"}
    body = predict_body([task()], {"result": [prompt("the red square")]})
    response = app.test_client().post("/predict", json=body, headers=headers)

    (prediction,) = response.json["results"]
    (said,) = texts(prediction, "status") or []
    assert "see its log for request from-a-proxy" in said
    assert response.headers["X-Request-Id"] == "from-a-proxy"
    assert "CUDA" not in json.dumps(prediction)
    service_of(app).engine.stop()


def test_a_model_that_could_not_be_loaded_is_told(settings: Settings, redis_server: Redis) -> None:
    class Missing(ColourPredictor):
        def embed(self, image: Any) -> Any:
            raise FileNotFoundError("weights.safetensors")

    app = create_app(settings, redis_server, Missing())
    service_of(app).engine.start()

    (said,) = texts(ask(app.test_client(), prompt("the red square")), "status") or []

    assert "could not be loaded" in said
    service_of(app).engine.stop()


def test_without_redis_phrases_are_answered(settings: Settings) -> None:
    app = create_app(
        settings.model_copy(update={"redis_url": "unix:///nonexistent.sock"}), predictor=ColourPredictor()
    )
    service_of(app).engine.start()
    client = app.test_client()

    prediction = ask(client, prompt("the red square", "zebra"))

    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == [prompt_text.with_no_match("zebra")]
    assert client.get("/health").status_code == 200
    assert client.post("/setup", json={"project": "2.1"}).json == {"model_version": BASE}
    assert "Redis does not respond" in client.get("/").text
    service_of(app).engine.stop()
