"""The mask that a click or a box refers to, and the combination of several."""

from __future__ import annotations

import json

import numpy as np
import pytest

from backend.labelstudio.interactions import Interaction
from backend.state.displayed_masks import DisplayedMask, new_mask, target_of
from sspsam.images.masks import mask_to_coco_rle


def shown(name: str, *box: int) -> DisplayedMask:
    """A rectangle x0, y0, x1, y1 on a picture of 200 x 100 px."""
    mask = np.zeros((100, 200), dtype=np.bool_)
    if box:
        x0, y0, x1, y1 = box
        mask[y0:y1, x0:x1] = True
    return DisplayedMask(name, f"the {name}", mask_to_coco_rle(mask))


def click(x: float, y: float, name: str = "c", positive: bool = True) -> Interaction:
    return Interaction(name, "click", (x / 200, y / 100, x / 200, y / 100), positive)


def box(x0: float, y0: float, x1: float, y1: float, name: str = "b") -> Interaction:
    return Interaction(name, "box", (x0 / 200, y0 / 100, x1 / 200, y1 / 100))


HOUSE, DOOR, TREE = (
    shown("house", 20, 20, 80, 80),
    shown("door", 40, 50, 50, 80),
    shown("tree", 150, 0, 160, 90),
)
EVERYTHING = [HOUSE, DOOR, TREE, shown("ghost")]


@pytest.mark.parametrize(
    ("gesture", "name"),
    [
        (click(25, 25), "house"),
        (click(45, 60), "door"),
        (click(45, 60, positive=False), "door"),
        (click(200, 100), None),
        (click(90, 50), "house"),
        (click(105, 50), None),
        (click(105, 50, positive=False), "house"),
        (click(199, 99, positive=False), "tree"),
        (box(10, 10, 90, 90), "house"),
        (box(38, 48, 52, 82), "door"),
        (box(150, 0, 160, 45), "tree"),
        (box(75, 15, 140, 80), None),
        (box(100, 10, 140, 80), None),
        (box(100, 10, 100, 10), None),
    ],
)
def test_the_mask_that_is_meant(gesture: Interaction, name: str | None) -> None:
    target = target_of([gesture], EVERYTHING)

    assert (target and target.region_id) == name
    assert target_of([gesture], []) is None


def test_gestures_that_go_on_stay_with_their_mask() -> None:
    begun = HOUSE.joined([click(25, 25, "first")])

    target = target_of([click(25, 25, "first"), click(155, 50, "second")], [begun, TREE])

    assert target is not None
    assert target.region_id == "house", "although the second click is on the tree"


def test_with_auto_accept_off_clicks_come_again_and_count_once() -> None:
    first, second, third = click(1, 1, "1"), click(2, 2, "2", positive=False), click(3, 3, "3")

    mask = HOUSE.joined([first]).joined([first, second])
    assert len(mask.clicks().points) == 2
    undone = mask.joined([first])
    assert len(undone.clicks().points) == 1, "the second was taken back"
    accepted = mask.joined([third])
    assert accepted.clicks().points == ((1 / 200, 0.01, True), (2 / 200, 0.02, False), (3 / 200, 0.03, True))


def test_with_auto_accept_on_each_comes_alone_and_all_count() -> None:
    mask = HOUSE.joined([click(1, 1, "1")]).joined([box(0, 0, 9, 9, "2")]).joined([box(0, 0, 20, 20, "3")])

    assert len(mask.clicks().points) == 1
    assert mask.clicks().box_xyxy == (0, 0, 0.1, 0.2), "of boxes the last"


def test_clicks_in_pixels() -> None:
    where = (
        HOUSE.joined([click(50, 25, "1"), click(100, 50, "2", positive=False)]).clicks().in_pixels((100, 200))
    )

    assert where["points"] is not None
    np.testing.assert_allclose(where["points"], [[50, 25, 1], [100, 50, 0]])
    assert where["boxes"] is None


def test_what_is_kept_comes_back() -> None:
    mask = HOUSE.joined([click(1, 1, "1")]).joined([box(0, 0, 9, 9, "2")])

    again = DisplayedMask.from_dict(json.loads(json.dumps(mask.to_dict())))

    assert again == mask
    np.testing.assert_array_equal(again.mask, mask.mask)


def test_the_region_of_something_new_is_named_by_its_first_gesture() -> None:
    first, second = click(1, 1, "1"), click(2, 2, "2")

    assert new_mask("1", "2", [first], None).region_id == new_mask("1", "2", [first, second], None).region_id
    assert new_mask("1", "2", [first], None).region_id != new_mask("1", "2", [second], None).region_id
    assert new_mask("1", "2", [first], None).region_id != new_mask("1", "3", [first], None).region_id
