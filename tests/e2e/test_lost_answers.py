"""Answers lost because the editor reloads a task while they are in flight or before a save."""

import re

import pytest
from playwright.sync_api import expect

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam import Predictor
from tests.e2e.desk import Desk, make_desk
from tests.e2e.editor import LONG_MS, Editor, masks_of
from tests.e2e.running_demo import Demo


@pytest.fixture(scope="module")
def desk(demo: Demo, predictor: Predictor) -> Desk:
    return make_desk(demo, predictor, "Lost answers", RECOMMENDED_CONFIG, 2)


def test_a_phrase_typed_again_after_its_answer_was_lost_gives_one_region(desk: Desk, editor: Editor) -> None:
    task, (phrase, _) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task)
    with editor.page.expect_request("**/interactive-annotating"):
        editor.prompt.fill(phrase)
        editor.prompt.press("Enter")
    editor.page.reload()
    editor.open_task(desk.project, task)
    expect(editor.regions).to_have_count(0)

    proposed = masks_of(editor.ask(phrase))

    expect(editor.regions).to_have_count(1)
    expect(editor.region_of(phrase)).to_be_visible()
    editor.submit()
    (saved,) = desk.saved(task).regions
    assert [saved.region_id, saved.phrase] == [*proposed, phrase]


def test_a_phrase_typed_again_on_its_draft_gives_one_region(desk: Desk, editor: Editor) -> None:
    """The answer was saved after all; the annotator, who is not sure, types the phrase again."""
    task, (phrase, _) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task)
    with editor.page.expect_response(
        lambda response: "/drafts" in response.url and response.request.method == "POST", timeout=LONG_MS
    ):
        (region,) = masks_of(editor.ask(phrase))
    editor.page.reload()
    editor.open_task(desk.project, task)
    expect(editor.region_of(phrase)).to_be_visible()

    assert list(masks_of(editor.ask(phrase))) == [region]

    expect(editor.regions).to_have_count(1)
    expect(editor.page.get_by_text(re.compile(r"^\d+ suggestions?$"))).to_have_count(0)
    editor.submit()
    (saved,) = desk.saved(task).regions
    assert [saved.region_id, saved.phrase] == [region, phrase]
