"""Predictions as we write them and annotations as the editor saves them."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backend.errors import LabelingConfigError
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import no_target_phrases, prompt_entries, read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import (
    ProposedRegion,
    prediction,
    region_id_for,
    region_results,
    text_result,
)
from sspsam.images.brush_rle import brush_rle_to_mask, mask_to_brush_rle
from sspsam.images.masks import BoolMask

CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
BARE_CONFIG = LabelingConfig.parse(
    '<View><TextArea name="prompt" toName="image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="object"/></BrushLabels>'
    '<Image name="image" value="$image"/></View>'
)
Results = list[dict[str, Any]]


def mask_of(*box: int, hw: tuple[int, int] = (20, 30)) -> BoolMask:
    mask = np.zeros(hw, dtype=np.bool_)
    top, left, bottom, right = box
    mask[top:bottom, left:right] = True
    return mask


def proposed(region_id: str, phrase: str, mask: BoolMask, config: LabelingConfig = CONFIG) -> Results:
    return region_results(ProposedRegion(region_id, phrase, mask, 0.9), config)


def as_saved(results: Results) -> Results:
    """What the editor makes of an answer: it copies the geometry into every result of a region."""
    brushes = {result["id"]: result for result in results if result["type"] == "brushlabels"}
    saved = []
    for result in results:
        brush = brushes.get(result["id"])
        shape = {} if brush is None else {key: brush["value"][key] for key in ("format", "rle")}
        saved.append({**(brush or {}), **result, "value": {**shape, **result["value"]}, "origin": "manual"})
    return saved


def prompt(*texts: str) -> dict[str, Any]:
    assert CONFIG.prompt is not None
    return text_result(CONFIG.prompt, "prompt0001", texts)


def absent(*texts: str) -> dict[str, Any]:
    assert CONFIG.absent is not None
    return text_result(CONFIG.absent, "absent0001", texts)


def shape(kind: str, geometry: dict[str, Any], phrase: str) -> Results:
    """A region drawn with another tool, with its phrase, as the editor saves it."""
    common = {"id": "WR_laGtqWv", "to_name": "image", "original_width": 30, "original_height": 20}
    return [
        {**common, "from_name": kind, "type": kind, "value": geometry},
        {**common, "from_name": "phrase", "type": "textarea", "value": {**geometry, "text": [phrase]}},
    ]


def test_a_region_is_written_mask_first_then_phrase_under_one_id() -> None:
    mask = mask_of(3, 4, 9, 20)

    brush, phrase = proposed("r1", "the red ball", mask)

    assert (brush["type"], phrase["type"]) == ("brushlabels", "textarea")
    assert brush["id"] == phrase["id"] == "r1"
    assert (brush["type"], phrase["from_name"]) == ("brushlabels", "phrase")
    assert (brush["original_width"], brush["original_height"], brush["image_rotation"]) == (30, 20, 0)
    assert brush["value"]["brushlabels"] == ["object"]
    assert phrase["value"] == {"text": ["the red ball"]}
    np.testing.assert_array_equal(brush_rle_to_mask(brush["value"]["rle"], 20, 30), mask)


def test_without_a_phrase_tag_the_phrase_goes_into_the_note_and_comes_back() -> None:
    results = proposed("r1", "the red ball", mask_of(1, 1, 5, 5), BARE_CONFIG)

    assert [result["meta"] for result in results] == [{"text": ["the red ball"]}]
    (region,) = read_annotation({"result": as_saved(results)}, BARE_CONFIG).regions
    assert region.phrase == "the red ball"


def test_without_a_brush_nothing_can_be_written() -> None:
    image = '<Image name="image" value="$image"/>'
    with pytest.raises(LabelingConfigError, match="no <BrushLabels>"):
        proposed("r1", "cat", mask_of(1, 1, 5, 5), LabelingConfig.parse(f"<View>{image}</View>"))


def test_saved_regions_come_back_with_their_phrases() -> None:
    first, second = mask_of(0, 0, 5, 30), mask_of(8, 8, 20, 30)
    results = as_saved(
        [*proposed("a", "the red ball", first), *proposed("b", "the blue bar", second), absent("zebra")]
    )

    content = read_annotation({"result": results}, CONFIG)

    assert [(region.region_id, region.phrase, region.label) for region in content.regions] == [
        ("a", "the red ball", "object"),
        ("b", "the blue bar", "object"),
    ]
    for region, mask in zip(content.regions, (first, second), strict=True):
        np.testing.assert_array_equal(region.mask, mask)
    assert content.no_target_phrases == ("zebra",)
    assert content.problems == ()


@pytest.mark.parametrize("order", [1, -1])
def test_pairing_is_by_id_not_by_order(order: int) -> None:
    results = as_saved(
        [*proposed("a", "one", mask_of(0, 0, 5, 5)), *proposed("b", "two", mask_of(6, 6, 9, 9))]
    )

    content = read_annotation({"result": results[::order]}, CONFIG)

    assert {region.region_id: region.phrase for region in content.regions} == {"a": "one", "b": "two"}


def test_imported_results_without_an_id_are_regions_of_their_own() -> None:
    masks = [mask_of(0, 0, 5, 30), mask_of(8, 8, 20, 30), mask_of(6, 0, 7, 9)]
    results = as_saved([result for mask in masks for result in proposed("a", "the bar", mask)[:1]])
    for result in results:
        del result["id"]
    regions = read_annotation({"result": results}, CONFIG).regions
    assert len({region.region_id for region in regions}) == 3
    for region, mask in zip(regions, masks, strict=True):
        np.testing.assert_array_equal(region.mask, mask)


def test_a_mask_drawn_by_hand_has_a_phrase_or_none() -> None:
    drawn = {
        "id": "WR_laGtqWv",
        "from_name": "mask",
        "to_name": "image",
        "type": "brushlabels",
        "original_width": 30,
        "original_height": 20,
        "value": {"format": "rle", "rle": mask_to_brush_rle(mask_of(2, 2, 4, 4)), "brushlabels": ["object"]},
    }
    text = {"id": "WR_laGtqWv", "from_name": "phrase", "type": "textarea", "value": {"text": "the dot"}}

    assert read_annotation({"result": [drawn]}, CONFIG).regions[0].phrase is None
    assert read_annotation({"result": [drawn, text]}, CONFIG).regions[0].phrase == "the dot"


def test_leftovers_of_other_tools_are_ignored() -> None:
    leftover = {
        "id": "a",
        "from_name": "click",
        "type": "keypointlabels",
        "original_width": 30,
        "original_height": 20,
        "value": {"x": 1, "y": 2, "width": 0.2, "keypointlabels": ["refine"], "rle": [1, 2, 3]},
    }
    comment = {"id": "c", "from_name": "comment", "type": "textarea", "value": {"text": ["blurred"]}}
    results = [leftover, *as_saved(proposed("a", "one", mask_of(0, 0, 5, 5))), comment, "junk", {"id": "d"}]

    content = read_annotation({"result": results}, CONFIG)

    assert [(region.region_id, region.phrase) for region in content.regions] == [("a", "one")]
    assert content.no_target_phrases == ()
    assert content.problems == ()


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"original_width": 31}, "elements"),
        ({"original_width": None}, "without the size"),
        ({"value": {"rle": [1, 2], "brushlabels": ["object"]}}, "cut"),
        ({"value": {"rle": None}}, "not a list"),
    ],
)
def test_a_region_that_cannot_be_read_is_a_problem_and_the_others_stay(
    change: dict[str, Any], reason: str
) -> None:
    broken = proposed("bad", "one", mask_of(0, 0, 5, 5))
    broken[0] |= change
    results = [*broken, *proposed("good", "two", mask_of(0, 0, 5, 5))]

    content = read_annotation({"result": results}, CONFIG)

    assert [region.region_id for region in content.regions] == ["good"]
    (problem,) = content.problems
    assert problem.startswith("region bad: ")
    assert reason in problem


def test_a_mask_that_was_erased_is_no_region() -> None:
    results = proposed("a", "one", np.zeros((20, 30), dtype=np.bool_))

    assert read_annotation({"result": results}, CONFIG).regions == ()


@pytest.mark.parametrize("annotation", [{}, {"result": None}, {"result": []}])
def test_an_empty_annotation_says_nothing(annotation: dict[str, Any]) -> None:
    content = read_annotation(annotation, CONFIG)

    assert (content.regions, content.no_target_phrases, content.problems) == ((), (), ())


def test_only_confirmed_phrases_are_absent() -> None:
    entries = [
        "zebra",
        prompt_text.with_no_match("a boat"),
        "a tent  ∅ nothing here fits",
        prompt_text.with_failure("the dog", "the image is gone"),
        prompt_text.with_failure("", "the phrase is empty"),
        "Zebra",
        "the red ball",
        prompt_text.with_no_match("A Lion"),
    ]
    drawn = as_saved(proposed("a", "The red ball", mask_of(0, 0, 5, 5)))
    results = [*drawn, prompt(*entries), absent("a lion", "a wolf", "THE RED BALL", "A wolf")]

    content = read_annotation({"result": results}, CONFIG)

    assert content.no_target_phrases == ("a lion", "a wolf"), "a mask contradicts the third"
    assert content.found_nothing == ("a boat", "a tent")
    assert content.not_asked == ("zebra", "the dog")
    assert no_target_phrases({"result": results}, CONFIG) == content.no_target_phrases
    assert prompt_entries(results, CONFIG) == entries


@pytest.mark.parametrize(
    ("kind", "geometry"),
    [
        ("polygonlabels", {"points": [[1, 1], [9, 1], [9, 9]], "polygonlabels": ["object"]}),
        ("rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9, "rectanglelabels": ["object"]}),
        ("ellipselabels", {"x": 5, "y": 5, "radiusX": 2, "radiusY": 2, "ellipselabels": ["object"]}),
        ("bitmask", {"imageDataURL": "data:image/png;base64,"}),
        ("brush", {"format": "rle", "rle": [0]}),
    ],
)
def test_a_phrase_drawn_as_any_shape_is_not_absent(kind: str, geometry: dict[str, Any]) -> None:
    results = [*shape(kind, geometry, "the tree"), prompt("the tree", "the sun"), absent("The tree")]

    content = read_annotation({"result": results}, CONFIG)

    assert (content.no_target_phrases, content.found_nothing) == ((), ())
    assert content.not_asked == ("the sun",)


@pytest.mark.parametrize("place", [{"to_name": "second"}, {"item_index": 1}], ids=["image", "page"])
def test_masks_on_another_image_are_left_out_and_counted(place: dict[str, Any]) -> None:
    there = as_saved(
        [*proposed("b", "the ball", mask_of(0, 0, 9, 9)), *proposed("c", "a cup", mask_of(0, 0, 9, 9))]
    )
    results = [
        *as_saved(proposed("a", "one", mask_of(0, 0, 5, 5))),
        *(result | place for result in there),
        *(result | place for result in (prompt("a lion"), absent("a wolf"))),
        absent("the ball"),
    ]

    content = read_annotation({"result": results}, CONFIG)

    assert [region.region_id for region in content.regions] == ["a"]
    (problem,) = content.problems
    assert problem.startswith("2 masks on the image “")
    assert (content.no_target_phrases, content.not_asked) == (("the ball",), ())


def test_an_annotators_note_on_a_region_is_not_its_phrase() -> None:
    (drawn,) = proposed("WR_laGtqWv", "", mask_of(0, 0, 5, 5))
    noted = drawn | {"meta": {"text": ["too dark left"]}}
    ours = {**noted, "id": region_id_for("1", "2", "a ball"), "meta": {"text": ["a ball"]}}

    regions = read_annotation({"result": [noted, ours]}, CONFIG).regions

    assert [region.phrase for region in regions] == [None, "a ball"]


def test_a_note_on_a_region_whose_phrase_was_cleared_is_not_its_phrase() -> None:
    brush, phrase = proposed(region_id_for("1", "2", "a ball"), "a ball", mask_of(0, 0, 5, 5))
    noted = [each | {"meta": {"text": ["too dark left"]}} for each in (brush, phrase)]
    noted[1]["value"] = {**phrase["value"], "text": []}

    (region,) = read_annotation({"result": noted}, CONFIG).regions

    assert region.phrase is None


def test_the_same_phrase_on_a_task_is_the_same_region() -> None:
    first = region_id_for("1", "2", "the red ball")

    assert first == region_id_for("1", "2", " The  red ball")
    others = [("1", "2", "the red balls"), ("1", "3", "the red ball"), ("2", "2", "the red ball")]
    assert first not in {region_id_for(*other) for other in others}


def test_a_prediction_is_as_sure_as_its_least_sure_region() -> None:
    assert prediction([], "v1", [0.9, 0.4]) == {"result": [], "model_version": "v1", "score": 0.4}
    assert prediction([], "v1") == {"result": [], "model_version": "v1"}
