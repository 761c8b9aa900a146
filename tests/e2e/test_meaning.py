"""What a person meant, in the real editor: confirmed absences, other text areas, shapes, renamed masks."""

import re

import pytest
from playwright.sync_api import Locator, expect

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.prompt_text import denial_of
from sspsam import Predictor
from tests.e2e.desk import Desk, make_desk
from tests.e2e.editor import Editor, masks_of, place
from tests.e2e.running_demo import Demo
from worker.records import Collection

NOTES = '<TextArea name="notes" toName="image" rows="1" editable="false"/>'
SHAPES = RECOMMENDED_CONFIG.replace(
    "<Image ",
    f'<View className="notes">{NOTES}</View>\n'
    '<RectangleLabels name="outline" toName="image" smart="false"><Label value="area"/></RectangleLabels>\n'
    "  <Image ",
).replace('whenLabelValue="object"', 'whenLabelValue="object,area"')


@pytest.fixture(scope="module")
def desk(demo: Demo, predictor: Predictor) -> Desk:
    return make_desk(demo, predictor, "Meaning", RECOMMENDED_CONFIG, 4)


@pytest.fixture(scope="module")
def desk_with_shapes(demo: Demo, predictor: Predictor) -> Desk:
    return make_desk(demo, predictor, "Shapes", SHAPES, 1)


def absences(editor: Editor) -> Locator:
    return editor.page.locator(".absent").get_by_test_id("htx-textbox-content")


def hint(editor: Editor, about: str) -> Locator:
    return editor.page.locator(f".hint-{about}")


def test_an_absence_is_a_label_once_a_person_confirms_it(desk: Desk, editor: Editor) -> None:
    task = next(desk.fresh)
    editor.open_task(desk.project, task)

    assert not editor.type_phrase(desk.nothing)
    denial = denial_of(desk.nothing)
    expect(editor.status).to_contain_text(f"Enter “{denial}”")
    expect(absences(editor)).to_have_count(0)
    editor.submit()
    assert desk.saved(task).no_target_phrases == ()
    assert desk.saved(task).found_nothing == (desk.nothing,)

    editor.open_task(desk.project, task)
    assert masks_of(editor.ask(denial)) == {}
    expect(absences(editor)).to_have_text([desk.nothing])
    expect(editor.unmatched_phrases).to_have_count(0)
    expect(editor.status).to_have_count(0)
    editor.keep_picture("annotate-absent.jpg")
    editor.update()
    assert desk.saved(task).no_target_phrases == (desk.nothing,)

    editor.page.locator(".absent li button, .absent [aria-label*=elete]").last.click()
    expect(absences(editor)).to_have_count(0)
    editor.update()
    assert desk.saved(task).no_target_phrases == (), "undone"


def test_phrases_typed_with_the_model_off_were_not_looked_for(desk: Desk, editor: Editor) -> None:
    task, ((one, _), (other, _)) = next(desk.fresh), desk.masks
    editor.open_task(desk.project, task)
    expect(hint(editor, "off")).to_be_hidden()
    editor.switch("Auto-Annotation", on=False)
    expect(hint(editor, "off")).to_be_visible()
    for phrase in (one, desk.nothing):
        editor.prompt.fill(phrase)
        editor.prompt.press("Enter")
    expect(editor.unmatched_phrases).to_have_text([one, desk.nothing])
    editor.submit()
    assert desk.saved(task).not_asked == (one, desk.nothing)

    editor.switch("Auto-Annotation", on=True)
    found = masks_of(editor.ask(other))

    assert len(found) == 2, "the earlier phrase is answered, too"
    expect(editor.unmatched_phrases).to_have_text([f"{desk.nothing} ∅ nothing found"])


def test_a_mask_that_waits_is_announced(desk: Desk, editor: Editor) -> None:
    editor.open_task(desk.project, next(desk.fresh), accept_at_once=False)
    expect(hint(editor, "waiting")).to_be_hidden()

    editor.ask(desk.masks[0][0])

    expect(hint(editor, "waiting")).to_be_visible()
    editor.accept_suggestions()
    expect(hint(editor, "waiting")).to_be_hidden()


def test_a_renamed_mask_survives_the_old_phrase(desk: Desk, editor: Editor) -> None:
    task, (phrase, _) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task)
    assert editor.type_phrase(phrase)
    text = editor.regions.get_by_role("textbox")
    text.fill("the renamed thing")
    text.press("Enter")

    editor.ask(phrase)

    expect(editor.regions).to_have_count(2)
    expect(editor.region_of("the renamed thing")).to_be_visible()
    expect(editor.region_of(phrase)).to_be_visible()
    editor.ask(phrase)
    expect(editor.regions).to_have_count(2)


def test_notes_and_shapes_are_neither_phrases_nor_absences(
    desk_with_shapes: Desk, editor: Editor, demo: Demo
) -> None:
    desk = desk_with_shapes
    task = next(desk.fresh)
    editor.open_task(desk.project, task)
    notes = editor.page.locator(".notes").get_by_test_id("textarea-input")
    with editor.answer() as answer:
        notes.fill("too dark left")
        notes.press("Enter")
    assert answer == [[]], "Label Studio asks, and nothing is answered"
    assert not editor.type_phrase(desk.nothing)
    expect(editor.page.locator(".notes").get_by_test_id("htx-textbox-content")).to_have_text("too dark left")

    draw_rectangle(editor)
    wanted = editor.page.get_by_role("treeitem").get_by_role("textbox").last
    wanted.fill(desk.nothing)
    wanted.press("Enter")
    editor.submit()

    (annotation,) = demo.client.annotations(task)
    assert "rectanglelabels" in {result["type"] for result in annotation["result"]}
    saved = read_annotation(annotation, desk.config)
    assert (saved.regions, saved.no_target_phrases, saved.found_nothing, saved.not_asked) == ((), (), (), ())
    assert Collection(demo.folder / "models", desk.project).records() == []


def draw_rectangle(editor: Editor) -> None:
    editor.page.keyboard.press("Escape")
    editor.page.locator(".lsf-label").filter(has_text=re.compile("^area")).click()
    frame = editor.picture_frame()
    editor.page.mouse.move(*place(frame, (0.2, 0.2)))
    editor.page.mouse.down()
    editor.page.mouse.move(*place(frame, (0.5, 0.5)), steps=4)
    editor.page.mouse.up()
