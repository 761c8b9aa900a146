"""The packaged weights know stickers: on a photograph the status line says so once."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from werkzeug.wrappers import Response

from backend.assistant.photograph_notice import NOTICE
from backend.settings import Settings
from sspsam.version_store.store import VersionCard
from tests.backend.colours import encoded
from tests.backend.editor import Json, ask, predict_body, prompt, task, texts
from tests.backend.parts import service_of
from tests.backend.web_server import Web
from worker.local.demo_photographs import FOLDER

PHOTOGRAPH = "/data/upload/2/cat.jpg"
DEMO = "ssp-sam-demo"


@pytest.fixture
def label_studio(label_studio: Web) -> Web:
    content = (FOLDER / "cat.jpg").read_bytes()
    label_studio.answers[PHOTOGRAPH] = Response(content, content_type="image/jpeg")
    return label_studio


@pytest.fixture
def preset() -> str:
    return DEMO


@pytest.fixture
def settings(settings: Settings, preset: str) -> Settings:
    return settings.model_copy(update={"preset": preset, "weights": None})


def says(client: FlaskClient, one: Json) -> str:
    return " ".join(texts(ask(client, prompt("the red square"), one=one), "status") or [])


def test_it_is_said_once_for_a_task(client: FlaskClient) -> None:
    assert NOTICE in says(client, task(5, PHOTOGRAPH))
    assert NOTICE not in says(client, task(5, PHOTOGRAPH))
    assert NOTICE in says(client, task(6, PHOTOGRAPH))


def test_drawings_and_predictions_bring_no_notice(client: FlaskClient) -> None:
    assert NOTICE not in says(client, task(7))
    one = task(8, PHOTOGRAPH)
    one["data"]["phrases"] = ["the red square"]
    assert NOTICE not in client.post("/predict", json=predict_body([one], None)).text


@pytest.mark.parametrize("preset", ["ssp-sam-test"])
def test_other_weights_are_not_warned_of(client: FlaskClient) -> None:
    assert NOTICE not in says(client, task(5, PHOTOGRAPH))


def test_a_version_trained_on_own_labels_is_not_warned_of(app: Flask, client: FlaskClient) -> None:
    service = service_of(app)
    line = service.versions.line_of(2)
    published = service.versions.publish({"shift": torch.tensor(0)}, VersionCard(line=line), {})
    service.versions.promote(published.version_id, "better", line)
    service.engine.refresh()
    assert NOTICE not in says(client, task(5, PHOTOGRAPH))


@pytest.mark.parametrize(("scale", "is_said"), [(1, True), (4, False)])
def test_large_pictures_are_examined_only_if_that_is_quick(
    client: FlaskClient, label_studio: Web, scale: int, is_said: bool
) -> None:
    """PNG cannot be decoded at a smaller size."""
    cat = Image.open(FOLDER / "cat.jpg")
    content = encoded(np.asarray(cat.resize((scale * cat.width, scale * cat.height))))
    label_studio.answers["/data/upload/2/cat.png"] = Response(content, content_type="image/png")
    assert (NOTICE in says(client, task(9, "/data/upload/2/cat.png"))) == is_said
