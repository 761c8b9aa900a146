"""Pre-labelled tasks as annotators see them, and predictions requested by a project lead."""

import numpy as np
import pytest
from playwright.sync_api import expect

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam import Predictor
from tests.e2e.desk import Desk, make_desk
from tests.e2e.editor import LONG_MS, Editor, masks_of
from tests.e2e.running_demo import Demo
from tests.e2e.truth import UNDERSTOOD_IOU, inside, overlap
from tests.waiting import wait_until

COPIES = 3


@pytest.fixture(scope="module")
def desk(demo: Demo, predictor: Predictor) -> Desk:
    return make_desk(demo, predictor, "Pre-labelled", RECOMMENDED_CONFIG, COPIES)


def test_annotators_begin_with_what_was_found(desk: Desk, editor: Editor) -> None:
    (one, one_mask), (other, _) = desk.masks
    task, *_ = sorted(int(task["id"]) for task in desk.demo.client.tasks(desk.project))
    phrases = f"{one}; {other}; {desk.nothing}"
    told = desk.demo.sspsam("prelabel", "--project", str(desk.project), "--phrase", phrases)
    assert f"predictions: {COPIES} with {2 * COPIES} masks" in told

    editor.label_all_tasks(desk.project)

    expect(editor.regions).to_have_count(2)
    expect(editor.region_of(one)).to_be_visible()
    expect(editor.region_of(other)).to_be_visible()
    expect(editor.unmatched_phrases).to_have_count(0)
    (prediction,) = desk.demo.client.predictions(task)
    proposed = read_annotation(prediction, desk.config)
    scores = {result["id"]: result["score"] for result in prediction["result"] if "score" in result}
    for region in proposed.regions:
        assert region.phrase is not None
        expect(editor.region_of(region.phrase)).to_contain_text(f"{scores[region.region_id]:.2f}")
    editor.submit()
    saved = desk.saved(task)
    assert (saved.no_target_phrases, saved.found_nothing, saved.not_asked) == ((), (), ())
    assert [region.region_id for region in saved.regions] == [one.region_id for one in proposed.regions]
    for before, after in zip(proposed.regions, saved.regions, strict=True):
        assert (after.phrase, after.label) == (before.phrase, before.label)
        np.testing.assert_array_equal(after.mask, before.mask)
    assert overlap(next(it.mask for it in saved.regions if it.phrase == one), one_mask) > UNDERSTOOD_IOU


def test_a_click_corrects_what_was_found(desk: Desk, editor: Editor) -> None:
    """In the task as it is opened from the list, where Label Studio shows predictions, too."""
    (one, one_mask), (other, _) = desk.masks
    task = sorted(int(task["id"]) for task in desk.demo.client.tasks(desk.project))[1]
    (prediction,) = desk.demo.client.predictions(task)
    before = {region.phrase: region for region in read_annotation(prediction, desk.config).regions}
    editor.open_task(desk.project, task)
    expect(editor.regions).to_have_count(2)

    corrected = masks_of(editor.point_at(inside(one_mask), "Control", "Alt"))

    assert list(corrected) == [before[one].region_id]
    expect(editor.regions).to_have_count(2)
    expect(editor.region_of(one)).to_be_visible()
    editor.submit()
    after = {region.phrase: region for region in desk.saved(task).regions}
    assert after.keys() == {one, other}
    assert (after[one].mask != before[one].mask).any()
    np.testing.assert_array_equal(after[other].mask, before[other].mask)


def test_retrieve_predictions_in_the_data_manager(demo: Demo, predictor: Predictor, editor: Editor) -> None:
    desk = make_desk(demo, predictor, "Retrieved", RECOMMENDED_CONFIG, 2)
    (one, _), _ = desk.masks
    first, second = desk.fresh
    client = demo.client
    client.update_task(first, {**client.task(first)["data"], "phrase": one})

    editor.retrieve_predictions(desk.project)

    wait_until(lambda: client.predictions(second), "predictions", LONG_MS / 1000)
    (found,), (none,) = client.predictions(first), client.predictions(second)
    (region,) = read_annotation(found, desk.config).regions
    assert region.phrase == one
    assert none["result"] == []
