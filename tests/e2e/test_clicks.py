"""Masks corrected by clicks and boxes, as the browser sends them: in place, with their phrase.

On projects of their own beside the demo's, whose tasks all show one picture.
"""

import re
from collections.abc import Sequence

import cv2
import numpy as np
import pytest
from playwright.sync_api import expect

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam import Predictor
from sspsam.images.brush_rle import brush_rle_to_mask
from sspsam.images.masks import BoolMask, mask_to_box_xyxy
from tests.e2e.desk import Desk, make_desk
from tests.e2e.editor import Editor, masks_of
from tests.e2e.running_demo import Demo
from tests.e2e.truth import UNDERSTOOD_IOU, inside, overlap

LABELLED = re.sub(
    r"<KeyPoint .*?/>\s*<Rectangle .*?/>",
    '<KeyPointLabels name="click" toName="image" smart="true" smartOnly="true"><Label value="refine"/>'
    "</KeyPointLabels>"
    '<RectangleLabels name="box" toName="image" smart="true" smartOnly="true"><Label value="frame"/>'
    "</RectangleLabels>",
    RECOMMENDED_CONFIG,
    flags=re.DOTALL,
)
"""As forms were before: the gestures have labels, which are chosen before each."""
COPIES = 9


@pytest.fixture(scope="module")
def desk(demo: Demo, predictor: Predictor) -> Desk:
    return make_desk(demo, predictor, "Clicks", RECOMMENDED_CONFIG, COPIES)


@pytest.fixture(scope="module", params=[RECOMMENDED_CONFIG, LABELLED], ids=["recommended", "labelled"])
def desk_with_boxes(demo: Demo, predictor: Predictor, request: pytest.FixtureRequest) -> Desk:
    return make_desk(demo, predictor, "Boxes", request.param, 3)


def box_around(mask: BoolMask) -> tuple[float, float, float, float]:
    height, width = mask.shape
    x0, y0, x1, y1 = mask_to_box_xyxy(mask)
    return x0 / width, y0 / height, x1 / width, y1 / height


def near_the_top(mask: BoolMask) -> tuple[float, float]:
    """A place a few pixels within a mask, in parts of the picture."""
    height, width = mask.shape
    rows, columns = np.nonzero(cv2.erode(mask.astype(np.uint8), np.ones((9, 9), np.uint8)))
    return (columns[0] + 0.5) / width, (rows[0] + 0.5) / height


def is_on(mask: BoolMask, place_xy: tuple[float, float]) -> bool:
    height, width = mask.shape
    return bool(mask[int(place_xy[1] * height), int(place_xy[0] * width)])


def decoded(rle: Sequence[int], like: BoolMask) -> BoolMask:
    return brush_rle_to_mask(list(rle), *like.shape)


@pytest.mark.parametrize("at_once", [True, False], ids=["accepted at once", "accepted by hand"])
def test_a_click_corrects_a_mask_in_place(desk: Desk, editor: Editor, at_once: bool) -> None:
    task, (phrase, truth) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task, at_once)
    proposed = masks_of(editor.ask(phrase))
    if not at_once:
        editor.keep_picture("annotate-accept.jpg")
        editor.accept_suggestions()
    expect(editor.region_of(phrase)).to_be_visible()

    at = near_the_top(decoded(*proposed.values(), truth))
    corrected = masks_of(editor.point_at(at, "Control", "Alt"))
    if not at_once:
        editor.accept_suggestions()
    else:
        editor.keep_picture("annotate-click.jpg")

    expect(editor.regions).to_have_count(1)
    expect(editor.region_of(phrase)).to_be_visible()
    editor.submit()
    assert list(corrected) == list(proposed), "the region keeps its id"
    (saved,) = desk.saved(task).regions
    assert [saved.region_id, saved.phrase] == [*proposed, phrase]
    np.testing.assert_array_equal(saved.mask, decoded(*corrected.values(), truth))
    assert not is_on(saved.mask, at)
    assert overlap(saved.mask, truth) > UNDERSTOOD_IOU


@pytest.mark.parametrize("why", ["deleted", "refused", "in another annotation"])
def test_a_click_where_a_mask_was_makes_a_new_object(desk: Desk, editor: Editor, why: str) -> None:
    """At once, before Label Studio has saved a draft."""
    task, (phrase, truth) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task, accept_at_once=why != "refused")
    proposed = masks_of(editor.ask(phrase))
    if why == "refused":
        editor.refuse_suggestions()
    else:
        expect(editor.region_of(phrase)).to_be_visible()
    if why == "deleted":
        editor.region_of(phrase).click()
        editor.page.keyboard.press("Backspace")
        expect(editor.regions).to_have_count(0)
    if why == "in another annotation":
        editor.open_task(desk.project, task)

    results = editor.point_at(inside(truth), "Control")

    assert masks_of(results)
    assert not masks_of(results).keys() & proposed.keys()
    assert "phrase" not in {result["from_name"] for result in results}


def test_a_click_with_alt_says_not_this(desk: Desk, editor: Editor) -> None:
    task, (phrase, truth) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task)
    proposed = masks_of(editor.ask(phrase))
    expect(editor.region_of(phrase)).to_be_visible()

    with editor.page.expect_request("**/interactive-annotating") as request:
        corrected = masks_of(editor.point_at(inside(truth), "Control", "Alt"))

    (click,) = request.value.post_data_json["context"]["result"]
    assert click["is_positive"] is False
    assert list(corrected) == list(proposed)
    assert corrected != proposed
    expect(editor.regions).to_have_count(1)
    expect(editor.region_of(phrase)).to_be_visible()


def test_a_click_elsewhere_makes_a_region_that_wants_its_phrase(desk: Desk, editor: Editor) -> None:
    task, ((phrase, _), (other, elsewhere)) = next(desk.fresh), desk.masks
    editor.open_task(desk.project, task)
    assert editor.type_phrase(phrase)

    added = masks_of(editor.point_at(inside(elsewhere)))

    expect(editor.regions).to_have_count(2)
    editor.page.get_by_test_id("bottombar-submit-button").click()
    expect(editor.page.get_by_text("Every mask needs its phrase")).to_be_visible()
    editor.page.get_by_role("button", name="OK").click()
    assert desk.demo.client.annotations(task) == []
    wanted = editor.regions.last.get_by_role("textbox")
    wanted.fill(other)
    wanted.press("Enter")
    editor.submit()
    saved = {region.phrase: region.mask for region in desk.saved(task).regions}
    assert saved.keys() == {phrase, other}
    np.testing.assert_array_equal(saved[other], decoded(*added.values(), elsewhere))


def test_clicks_that_are_left_over_do_not_block_submit(desk: Desk, editor: Editor) -> None:
    task, (phrase, truth) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task, accept_at_once=False)
    (proposed,) = masks_of(editor.ask(phrase)).values()
    editor.accept_suggestions()
    editor.point_at(inside(truth), "Control")

    editor.submit()

    (annotation,) = desk.demo.client.annotations(task)
    assert "keypoint" in {result["type"] for result in annotation["result"]}, "the click was left over"
    (saved,) = desk.saved(task).regions
    assert saved.phrase == phrase
    np.testing.assert_array_equal(saved.mask, decoded(proposed, truth))


def test_phrases_in_one_entry_are_answered_together(desk: Desk, editor: Editor) -> None:
    task, ((one, one_mask), (other, _)) = next(desk.fresh), desk.masks
    editor.open_task(desk.project, task)
    editor.prompt.fill(f"{one}; {other}")
    editor.keep_picture("annotate-type.jpg")

    proposed = masks_of(editor.ask(f"{one}; {other} ;{desk.nothing}"))

    expect(editor.regions).to_have_count(2)
    expect(editor.region_of(one)).to_be_visible()
    expect(editor.region_of(other)).to_be_visible()
    expect(editor.unmatched_phrases).to_have_text([f"{desk.nothing} ∅ nothing found"])
    expect(editor.status).to_contain_text(f"Nothing found for “{desk.nothing}”.")
    editor.keep_picture("annotate-nothing.jpg")
    masks = (decoded(rle, one_mask) for rle in proposed.values())
    before = dict(zip([one, other], masks, strict=True))
    editor.brush_over(one, [inside(one_mask), inside(one_mask & ~before[one])])
    editor.region_of(one).click()
    editor.keep_picture("annotate-brush.jpg")
    editor.submit()
    saved = desk.saved(task)
    after = {str(region.phrase): region.mask for region in saved.regions}
    assert (saved.no_target_phrases, saved.found_nothing) == ((), (desk.nothing,))
    assert after.keys() == before.keys()
    assert (after[one] & ~before[one]).any(), "the stroke"
    np.testing.assert_array_equal(after[other], before[other])


def test_boxes_correct_and_add(desk_with_boxes: Desk, editor: Editor) -> None:
    desk = desk_with_boxes
    (phrase, truth), (_, elsewhere) = desk.masks
    editor.open_task(desk.project, next(desk.fresh))
    proposed = masks_of(editor.ask(phrase))
    expect(editor.region_of(phrase)).to_be_visible()

    corrected = masks_of(editor.draw_box(box_around(truth), "Control"))
    expect(editor.regions).to_have_count(1)
    added = masks_of(editor.draw_box(box_around(elsewhere), "Control"))

    assert list(corrected) == list(proposed)
    assert overlap(decoded(*corrected.values(), truth), truth) > UNDERSTOOD_IOU
    assert added.keys() != corrected.keys()
    assert overlap(decoded(*added.values(), truth), elsewhere) > UNDERSTOOD_IOU
    expect(editor.regions).to_have_count(2)
    expect(editor.region_of(phrase)).to_be_visible()


def test_two_boxes_before_the_first_is_accepted_are_two(desk_with_boxes: Desk, editor: Editor) -> None:
    desk = desk_with_boxes
    (_, one), (_, other) = desk.masks
    editor.open_task(desk.project, next(desk.fresh), accept_at_once=False)
    first = masks_of(editor.draw_box(box_around(one), "Control"))

    both = masks_of(editor.draw_box(box_around(other), "Control"))
    editor.accept_suggestions()

    assert first.keys() < both.keys()
    assert len(both) == 2
    expect(editor.regions).to_have_count(2)
