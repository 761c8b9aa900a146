"""Requests as sent by the editor, and its interpretation of the answers."""

from __future__ import annotations

from typing import Any

import numpy as np
from flask.testing import FlaskClient

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from sspsam.images.masks import BoolMask
from tests.backend.colours import COLOURS, picture

Json = dict[str, Any]
PATH = "/data/upload/2/shapes.png"
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)


def task(task_id: int = 1, image: object = PATH, **more: Any) -> Json:
    return {
        "id": task_id,
        "data": {"image": image},
        "annotations": [],
        "predictions": [],
        "drafts": [],
        **more,
    }


def prompt(*texts: str) -> Json:
    return {
        "value": {"text": list(texts)},
        "id": "Wp6j8HRcD1",
        "from_name": "prompt",
        "to_name": "image",
        "type": "textarea",
        "origin": "manual",
    }


def status(text: str) -> Json:
    return {**prompt(text), "id": "status0001", "from_name": "status"}


def absent(*phrases: str) -> Json:
    return {**prompt(*phrases), "id": "absent0001", "from_name": "absent"}


def click(x: float, y: float, result_id: str, positive: bool = True, label: str = "refine") -> Json:
    """A click at a pixel of `picture()`."""
    height, width = picture().shape[:2]
    where = {"x": 100 * (x + 0.5) / width, "y": 100 * (y + 0.5) / height, "width": 0.2}
    return {
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "value": {**where, "labels": [label], "keypointlabels": [label]},
        "is_positive": positive,
        "id": result_id,
        "from_name": "click",
        "to_name": "image",
        "type": "keypointlabels",
        "origin": "manual",
    }


def predict_body(tasks: list[Json], context: Json | None, config: str = RECOMMENDED_CONFIG) -> Json:
    return {
        "tasks": tasks,
        "project": "2.1795330931",
        "label_config": config,
        "params": {"login": None, "password": None, "context": context},
    }


def ask(
    client: FlaskClient, *results: Json, one: Json | None = None, config: str = RECOMMENDED_CONFIG
) -> Json:
    """Sends what the editor sends, and returns the answer's one prediction."""
    body = predict_body([one or task()], {"result": list(results)}, config)
    response = client.post("/predict", json=body)
    assert response.status_code == 200
    (prediction,) = response.json["results"]
    found: Json = prediction
    return found


def masks(prediction: Json) -> dict[str, BoolMask]:
    """Phrase -> mask of each region of an answer, as our own reader of annotations sees it."""
    content = read_annotation(prediction, CONFIG)
    assert content.problems == ()
    return {str(region.phrase): region.mask for region in content.regions}


def ids(prediction: Json) -> list[str]:
    """Of the masks of an answer."""
    return [result["id"] for result in prediction["result"] if result["type"] == "brushlabels"]


def texts(prediction: Json, name: str) -> list[str] | None:
    """What an answer puts into a TextArea; None when it leaves it as it is."""
    found = [result["value"]["text"] for result in prediction["result"] if result["from_name"] == name]
    return found[0] if found else None


def colour(name: str) -> BoolMask:
    return np.asarray((picture() == COLOURS[name]).all(axis=2))
