"""As a person would: from phrases to masks, corrections, a better version, and labels that leave as COCO.

The tests follow one another on one running demo.
"""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import pytest
from playwright.sync_api import Page, expect
from pycocotools.coco import COCO

from backend.labelstudio.annotations import read_annotation
from finetune.data.records import RefRecord
from sspsam.images.masks import BoolMask
from sspsam.reading.several import may_have_several
from sspsam.version_store.store import VersionCard, VersionStore
from tests.e2e.editor import Editor
from tests.e2e.running_demo import FINETUNE_AFTER, Demo
from tests.e2e.truth import CONFIG, UNDERSTOOD_IOU, overlap, saved_regions, task_of, true_masks
from tests.waiting import wait_until
from worker.local.demo_pictures import Picture
from worker.local.supervisor import is_running
from worker.records import Collection

OUTLINE_POINTS = 48
BRUSH_LARGER = 3
"""Steps: a brush wide enough that a correction is plain to see."""
COLLECT_WITHIN_S = 60.0
TRAIN_WITHIN_S = 900.0
SWAP_WITHIN_S = 60.0
POLL_S = 0.5
VERDICTS = ("promoted", "rejected")


def version_of(demo: Demo) -> str:
    """The model version that Label Studio knows; it asks the backend for that."""
    return str(demo.client.ml_backends(demo.project)[0]["model_version"])


def outline(mask: BoolMask) -> list[tuple[float, float]]:
    """A way around a mask, in parts of the picture's width and height."""
    height, width = mask.shape
    rows, columns = np.nonzero(mask)
    middle_y, middle_x = rows.mean(), columns.mean()
    way = []
    for angle in np.linspace(0, 2 * np.pi, OUTLINE_POINTS):
        reach = np.arange(0, np.hypot(height, width))
        ys = np.clip(middle_y + reach * np.sin(angle), 0, height - 1).astype(int)
        xs = np.clip(middle_x + reach * np.cos(angle), 0, width - 1).astype(int)
        inside = np.flatnonzero(mask[ys, xs])
        if inside.size:  # a hollow thing may have its middle beside itself
            way.append(((xs[inside[-1]] + 0.5) / width, (ys[inside[-1]] + 0.5) / height))
    return way


def test_the_demo_says_what_to_open_and_what_to_type(demo: Demo, editor: Editor, page: Page) -> None:
    assert f"{demo.label_studio_url}/projects/{demo.project}/data" in demo.screen
    assert "demo@example.com" in demo.screen
    for phrase in demo.pictures[0].phrases:
        assert phrase.text in demo.screen
    assert len(list(demo.client.tasks(demo.project))) >= 24
    demo.open_start_page(page)
    expect(page.get_by_role("heading", name="Serving model")).to_be_visible()
    expect(page.get_by_text("No webhook received yet")).to_have_count(0)


def test_phrases_put_masks_on_what_they_name(demo: Demo, editor: Editor, understood: Picture) -> None:
    targets = true_masks(understood)
    nothing = understood.phrases[-1].text
    task = task_of(demo, understood)
    editor.open_task(demo.project, task)
    expect(editor.page.get_by_text(f"Try: {understood.phrases[0].text}")).to_be_visible()
    for count, phrase in enumerate(targets, start=1):
        assert editor.type_phrase(phrase), f"no mask for {phrase!r}"
        expect(editor.regions).to_have_count(count)
    editor.keep_picture("editor.png")
    assert not editor.type_phrase(nothing), f"a mask for {nothing!r}, which is not there"
    expect(editor.regions).to_have_count(len(targets))
    expect(editor.page.get_by_text(f"Nothing found for “{nothing}”")).to_be_visible()
    editor.submit()

    saved = saved_regions(demo, task)
    assert saved.keys() == targets.keys()
    assert all(overlap(saved[phrase], target) > UNDERSTOOD_IOU for phrase, target in targets.items())
    (annotation,) = demo.client.annotations(task)
    saved_phrases = read_annotation(annotation, CONFIG)
    assert (saved_phrases.no_target_phrases, saved_phrases.found_nothing) == ((), (nothing,))


@pytest.mark.timeout(1500)
def test_corrections_train_a_better_version(
    demo: Demo, editor: Editor, page: Page, understood: Picture
) -> None:
    before = version_of(demo)

    def records() -> list[RefRecord]:
        return Collection(demo.folder / "models", demo.project).records()

    def corrected() -> int:
        return sum(record.corrected for record in records())

    named = [picture for picture in demo.pictures if phrases_for_one_thing(picture)]
    for picture in (picture for picture in named if picture != understood):
        if corrected() >= FINETUNE_AFTER:
            break
        task = task_of(demo, picture)
        editor.open_task(demo.project, task)
        correct_all(editor, picture)
        editor.submit()
        wait_until(partial(is_collected, records, task), "the labels are collected", COLLECT_WITHIN_S, POLL_S)
    assert corrected() >= FINETUNE_AFTER

    store = VersionStore(demo.folder / "models", "ssp-sam-demo")

    def made() -> list[VersionCard]:
        return [card for card in store.list() if card.version_id != before and card.status in VERDICTS]

    wait_until(lambda: bool(made()), "a judged version", TRAIN_WITHIN_S, POLL_S)
    card = made()[-1]
    listed = demo.sspsam("versions", "list")
    assert card.version_id in listed
    assert card.status in listed
    demo.open_start_page(page)
    expect(page.get_by_text(card.version_id).first).to_be_visible()
    expect(page.get_by_text(card.reason).first).to_be_visible()
    expect(page.get_by_role("img", name=f"Loss over the steps of {card.version_id}")).to_be_visible()
    editor.keep_picture("start-page.jpg")

    if card.status == "rejected":  # so few strokes need not make it better; a person may overrule the gate
        assert version_of(demo) == before
        demo.sspsam("versions", "promote", card.version_id)
    wait_until(lambda: version_of(demo) == card.version_id, "the new version", SWAP_WITHIN_S, POLL_S)
    assert editor.version_in_test_request(demo.project) == card.version_id


def is_collected(records: Callable[[], list[RefRecord]], task: int) -> bool:
    return any(record.task == task for record in records())


def phrases_for_one_thing(picture: Picture) -> list[str]:
    """Phrases with one target that is one region; that of "cherries" may be one for each."""
    named = [said.text for said in picture.phrases if len(said.targets) == 1]
    return [phrase for phrase in named if not may_have_several(phrase)]


def correct_all(editor: Editor, picture: Picture) -> None:
    """Types a picture's phrases for one thing, and widens each mask by an outline."""
    masks = true_masks(picture)
    for phrase in phrases_for_one_thing(picture):
        if editor.type_phrase(phrase):
            editor.brush_over(phrase, outline(masks[phrase]), BRUSH_LARGER)


def test_labels_leave_as_coco(demo: Demo, tmp_path: Path) -> None:
    out = tmp_path / "labels.json"
    demo.sspsam("export", "--project", str(demo.project), "--format", "coco", "--out", str(out))
    exported = COCO(str(out))
    found: dict[tuple[int, str], BoolMask] = {}
    for annotation in exported.anns.values():
        task = exported.imgs[annotation["image_id"]]["label_studio_task"]
        found[task, annotation["phrase"]] = exported.annToMask(annotation).astype(bool)
    tasks: list[dict[str, Any]] = [task for task in demo.client.tasks(demo.project) if task["annotations"]]
    expected = {
        (int(task["id"]), phrase): mask
        for task in tasks
        for phrase, mask in saved_regions(demo, int(task["id"])).items()
    }
    assert found.keys() == expected.keys()
    assert len(expected) > FINETUNE_AFTER
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_ctrl_c_ends_everything_and_the_next_start_finds_it_again(demo: Demo) -> None:
    assert demo.process is not None
    family = psutil.Process(demo.process.pid).children(recursive=True)
    annotated = {task["id"] for task in demo.client.tasks(demo.project) if task["annotations"]}
    version = version_of(demo)
    project = demo.project

    assert demo.end() == 130
    assert len(family) >= 5
    assert not [process for process in family if is_running(process)]

    demo.start()
    assert demo.starts[-1] < demo.starts[0], "nothing is made again"
    assert demo.project == project
    assert {task["id"] for task in demo.client.tasks(demo.project) if task["annotations"]} == annotated
    assert version_of(demo) == version


def test_the_death_of_one_part_ends_all_and_is_told_and_the_next_start_works(demo: Demo) -> None:
    assert demo.process is not None
    family = psutil.Process(demo.process.pid).children(recursive=True)
    redis = next(process for process in family if "valkey-server" in process.cmdline()[0])
    redis.kill()
    assert demo.process.wait(60) == 1
    assert "redis exited unexpectedly (killed by SIGKILL)" in demo.screen
    assert "Last lines of its log" in demo.screen
    assert not [process for process in family if is_running(process)]

    demo.start()
    assert version_of(demo) in demo.sspsam("versions", "list")
