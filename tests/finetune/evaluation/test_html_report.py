"""The report page of a fine-tune: changes are grouped and drawn, no external resources, phrases escaped."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from finetune.data.dataset import open_dataset
from finetune.evaluation.changes import draw_changes, group_changes, list_changes, most_changed
from finetune.evaluation.evaluate import EvaluationResult, SampleResult, evaluate
from finetune.evaluation.html_report import FineTuneReport, MeasuredOn, curves_of, render_report
from finetune.evaluation.report import ComparisonError
from sspsam import Predictor
from tests.facts import untold
from tests.html_page import Page

IMAGES = 20
LOG = [
    {"step": 20, "lr": 0.1, "elapsed_s": 1, "left_s": 9, "total": 2.0},
    {"step": 40, "lr": 0.2, "elapsed_s": 2, "left_s": 8, "total": 1.0, "validation mIoU": 0.4},
]


def result(shift: float) -> EvaluationResult:
    """One sample on each image; with a shift, even ones become better and odd ones worse, later ones more."""
    rows = [
        SampleResult(
            f"5/{number}",
            f"image {number}",
            0.5 + shift * number * (1 if number % 2 == 0 else -1),
            f"thing <{number}>",
            "noun" if number < 15 else "place",
            "car" if number < 5 else "",
        )
        for number in range(IMAGES)
    ]
    figure = float(np.mean([row.iou for row in rows]))
    return EvaluationResult({"mIoU": figure, "gIoU": figure, "N-acc": None}, per_sample=rows)


def page(**changes: object) -> Page:
    values: dict[str, object] = {
        "title": "Fine-tune <1>",
        "promoted": False,
        "reason": "no better",
        "data": {"labels": {"<b>": 3}},
        "config": {"steps": 40},
        "log": LOG,
        "measured": [MeasuredOn("Held-out corrections", result(0), result(0.02))],
        "pictures": {"5/18": Image.new("RGB", (8, 4), (1, 2, 3))},
    }
    return Page(render_report(FineTuneReport(**{**values, **changes})))


def test_changes_are_the_pairs_of_two_evaluations() -> None:
    changes = list_changes(result(0), result(0.02))
    best, worst = most_changed(changes)
    assert len(best) == 9, "sample 0 has not changed"
    assert [change.sample_id for change in best[:2]] == ["5/18", "5/16"]
    assert [change.sample_id for change in worst[:2]] == ["5/19", "5/17"]
    assert most_changed(changes, count=3)[0] == best[:3]
    assert best[0].difference == pytest.approx(0.36)
    with pytest.raises(ComparisonError):
        list_changes(result(0), EvaluationResult({}, per_sample=result(0).per_sample[1:]))


def test_groups_are_compared_with_their_interval() -> None:
    changes = list_changes(result(0), result(0.02))
    noun, place = group_changes(changes, lambda change: change.family)
    assert (noun.name, noun.samples, noun.images) == ("noun", 15, 15)
    assert noun.after - noun.before == pytest.approx(0.02 * 7 / 15)
    assert place.interval is not None
    assert place.interval[0] < place.after - place.before < place.interval[1]
    assert [group.name for group in group_changes(changes, lambda change: change.label)] == ["car"]


def test_a_page_stands_alone() -> None:
    shown = page()
    assert not shown.tags & {"script", "link", "iframe"}
    assert shown.values("a", "href") == []
    (picture,) = shown.values("img", "src")
    assert picture.startswith("data:")


def test_what_people_typed_is_text() -> None:
    shown = page()
    assert shown.texts("h1") == ["Fine-tune <1>"]
    assert untold(shown.text, "thing <18>", "{'<b>': 3}") == []


def test_a_page_says_what_was_decided_with_tables_and_curves() -> None:
    shown = page()
    assert untold(shown.text, "Rejected", "no better") == []
    assert untold(page(promoted=True).text, "Promoted") == []
    assert sum("thing <" in caption for caption in shown.texts("figcaption")) == 9 + 10
    assert shown.row("noun").split()[:3] == ["noun", "15", "15"], "samples and images"
    assert shown.row("car").split()[:3] == ["car", "5", "5"]
    assert len(shown.values("polyline", "points")) == 3
    none_changed = page(measured=[MeasuredOn("Held-out corrections", result(0), result(0))])
    assert not any("thing <" in caption for caption in none_changed.texts("figcaption"))


def test_curves_fill_their_plot() -> None:
    curves = {curve.name: curve for curve in curves_of(LOG)}
    assert set(curves) == {"lr", "total", "validation mIoU"}
    assert curves["total"].path == "0.0,0.0 260.0,120.0"
    assert curves["lr"].path == "0.0,120.0 260.0,0.0"
    assert curves["validation mIoU"].path == "0.0,0.0 260,0.0"
    assert (curves["total"].low, curves["total"].high, curves["total"].last) == (1.0, 2.0, 1.0)


def test_both_answers_are_drawn_side_by_side() -> None:
    data = open_dataset("stickers/val?count=2&phrases=2")
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    before = predictor.trainable_state()
    after = {name: tensor + 0.05 for name, tensor in before.items()}
    wanted = data[1].sample_id
    pictures = draw_changes(predictor, before, after, data, [wanted])
    assert list(pictures) == [wanted]
    height, width = data[1].image.shape[:2]
    shown = pictures[wanted]
    assert shown.height / ((shown.width - 4) / 2) == pytest.approx(height / width, rel=0.02)
    left, right = (
        shown.crop((at, 0, at + (shown.width - 4) // 2, shown.height)) for at in (0, shown.width // 2 + 2)
    )
    predictor.load_trainable(before)
    first = evaluate(predictor, data).per_sample[1].iou
    predictor.load_trainable(after)
    differs = evaluate(predictor, data).per_sample[1].iou != first
    assert (left.tobytes() != right.tobytes()) or not differs
