"""Clicks and boxes as sent by the editor."""

from __future__ import annotations

from typing import Any

import pytest

from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.interactions import read_interactions

CONFIG = LabelingConfig.parse(
    '<View><Image name="image" value="$image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="object"/></BrushLabels>'
    '<KeyPointLabels name="kp" toName="image"><Label value="object"/></KeyPointLabels>'
    '<RectangleLabels name="box" toName="image"><Label value="object"/></RectangleLabels></View>'
)
CLICK: dict[str, Any] = {
    "original_width": 640,
    "original_height": 480,
    "image_rotation": 0,
    "value": {"x": 25.0, "y": 50.0, "width": 0.23, "labels": ["object"], "keypointlabels": ["object"]},
    "is_positive": True,
    "id": "Tsh2kU-JLk",
    "from_name": "kp",
    "to_name": "image",
    "type": "keypointlabels",
    "origin": "manual",
}
BOX: dict[str, Any] = {
    **CLICK,
    "value": {"x": 50, "y": 25, "width": 25, "height": 50, "rotation": 0, "rectanglelabels": ["object"]},
    "from_name": "box",
    "type": "rectanglelabels",
    "id": "b",
}


def test_clicks_and_boxes_are_read_in_fractions() -> None:
    minus = {**CLICK, "is_positive": False, "id": "minus"}

    plus, alt, box = read_interactions([CLICK, minus, BOX], CONFIG)

    assert (plus.gesture_id, plus.kind, plus.positive, plus.label) == ("Tsh2kU-JLk", "click", True, "object")
    assert plus.xy == (0.25, 0.5)
    assert not alt.positive
    assert (box.kind, box.xyxy, box.positive) == ("box", (0.5, 0.25, 0.75, 0.75), True)


def test_a_turned_box_becomes_the_upright_one_around_it() -> None:
    """A quarter turn about its corner at (50 %, 25 %) = (320, 120) px: 160 x 240 px become 240 x 160 px."""
    (box,) = read_interactions([{**BOX, "value": {**BOX["value"], "rotation": 90}}], CONFIG)

    assert box.xyxy == pytest.approx((80 / 640, 120 / 480, 320 / 640, 280 / 480))


def test_what_lies_outside_ends_at_the_border() -> None:
    (box,) = read_interactions([{**BOX, "value": {"x": -10, "y": 90, "width": 200, "height": 20}}], CONFIG)

    assert box.xyxy == (0.0, 0.9, 1.0, 1.0)


@pytest.mark.parametrize(
    "result",
    [
        {**CLICK, "from_name": "mask"},
        {**CLICK, "value": None},
        {**CLICK, "value": {"x": 3}},
        {**CLICK, "value": {"x": "left", "y": 3}},
        {**CLICK, "value": {"x": float("nan"), "y": 3}},
        {**BOX, "value": {"x": 3, "y": 3}},
        {**BOX, "value": {**BOX["value"], "rotation": 7}, "original_width": None},
    ],
)
def test_what_is_no_gesture_is_left_out(result: dict[str, Any]) -> None:
    assert read_interactions([result], CONFIG) == []


def test_a_form_without_smart_tools_has_none() -> None:
    assert read_interactions([CLICK, BOX], LabelingConfig.parse("<View></View>")) == []
