"""Numbers returned by the packages are Python's own with every NumPy version."""

from __future__ import annotations

import json
from dataclasses import fields, replace
from typing import Any

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import sspsam
from finetune.data.dataset import open_dataset
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.report import compare
from finetune.metrics import BoxAccuracy, SegmentationMetrics
from sspsam.cli.commands import app as commands
from sspsam.cli.commands import referent_to_dict
from sspsam.images.brush_rle import mask_to_brush_rle
from sspsam.images.frames import UInt8Image
from sspsam.images.image_io import write_picture
from sspsam.images.masks import coco_rle_iou, mask_to_box_xyxy, mask_to_coco_rle
from sspsam.images.polygons import mask_to_polygons
from sspsam.results import Decoded, Question, is_no_target, stability_of
from tests.plain import not_plain

PHRASES = ["the dog", "two cats on the left"]
CLICKS: list[dict[str, Any]] = [
    {},
    {"points": np.array([[10.0, 20.0, 1.0]])},
    {"boxes": np.array([5, 5, 60, 70], np.int64)},
]


@pytest.fixture(scope="module")
def predictor() -> sspsam.Predictor:
    return sspsam.Predictor.from_preset("ssp-sam-test", "cpu")


@pytest.fixture(scope="module")
def image() -> UInt8Image:
    return np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)


def not_plain_fields(value: Any, *others: str) -> list[str]:
    """Of a dataclass, but for the fields that are arrays or functions by their type."""
    named = {field.name: getattr(value, field.name) for field in fields(value) if field.name not in others}
    return not_plain(named, type(value).__name__)


def test_the_check_itself_tells_numpy_s_numbers() -> None:
    value = {
        "a": [np.float64(1)],
        "b": (True, 1, 0.5, "c", None),
        "d": {"e": np.str_("f")},
        "g": np.bool_(True),
    }
    assert len(not_plain(value)) == 3


@pytest.mark.parametrize("clicks", CLICKS)
def test_referents(predictor: sspsam.Predictor, image: UInt8Image, clicks: dict[str, Any]) -> None:
    embedding = predictor.embed(image)
    referents = predictor.predict(embedding, PHRASES, **clicks)
    if clicks:
        referents.append(predictor.segment(embedding, **clicks))
    for referent in referents:
        assert not_plain_fields(referent, "mask", "find_instances", "reading") == []
        assert not_plain_fields(referent.reading) == []
        assert not_plain(referent.certainty) == []
        assert not_plain(referent_to_dict(referent)) == []


def test_decoded_answers(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    question = Question(predictor.embed(image), "the dog")
    [decoded] = predictor.decode([question])
    assert not_plain_fields(decoded, "question", "mask_logits", "box_cxcywh", "reading") == []
    assert not_plain(question.has_positive_click) == not_plain(question.has_clicks) == []
    assert isinstance(decoded, Decoded)


def test_embeddings(predictor: sspsam.Predictor, image: UInt8Image) -> None:
    embedding = predictor.embed(image)
    loaded = predictor.from_tensors(embedding.to_tensors())
    for found in (embedding, loaded):
        assert not_plain_fields(found.clip_frame) == []
        assert not_plain([found.original_hw, found.size_bytes]) == []


@pytest.mark.parametrize("logits", [np.zeros((8, 8), np.float32), np.full((8, 8), 9, np.float32)])
def test_scores_of_masks(logits: Any) -> None:
    assert not_plain(stability_of(logits, 0.0)) == []
    for has_positive_click in (True, False):
        assert not_plain(is_no_target(logits > 0, None, 0.5, has_positive_click)) == []


def test_masks_in_other_formats() -> None:
    mask = np.zeros((20, 30), bool)
    mask[3:9, 4:20] = True
    rle = mask_to_coco_rle(mask)
    found = [
        mask_to_box_xyxy(mask),
        mask_to_brush_rle(mask),
        rle,
        coco_rle_iou(rle, rle),
        mask_to_polygons(mask),
    ]
    assert not_plain(found) == []


def test_metrics() -> None:
    mask, boxes, metrics = np.eye(4, dtype=bool), BoxAccuracy(), SegmentationMetrics()
    ious = [metrics.update(mask, truth) for truth in (mask, ~mask, np.zeros_like(mask))]
    ious.append(boxes.update(np.array([0, 0, 2, 2]), np.array([0, 0, 2, 2])))
    assert not_plain(ious) == []
    assert not_plain_fields(boxes) == []
    assert not_plain({str(key): value for key, value in metrics.found.items()}) == []
    assert not_plain_fields(metrics, "found") == []
    assert not_plain([boxes.compute(), metrics.compute(), metrics.merge(replace(metrics)).compute()]) == []


def test_evaluations(predictor: sspsam.Predictor) -> None:
    result = evaluate(predictor, open_dataset("stickers/val?count=2&phrases=3"))
    assert not_plain(json.loads(json.dumps(result.to_dict()))) == []
    assert not_plain({**result.to_dict(), "refused": {}}) == []
    assert not_plain_fields(compare(result, result)) == []


def test_predict_prints_json(tmp_path: Any, image: UInt8Image) -> None:
    picture = tmp_path / "picture.png"
    write_picture(Image.fromarray(image), picture)
    asked = ["predict", str(picture), *PHRASES, "--json", "--preset", "ssp-sam-test", "--device", "cpu"]
    printed = CliRunner().invoke(commands, asked)
    assert printed.exit_code == 0, printed.output
    assert [answer["phrase"] for answer in json.loads(printed.stdout)] == PHRASES
