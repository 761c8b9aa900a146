"""Forms of polygons, bitmasks and boxes: phrases, corrections by hand, clicks, and what becomes of them."""

import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from playwright.sync_api import expect

from backend.labelstudio.annotations import Region, read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG
from finetune.data.records import RefRecord
from sspsam import Predictor, coco_rle_to_mask
from sspsam.images.masks import BoolMask, mask_to_box_xyxy
from tests.e2e.desk import Desk, Understood, connected_desk, understood_picture
from tests.e2e.editor import Editor
from tests.e2e.running_demo import Demo
from tests.e2e.truth import inside, overlap
from worker.records import Collection

KINDS = ("Polygon", "Bitmask", "Rectangle")
STEP = 0.08
"""How far things are dragged, in parts of the picture."""
COLLECTED_WITHIN_S = 60.0
CLEARLY_CHANGED = 0.98
"""IoU below which a correction was not lost to rounding."""


def form(*kinds: str) -> str:
    """The recommended form with these regions, each with a label of its own."""
    regions = "".join(
        f'<{kind}Labels name="{kind}" toName="image" smart="false"><Label value="{kind}"/></{kind}Labels>'
        for kind in kinds
    )
    config = RECOMMENDED_CONFIG.replace('whenLabelValue="object"', f'whenLabelValue="{",".join(kinds)}"')
    config = config.replace("<BrushLabels", f"{regions}<BrushLabels", 1)
    return re.sub(r"<BrushLabels.*?</BrushLabels>", "", config, flags=re.DOTALL)


@pytest.fixture(scope="module")
def understood_pair(demo: Demo, predictor: Predictor) -> Understood:
    return understood_picture(demo, predictor)


@pytest.fixture(scope="module", params=KINDS)
def desk(demo: Demo, understood_pair: Understood, request: pytest.FixtureRequest) -> Desk:
    kind = request.param
    return connected_desk(demo, kind, form(kind), [understood_pair.picture.path], understood_pair)


def test_a_region_is_corrected_by_hand_by_a_click_and_asked_for_again(
    desk: Desk, editor: Editor, tmp_path: Path
) -> None:
    task, (phrase, _) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task)
    proposed = editor.ask(phrase)
    expect(editor.region_of(phrase)).to_be_visible()
    editor.region_of(phrase).click()
    change(editor, proposed[0])
    editor.page.keyboard.press("Escape")
    editor.keep_picture(f"kinds-{proposed[0]['type']}.png")
    editor.submit()

    corrected = saved(desk, task)
    before = read(desk, proposed)
    assert (corrected.region_id, corrected.phrase) == (before.region_id, phrase)
    assert (corrected.kind, corrected.label) == (before.kind, before.kind.capitalize())
    assert (corrected.mask & ~before.mask).any(), "what was dragged"
    assert overlap(corrected.mask, before.mask) < CLEARLY_CHANGED
    record = collected(desk)
    assert (record.kind, record.is_box) == ("corrected", corrected.kind == "rectangle")
    assert record.mask_rle is not None
    np.testing.assert_array_equal(coco_rle_to_mask(record.mask_rle), corrected.mask)
    check_export(desk, corrected, tmp_path / "export.json")

    at = inside(before.mask)
    editor.open_task(desk.project, task)
    if corrected.kind == "bitmask":  # Label Studio takes the first click on one as its choice
        editor.take_smart_tool("key-point-tool", "refine")
        editor.click_at(at)
        clicked = editor.click_for_answer(at, "Alt")
    else:
        clicked = editor.point_at(at, "Control", "Alt")
    assert clicked[0]["id"] == corrected.region_id
    parts = [result for result in clicked if result["from_name"] in KINDS]  # a polygon for each
    expect(editor.page.get_by_role("treeitem")).to_have_count(len(parts))
    editor.page.keyboard.press("Escape")
    editor.update()
    np.testing.assert_array_equal(saved(desk, task).mask, read(desk, clicked).mask)

    editor.open_task(desk.project, task)
    for left in reversed(range(len(parts))):
        editor.region_of(phrase).first.click()
        editor.page.keyboard.press("Backspace")
        expect(editor.page.get_by_role("treeitem")).to_have_count(left)
    editor.ask(phrase)
    expect(editor.region_of(phrase)).to_be_visible()
    editor.update()
    again = saved(desk, task)
    assert again.region_id == before.region_id
    np.testing.assert_array_equal(again.mask, before.mask)


def test_the_label_selected_in_the_browser_comes_first(
    demo: Demo, understood_pair: Understood, editor: Editor
) -> None:
    """In a form of several kinds: of its regions by the form's order, for Label Studio does not send it."""
    desk = connected_desk(demo, "Kinds", form(*KINDS), [understood_pair.picture.path], understood_pair)
    task, (phrase, _) = next(desk.fresh), desk.masks[0]
    editor.open_task(desk.project, task)
    editor.page.locator(".lsf-label").filter(has_text="Rectangle").click()

    proposed = editor.ask(phrase)

    expect(editor.region_of(phrase)).to_be_visible()
    editor.page.keyboard.press("Escape")
    editor.submit()
    region = saved(desk, task)
    assert (region.kind, region.label, region.phrase) == ("bitmask", "Rectangle", phrase)
    np.testing.assert_array_equal(region.mask, read(desk, proposed).mask)


def change(editor: Editor, result: dict[str, Any]) -> None:
    """Moves the leftmost point of a polygon or the left side of a box outwards; paints beside a bitmask."""
    value = result["value"]
    if "points" in value:
        x, y = min(value["points"])
    elif "width" in value:
        x, y = value["x"], value["y"] + value["height"] / 2
    else:
        editor.page.get_by_label("bitmask-tool").first.click()
        x, y = 10.0, 10.0
    editor.drag((x / 100, y / 100), (max(x / 100 - STEP, 0.01), y / 100))


def read(desk: Desk, results: list[dict[str, Any]]) -> Region:
    content = read_annotation({"result": results}, desk.config)
    (region,) = [*content.regions, *content.boxes]
    return region


def saved(desk: Desk, task: int) -> Region:
    content = desk.saved(task)
    assert content.problems == ()
    (region,) = [*content.regions, *content.boxes]
    return region


def collected(desk: Desk) -> RefRecord:
    """The record of the desk's only annotation, once the worker has made it."""
    collection = Collection(desk.demo.folder / "models", desk.project)
    until_s = time.monotonic() + COLLECTED_WITHIN_S
    while not (records := collection.records()):
        assert time.monotonic() < until_s, "it was not collected"
        time.sleep(0.5)
    (record,) = records
    return record


def check_export(desk: Desk, region: Region, out: Path) -> None:
    desk.demo.sspsam("export", "--project", str(desk.project), "--format", "coco", "--out", str(out))
    exported = json.loads(out.read_text())
    (annotation,) = exported["annotations"]
    names = {category["id"]: category["name"] for category in exported["categories"]}
    assert (annotation["phrase"], names[annotation["category_id"]]) == (region.phrase, region.label)
    assert annotation["bbox"] == pytest.approx(box_xywh(region.mask), abs=1)
    if region.kind != "rectangle":
        np.testing.assert_array_equal(coco_rle_to_mask(annotation["segmentation"]), region.mask)


def box_xywh(mask: BoolMask) -> tuple[float, float, float, float]:
    x0, y0, x1, y1 = mask_to_box_xyxy(mask)
    return x0, y0, x1 - x0, y1 - y0
