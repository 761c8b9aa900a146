"""Corrections of regions of every kind: measured, and learned from as far as they are masks."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from backend.labelstudio.annotations import AnnotationContent, read_annotation
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, as_held, region_results
from finetune.data.records import RefRecord
from sspsam import coco_rle_to_mask, mask_to_coco_rle
from sspsam.images.masks import mask_to_box_xyxy
from worker.corrections.feedback_counts import tally_annotation
from worker.records import AnnotationSource, ImageFacts, ServedMask, make_records, sample_key

Json = dict[str, Any]
HW = (60, 80)
SOURCE = AnnotationSource(1, 2, 3, "2026-01-01T00:00:00Z", ImageFacts("a" * 64, "/a.png", HW))


def form(kind: str) -> LabelingConfig:
    return LabelingConfig.parse(
        '<View><Image name="image" value="$image"/><TextArea name="phrase" toName="image" perRegion="true"/>'
        f'<{kind}Labels name="shape" toName="image"><Label value="cat"/></{kind}Labels></View>'
    )


def proposed(kind: str) -> tuple[LabelingConfig, list[Json], dict[str, ServedMask]]:
    """What is displayed for a round mask, and what is stored as the proposal."""
    rows, columns = np.ogrid[: HW[0], : HW[1]]
    mask = ((rows - 30) / 20) ** 2 + ((columns - 40) / 30) ** 2 < 1
    config = form(kind)
    held = as_held(ProposedRegion("0123456789ab", "a cat", mask, 0.9), config)
    served = {held.region_id: ServedMask(mask_to_coco_rle(held.mask), "v1", phrase="a cat")}
    return config, region_results(held, config), served


def content_of(results: list[Json], config: LabelingConfig) -> AnnotationContent:
    content = read_annotation({"result": results}, config)
    assert content.problems == ()
    return content


def edited(results: list[Json], kind: str) -> list[Json]:
    """As an annotator changes it: a point or a side is moved."""
    changed = copy.deepcopy(results)
    value = changed[0]["value"]
    if kind == "Polygon":
        value["points"][0] = [10, 10]
    else:
        value["width"] -= 10
    return changed


def counts(content: AnnotationContent, config: LabelingConfig, served: dict[str, ServedMask]) -> Json:
    (tally,) = tally_annotation(content, served.get, [], {}, config, "v2")
    return {"version": tally.version, "accepted": tally.accepted, "edited": tally.edited, "iou": tally.iou}


@pytest.mark.parametrize("kind", ["Brush", "Bitmask", "Polygon"])
def test_a_mask_that_was_submitted_as_proposed_is_accepted(kind: str) -> None:
    config, results, served = proposed(kind)
    content = content_of(results, config)

    (record,) = make_records(content, SOURCE, served.get, lambda phrase: phrase)

    assert (record.kind, record.label, record.phrase) == ("accepted", "cat", "a cat")
    assert counts(content, config, served) == {"version": "v1", "accepted": 1, "edited": 0, "iou": 1}


def test_a_polygon_that_was_changed_is_a_corrected_mask() -> None:
    config, results, served = proposed("Polygon")
    content = content_of(edited(results, "Polygon"), config)

    (record,) = make_records(content, SOURCE, served.get, lambda phrase: phrase)

    assert record.kind == "corrected"
    assert record.mask_rle is not None
    np.testing.assert_array_equal(coco_rle_to_mask(record.mask_rle), content.regions[0].mask)
    assert counts(content, config, served)["edited"] == 1


def test_an_object_in_several_polygons_is_one_label() -> None:
    mask = np.zeros(HW, np.bool_)
    mask[5:25, 5:25] = mask[30:55, 40:75] = True
    config = form("Polygon")
    held = as_held(ProposedRegion("0123456789ab", "a cat", mask, 0.9), config)
    served = {held.region_id: ServedMask(mask_to_coco_rle(held.mask), "v1", phrase="a cat")}
    content = content_of(region_results(held, config), config)

    (record,) = make_records(content, SOURCE, served.get, lambda phrase: phrase)

    assert (record.kind, record.region, record.objects) == ("accepted", "0123456789ab", ())
    assert counts(content, config, served)["accepted"] == 1


def several(*regions: tuple[str, tuple[int, int, int, int]]) -> AnnotationContent:
    """Masks and boxes (x0, y0, x1, y1) with the phrase "the cats"."""
    results = []
    for number, (kind, (x0, y0, x1, y1)) in enumerate(regions):
        mask = np.zeros(HW, np.bool_)
        mask[y0:y1, x0:x1] = True
        if kind == "Polygon":
            mask[y0, x0] = False
        config = form(kind)
        written = region_results(ProposedRegion(f"region {number}", "the cats", mask, 0.9), config)
        results += [{**result, "from_name": kind} if "score" in result else result for result in written]
    return content_of(results, LabelingConfig.parse(BOTH))


BOTH = (
    '<View><Image name="image" value="$image"/><TextArea name="phrase" toName="image" perRegion="true"/>'
    '<PolygonLabels name="Polygon" toName="image"><Label value="cat"/></PolygonLabels>'
    '<RectangleLabels name="Rectangle" toName="image" smart="false"><Label value="cat"/></RectangleLabels>'
    "</View>"
)


@pytest.mark.parametrize(
    ("regions", "is_box", "box_xyxy", "objects"),
    [
        ([("Rectangle", (5, 5, 20, 20)), ("Rectangle", (40, 30, 70, 50))], True, (5, 5, 70, 50), 2),
        ([("Polygon", (5, 5, 20, 20)), ("Polygon", (40, 30, 70, 50))], False, (5, 5, 70, 50), 2),
        ([("Polygon", (5, 5, 20, 20)), ("Rectangle", (4, 4, 21, 21))], False, (5, 5, 20, 20), 0),
        ([("Polygon", (5, 5, 20, 20)), ("Rectangle", (40, 30, 70, 50))], True, (5, 5, 70, 50), 2),
    ],
    ids=["boxes", "masks", "a box around the mask", "a mask and a box of another object"],
)
def test_a_phrase_is_one_label_of_all_its_objects(
    regions: list[tuple[str, tuple[int, int, int, int]]],
    is_box: bool,
    box_xyxy: tuple[int, int, int, int],
    objects: int,
) -> None:
    content = several(*regions)

    (record,) = make_records(content, SOURCE, {}.get, lambda phrase: phrase)

    assert (record.is_box, len(record.objects)) == (is_box, objects)
    assert record.mask_rle is not None
    assert mask_to_box_xyxy(coco_rle_to_mask(record.mask_rle)) == box_xyxy


def test_phrases_that_differ_in_case_are_one_label() -> None:
    content = several(("Polygon", (5, 5, 20, 20)), ("Polygon", (40, 30, 70, 50)))
    first, second = content.regions
    content = replace(content, regions=(first, replace(second, phrase="The  CATS")))

    (record,) = make_records(content, SOURCE, {}.get, lambda phrase: phrase)

    assert (record.phrase, len(record.objects)) == ("the cats", 2)


@pytest.mark.parametrize("change", [False, True])
def test_boxes_are_measured_and_learned_from_as_boxes(change: bool) -> None:
    config, results, served = proposed("Rectangle")
    content = content_of(edited(results, "Rectangle") if change else results, config)

    (record,) = make_records(content, SOURCE, served.get, lambda phrase: phrase)

    assert (record.is_box, record.kind) == (True, "corrected" if change else "accepted")
    assert RefRecord.from_dict(record.to_dict()) == record
    assert sample_key(record) != sample_key(replace(record, is_box=False))
    found = counts(content, config, served)
    assert (found["accepted"], found["edited"]) == (int(not change), int(change))
    assert (0.5 < found["iou"] < 1) if change else found["iou"] == 1
