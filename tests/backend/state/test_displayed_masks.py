"""The mask that a click or a box is on."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from backend.labelstudio.interactions import Interaction
from backend.state.displayed_masks import (
    DisplayedMask,
    PackedMask,
    VisibleMask,
    distance,
    mask_under,
    new_region_id,
)
from sspsam.images.masks import BoolMask, mask_to_coco_rle


def rectangle(*box: int) -> BoolMask:
    """A rectangle x0, y0, x1, y1 on a picture of 200 x 100 px."""
    mask = np.zeros((100, 200), dtype=np.bool_)
    if box:
        x0, y0, x1, y1 = box
        mask[y0:y1, x0:x1] = True
    return mask


def visible(name: str, *box: int) -> VisibleMask:
    return VisibleMask(name, f"the {name}", None, PackedMask.pack(rectangle(*box)))


def click(x: float, y: float, name: str = "c", positive: bool = True) -> Interaction:
    return Interaction(name, "click", (x / 200, y / 100, x / 200, y / 100), positive)


def box(x0: float, y0: float, x1: float, y1: float, name: str = "b") -> Interaction:
    return Interaction(name, "box", (x0 / 200, y0 / 100, x1 / 200, y1 / 100))


EVERYTHING = [
    visible("house", 20, 20, 80, 80),
    visible("door", 40, 50, 50, 80),
    visible("tree", 150, 0, 160, 90),
    visible("ghost"),
]


@pytest.mark.parametrize(
    ("gesture", "name"),
    [
        (click(25, 25), "house"),
        (click(45, 60), "door"),
        (click(45, 60, positive=False), "door"),
        (click(200, 100), None),
        (click(80, 50), None),
        (click(79.9, 50), "house"),
        (click(19, 50, positive=False), None),
        (box(10, 10, 90, 90), "house"),
        (box(38, 48, 52, 82), "door"),
        (box(150, 0, 160, 45), "tree"),
        (box(75, 15, 140, 80), None),
        (box(100, 10, 140, 80), None),
        (box(100, 10, 100, 10), None),
    ],
)
def test_the_mask_that_is_meant(gesture: Interaction, name: str | None) -> None:
    target = mask_under(gesture, EVERYTHING)

    assert (target and target.region_id) == name
    assert mask_under(gesture, []) is None


def test_distances_are_fractions_of_the_longer_side() -> None:
    house = rectangle(20, 20, 80, 80)

    assert distance(click(100.5, 50.5), house) == pytest.approx(21 / 200)
    assert distance(click(30.5, 30.5), house) == 0
    assert distance(click(30, 30), rectangle()) == np.inf


def test_a_packed_mask_is_the_mask() -> None:
    mask = np.random.default_rng(0).random((37, 53)) > 0.7
    mask[:5] = mask[:, :9] = False
    packed = PackedMask.pack(mask)

    np.testing.assert_array_equal(packed.unpack(), mask)
    assert packed.area_px == mask.sum()
    points = [(row, column) for row in range(37) for column in range(53)]
    found = [packed.is_at(((column + 0.5) / 53, (row + 0.5) / 37)) for row, column in points]
    assert found == [bool(mask[at]) for at in points]
    assert not PackedMask.pack(np.zeros_like(mask)).unpack().any()


def test_what_is_kept_comes_back() -> None:
    mask = DisplayedMask(
        "r", "the house", mask_to_coco_rle(rectangle(20, 20, 80, 80)), annotator="3", draft="7@"
    )
    clicked = replace(mask, settled=(click(1, 1, "1"),), current=(box(0, 0, 9, 9, "2"),), before=mask.rle)

    again = DisplayedMask.from_dict(json.loads(json.dumps(clicked.to_dict())))

    assert again == clicked
    np.testing.assert_array_equal(again.mask, clicked.mask)


def test_a_record_of_an_earlier_release_is_read() -> None:
    values = {"region_id": "r", "phrase": "", "rle": {}, "settled": [], "current": [], "label": None}

    assert DisplayedMask.from_dict({**values, "unknown": 1}) == DisplayedMask("r", "", {})


def test_a_new_region_is_named_by_its_gesture() -> None:
    first, second = click(1, 1, "1"), click(2, 2, "2")

    assert new_region_id("1", "2", first) == new_region_id("1", "2", first)
    assert new_region_id("1", "2", first) != new_region_id("1", "2", second)
    assert new_region_id("1", "2", first) != new_region_id("1", "3", first)
