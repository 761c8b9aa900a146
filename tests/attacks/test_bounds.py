"""Small requests and annotations that stand for large work: refused before it is done, and never a 500."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from PIL import Image
from redis import Redis
from werkzeug.wrappers import Response

from backend.assistant.assistant import MAX_PHRASES
from backend.labelstudio import annotations
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.settings import Settings
from backend.web.app import create_app
from sspsam.images import image_io
from sspsam.images.brush_rle import brush_rle_to_mask
from sspsam.images.image_io import PictureError, read_picture
from sspsam.images.masks import MAX_PIXELS, MaskFormatError, coco_rle_to_mask
from sspsam.images.png_masks import PREFIX
from tests.backend.colours import ColourPredictor, encoded, picture
from tests.backend.editor import PATH, ask, predict_body, prompt, task, texts
from tests.backend.web_server import Web

MIB = 2**20
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
DEEP = 100_000
MOST_S = 2.0
"""Processor time of one attack; what they took before stands with each."""


@pytest.fixture
def client(settings: Settings, redis_server: Redis) -> Iterator[FlaskClient]:
    """The app, with a picture in Label Studio."""
    with Web({PATH: Response(encoded(picture()), content_type="image/png")}) as label_studio:
        told = settings.model_copy(update={"label_studio_url": label_studio.url})
        app = create_app(told, redis_server, ColourPredictor())
        app.extensions["sspsam"].engine.start()
        yield app.test_client()
        app.extensions["sspsam"].engine.stop()


@contextmanager
def bounded(most_mib: int, most_s: float = MOST_S) -> Iterator[None]:
    """Fails if Python and numpy allocate more meanwhile, or if it takes longer."""
    tracemalloc.start()
    since_s = time.thread_time()
    try:
        yield
        assert tracemalloc.get_traced_memory()[1] < most_mib * MIB
        assert time.thread_time() - since_s < 5 * most_s, "tracemalloc slows everything down"
    finally:
        tracemalloc.stop()


def bits(*fields: tuple[int, int]) -> list[int]:
    """(value, number of bits) each, most significant first, as bytes."""
    text = "".join(f"{value:0{size}b}" for value, size in fields)
    text += "0" * (-len(text) % 8)
    return [int(text[place : place + 8], 2) for place in range(0, len(text), 8)]


def bomb(height: int, width: int) -> list[int]:
    """Brush RLE of an image filled with mask: 27 bits for each 65,536 bytes of it."""
    elements = height * width * 4
    head = [(elements, 32), (7, 5), (2, 4), (3, 4), (7, 4), (15, 4)]
    return bits(*head, *[(1, 1), (3, 2), (65_535, 16), (255, 8)] * -(-elements // 65_536))


def region(number: int, height: int, width: int, rle: Any) -> dict[str, Any]:
    return {
        "id": f"region{number}",
        "from_name": "mask",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "value": {"format": "rle", "rle": rle, "brushlabels": ["object"]},
    }


SIDE = 4096
BOMB = bomb(SIDE, SIDE)


def test_brush_masks_beyond_the_limit_are_refused_before_they_are_decoded() -> None:
    """221 KB took 1 GiB."""
    large = bomb(2**14, 2**14)
    assert len(large) < 60_000
    with bounded(8):
        content = read_annotation({"result": [region(0, 2**14, 2**14, large)]}, CONFIG)
        assert content.regions == ()
        assert "at most 100000000" in content.problems[0]
        for height, width in ((2**15, 2**15), (1, 2**30), (2**30, 1), (-(2**15), -(2**15)), (10**200, 1)):
            with pytest.raises(MaskFormatError):
                brush_rle_to_mask(large, height, width)


def test_many_regions_take_the_memory_of_one() -> None:
    """All masks of an annotation were held at once, and each is of 16 MiB."""
    result = [region(number, SIDE, SIDE, BOMB) for number in range(20)]
    with bounded(4 * SIDE**2 // MIB):
        content = read_annotation({"result": result}, CONFIG)
        assert len(content.regions) == 20
        assert {int(each.mask.sum()) for each in content.regions} == {SIDE**2}


def test_the_masks_of_an_annotation_are_bounded_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(annotations, "MASKS_PER_IMAGE", 3)
    result = [region(number, 100, 100, bomb(100, 100)) for number in range(5)]
    content = read_annotation({"result": result}, CONFIG, max_pixels=10_000)
    assert [each.region_id for each in content.regions] == ["region0", "region1", "region2"]
    assert len(content.problems) == 2
    assert "30000 pixels" in content.problems[0]
    monkeypatch.setattr(annotations, "RLE_BYTES_PER_ANNOTATION", 1)
    assert read_annotation({"result": result}, CONFIG).regions == ()


ALL_KINDS = LabelingConfig.parse(
    '<View><Image name="image" value="$image"/><Polygon name="polygon" toName="image"/>'
    '<Bitmask name="bitmask" toName="image"/></View>'
)


def test_a_bitmask_is_measured_before_it_is_decoded() -> None:
    """A PNG of 30 kilobytes can have 268 megapixels."""
    file = BytesIO()
    Image.new("1", (SIDE, SIDE)).save(file, "PNG")
    url = PREFIX + base64.b64encode(file.getvalue()).decode()
    result = {**region(0, 8, 8, None), "from_name": "bitmask", "value": {"imageDataURL": url}}
    large = {**result, "id": "large", "original_height": SIDE, "original_width": SIDE}
    with bounded(4):
        content = read_annotation({"result": [result, large]}, ALL_KINDS, max_pixels=SIDE)
    assert content.regions == ()
    assert len(content.problems) == 2


def test_a_polygon_with_very_many_edges_is_refused() -> None:
    points = [[number % 100, 100 * (number % 2)] for number in range(90_000)]
    result = {**region(0, SIDE, SIDE, None), "from_name": "polygon", "value": {"points": points}}
    with bounded(64):
        content = read_annotation({"result": [result]}, ALL_KINDS)
    assert content.regions == ()
    assert "rows" in content.problems[0]


@pytest.mark.parametrize(
    "rle", [None, "x" * 1000, {"a": 1}, 7, [256] * 100, [-1] * 100, [1.5], [[0]], ["0"], []]
)
@pytest.mark.parametrize("size", [(8, 8), (1e400, 8), (float("nan"), 8), ("9" * 5000, 8), ([], {})])
def test_one_malformed_region_stops_only_itself(rle: Any, size: Any) -> None:
    good = region(1, 8, 8, bomb(8, 8))
    content = read_annotation({"result": [region(0, *size, rle), good]}, CONFIG)
    assert [each.region_id for each in content.regions] == ["region1"]
    assert len(content.problems) == 1


@pytest.mark.parametrize(
    "rle",
    [
        {"size": [2**15, 2**15], "counts": [2**30]},
        {"size": [2**15, 2**15], "counts": "PPPPPP1"},
        {"size": [2**40, 2**40], "counts": []},
        {"size": [4, 4], "counts": [2**62, 2**62]},
        {"size": [1e400, 4], "counts": [4]},
    ],
)
def test_coco_masks_beyond_the_limit_are_refused(rle: dict[str, Any]) -> None:
    with bounded(4), pytest.raises(MaskFormatError):
        coco_rle_to_mask(rle)


def test_a_picture_is_measured_before_it_is_decoded(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """A PNG of 30 kilobytes can have 268 megapixels; its header says so."""
    assert MAX_PIXELS <= 2**28
    monkeypatch.setattr(image_io, "MAX_PIXELS", SIDE**2 - 1)
    path = tmp_path / "bomb.png"
    Image.new("1", (SIDE, SIDE)).save(path)
    assert path.stat().st_size < 30_000
    with bounded(4), pytest.raises(PictureError, match="4096 x 4096"):
        read_picture(path)


def test_twenty_thousand_labels_are_searched_in_linear_time() -> None:
    """8.8 s for five phrases."""
    labels = "".join(
        f'<Label value="dog {n}" alias="d{n}" predicted_values="a {n},b {n}"/>' for n in range(20_000)
    )
    since_s = time.thread_time()
    form = f'<View><BrushLabels name="mask" toName="image">{labels}</BrushLabels></View>'
    config = LabelingConfig.parse(form)
    for number in range(5):
        assert config.choice_for(f"the dog {number} on the left").label == f"d{number}"
    assert time.thread_time() - since_s < MOST_S


DEEP_VALUES = {
    "lists": "[" * DEEP + "]" * DEEP,
    "objects": '{"a":' * DEEP + "1" + "}" * DEEP,
    "cut lists": "[" * DEEP,
    "less deep": "[" * 900 + "]" * 900,
    "long": json.dumps("x" * 2 * MIB),
    "many digits": "9" * 5000,
    "a large number": "1e999",
}


@pytest.mark.parametrize("name", DEEP_VALUES)
@pytest.mark.parametrize("field", ["extra_params", "project", "schema", "hostname"])
def test_setup_answers_any_value(client: FlaskClient, name: str, field: str) -> None:
    """100,000 brackets were a 500; as text they are read when tasks are answered."""
    raw = f'{{"project": "5.1", "{field}": {DEEP_VALUES[name]}}}'
    assert client.post("/setup", data=raw, content_type="application/json").status_code in (200, 400)
    quoted = client.post("/setup", json={"project": "5.1", field: DEEP_VALUES[name]})
    assert quoted.status_code in (200, 400)
    body = predict_body([task()], None) | {"project": "5.1"}
    assert client.post("/predict", json=body).status_code == 200
    assert client.get("/").status_code == 200


@pytest.mark.parametrize("name", DEEP_VALUES)
@pytest.mark.parametrize("field", ["id", "data", "annotations", "drafts"])
def test_predict_answers_any_value(client: FlaskClient, name: str, field: str) -> None:
    raw = json.dumps(predict_body([task() | {field: "PLACE"}], {"result": [prompt("the red square")]}))
    raw = raw.replace('"PLACE"', DEEP_VALUES[name])
    assert client.post("/predict", data=raw, content_type="application/json").status_code in (200, 400)


@pytest.mark.parametrize("name", DEEP_VALUES)
@pytest.mark.parametrize("field", ["action", "annotation", "project", "task"])
def test_webhook_answers_any_value(app: Flask, name: str, field: str) -> None:
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": 5}, "task": {"id": 1}}
    raw = json.dumps(event | {field: "PLACE"}).replace('"PLACE"', DEEP_VALUES[name])
    sent = app.test_client().post("/webhook", data=raw, content_type="application/json")
    assert sent.status_code in (200, 201, 400)


def test_phrases_beyond_the_limit_are_answered_in_the_form(client: FlaskClient) -> None:
    phrases = ";".join(f"phrase {number}" for number in range(2 * MAX_PHRASES))
    found = texts(ask(client, prompt(phrases)), "prompt")
    assert found is not None
    assert sum("more than" in text for text in found) == MAX_PHRASES


def test_masks_of_a_bomb_and_of_a_brush_are_read_alike() -> None:
    mask = brush_rle_to_mask(bomb(7, 9), 7, 9)
    assert np.array_equal(mask, np.ones((7, 9), dtype=bool))
