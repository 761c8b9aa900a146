"""Regions of every kind: what a phrase is answered with, and what a saved annotation is read as."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, as_held, emptied, region_results
from backend.labelstudio.regions.shapes import value_to_box, value_to_runs
from sspsam.images.masks import BoolMask, MaskFormatError, mask_to_box_xyxy

Json = dict[str, Any]
IMAGE = '<Image name="photo" value="$url"/>'
PHRASE = '<TextArea name="phrase" toName="photo" perRegion="true"/>'
LABELS = '<Label value="cat"/><Label value="Dog" alias="hound"/>'
KINDS = ("Brush", "Bitmask", "Polygon", "Rectangle")


def form(*controls: str) -> LabelingConfig:
    return LabelingConfig.parse(f"<View>{IMAGE}{''.join(controls)}{PHRASE}</View>")


def own(kind: str, name: str = "shape", labels: str = LABELS) -> str:
    return f'<{kind}Labels name="{name}" toName="photo">{labels}</{kind}Labels>'


def shared(kind: str) -> str:
    return f'<{kind} name="shape" toName="photo"/><Labels name="what" toName="photo">{LABELS}</Labels>'


def bare(kind: str) -> str:
    return f'<{kind} name="shape" toName="photo"/>'


def blob(*boxes: tuple[int, int, int, int]) -> BoolMask:
    mask = np.zeros((60, 80), np.bool_)
    for top, left, bottom, right in boxes or ((10, 20, 40, 50),):
        mask[top:bottom, left:right] ^= True
    return mask


def answer(config: LabelingConfig, mask: BoolMask, phrase: str = "the dog") -> list[Json]:
    return region_results(ProposedRegion("abc", phrase, mask, 0.9), config)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("make", [own, shared, bare])
def test_what_is_answered_is_read_back(kind: str, make: Any) -> None:
    config, mask = form(make(kind)), blob()

    results = answer(config, mask)
    content = read_annotation({"result": results}, config)

    (region,) = content.boxes if kind == "Rectangle" else content.regions
    assert content.problems == ()
    assert (region.phrase, region.kind) == ("the dog", kind.lower())
    assert region.label == (None if make is bare else "hound")
    np.testing.assert_array_equal(region.mask, mask)
    assert region.box_xyxy == (pytest.approx((20, 10, 50, 40), abs=1e-3) if kind == "Rectangle" else None)
    first = results[0]
    assert (first["from_name"], first["to_name"]) == ("shape", "photo")
    assert first["type"] == kind.lower() + ("labels" if make is own else "")
    assert {result["id"] for result in results} == {"abc"}
    assert [result["type"] for result in results[1:]] == (["labels"] if make is shared else []) + ["textarea"]


@pytest.mark.parametrize(
    ("control", "value"),
    [
        (own("Polygon"), {"polygonlabels": ["hound"], "closed": True}),
        (
            own("Rectangle"),
            {"rectanglelabels": ["hound"], "x": 25, "y": 16.6667, "width": 37.5},
        ),
        (own("Bitmask"), {"bitmasklabels": ["hound"]}),
        (own("Brush"), {"brushlabels": ["hound"], "format": "rle"}),
    ],
)
def test_values_are_written_as_the_editor_does(control: str, value: Json) -> None:
    mask = answer(form(control), blob())[0]["value"]

    assert {name: mask[name] for name in value} == value


TWO_PARTS = ((0, 0, 10, 10), (20, 20, 50, 70))


def test_the_parts_of_an_object_are_polygons_and_are_read_as_one_region() -> None:
    config, mask = form(own("Polygon")), blob(*TWO_PARTS)

    results = answer(config, mask)

    assert list(dict.fromkeys(result["id"] for result in results)) == ["abc", "abc-part-2"]
    assert results == answer(config, mask), "asking again replaces both"
    (region,) = read_annotation({"result": results}, config).regions
    assert (region.region_id, region.phrase, region.label) == ("abc", "the dog", "hound")
    np.testing.assert_array_equal(region.mask, mask)


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ("largest part deleted", {"abc": "the dog"}),
        ("part renamed", {"abc": "the dog", "abc-part-2": "a cat"}),
        ("largest part renamed", {"abc": "a cat", "abc-part-2": "the dog"}),
        ("letter case changed", {"abc": "the dog"}),
    ],
)
def test_a_part_with_another_phrase_is_an_object(change: str, expected: dict[str, str]) -> None:
    config = form(own("Polygon"))
    results = answer(config, blob(*TWO_PARTS))
    if change == "largest part deleted":
        results = [result for result in results if result["id"] != "abc"]
    renamed = {
        "part renamed": ("abc-part-2", "a cat"),
        "largest part renamed": ("abc", "a cat"),
        "letter case changed": ("abc-part-2", "The  DOG"),
    }
    region_id, phrase = renamed.get(change, ("", ""))
    for result in results:
        if result["id"] == region_id and result["type"] == "textarea":
            result["value"]["text"] = [phrase]

    regions = read_annotation({"result": results}, config).regions

    assert {region.region_id: region.phrase for region in regions} == expected


def test_a_part_that_was_renamed_is_not_overwritten() -> None:
    config = form(own("Polygon"))
    region = ProposedRegion("abc", "the dog", blob(*TWO_PARTS), 0.9)

    results = region_results(region, config, {"abc": "the dog", "abc-part-2": "a cat"})

    assert {result["id"] for result in results} == {"abc", "abc-part-3"}


@pytest.mark.parametrize("kind", KINDS)
def test_an_emptied_region_is_no_region_and_hides_no_absence(kind: str) -> None:
    absent = '<TextArea name="absent" toName="photo"/>'
    config, mask = form(own(kind), absent), blob()
    (nothing,) = emptied(as_held(ProposedRegion("abc", "the dog", mask, 0.9), config), ["abc-part-2"])

    results = region_results(nothing, config)

    assert {result["id"] for result in results} == {"abc-part-2"}
    confirmed = {"id": "x", "from_name": "absent", "to_name": "photo", "type": "textarea"}
    confirmed["value"] = {"text": ["the dog"]}
    content = read_annotation({"result": [*results, confirmed]}, config)
    assert (content.regions, content.boxes, content.problems) == ((), (), ())
    assert content.no_target_phrases == ("the dog",)


@pytest.mark.parametrize("attribute", ["", ' sspsam="seam"'])
def test_a_hole_of_a_polygon_is_filled_and_counted_or_cut(attribute: str) -> None:
    config = form(f'<PolygonLabels name="p" toName="photo"{attribute}>{LABELS}</PolygonLabels>')
    mask = blob((5, 5, 50, 70), (20, 30, 40, 50))

    held = as_held(ProposedRegion("abc", "the dog", mask, 0.9), config)

    assert held.shapes[0].filled_holes == (0 if attribute else 1)
    np.testing.assert_array_equal(held.mask, mask if attribute else blob((5, 5, 50, 70)))
    (region,) = read_annotation({"result": region_results(held, config)}, config).regions
    np.testing.assert_array_equal(region.mask, held.mask)


def test_a_polygon_of_any_mask_is_read_back_as_proposed_after_the_editor() -> None:
    """An accepted proposal must not count as corrected: the editor's numbers may differ in the last digit."""
    config, rng = form(own("Polygon")), np.random.default_rng(0)
    for _ in range(10):
        rows, columns = np.ogrid[:97, :131]
        (y, x), (high, wide) = rng.uniform(30, 60, 2), rng.uniform(8, 28, 2)
        mask = ((rows - y) / high) ** 2 + ((columns - x) / wide) ** 2 < 1
        held = as_held(ProposedRegion("abc", "the dog", mask, 0.9), config)
        results = region_results(held, config)
        points = results[0]["value"]["points"]
        results[0]["value"]["points"] = [[x * (1 + 1e-15), y * (1 - 1e-15)] for x, y in points]

        (region,) = read_annotation({"result": results}, config).regions

        np.testing.assert_array_equal(region.mask, held.mask)


def test_several_controls_are_preferred_in_a_stated_order() -> None:
    kinds = ("Polygon", "Bitmask", "Brush")
    config = form(*(own(kind, kind) for kind in kinds), own("Rectangle", "Rectangle"))

    assert [control.name for control in config.masks] == ["Brush", "Bitmask", "Polygon"]
    assert config.box is not None, "a smart rectangle beside masks asks for the mask in it"
    named = form(*(own(kind, "mask" if kind == "Polygon" else kind) for kind in kinds))
    assert [control.name for control in named.masks] == ["mask", "Brush", "Bitmask"]
    plain = own("Rectangle", "boxes").replace(">", ' smart="false">', 1)
    assert [control.name for control in form(own("Brush"), plain).masks] == ["shape", "boxes"]
    assert form(own("Rectangle")).box is None, "in a form of rectangles, a rectangle is the answer"


def test_a_smart_only_rectangle_of_a_form_of_rectangles_is_no_answer() -> None:
    """What annotators draw with it asks for a region, and is no label if it is left over."""
    config = form(own("Rectangle"), '<Rectangle name="ask" toName="photo" smart="true" smartOnly="true"/>')
    alone = form('<Rectangle name="ask" toName="photo" smart="true" smartOnly="true"/>')

    assert [control.name for control in config.masks] == ["shape"]
    assert config.box is not None
    assert config.box.name == "ask"
    assert [control.name for control in alone.masks] == ["ask"]


def test_the_phrase_selects_the_control_by_its_label() -> None:
    config = form(own("Brush", "a", '<Label value="sky"/>'), own("Polygon", "b", '<Label value="car"/>'))

    assert [result["from_name"] for result in answer(config, blob(), "two cars")] == ["b", "phrase"]
    assert [result["from_name"] for result in answer(config, blob(), "a thing")] == ["a", "phrase"]


def test_a_label_selected_in_the_browser_counts() -> None:
    """The editor adds the label of another control to the accepted region as a result of that control."""
    config = form(own("Polygon", "p"), own("Brush", "b", '<Label value="bird"/>'))
    first, text = answer(form(own("Polygon", "p")), blob())
    value = {**{name: first["value"][name] for name in ("points", "closed")}, "brushlabels": ["bird"]}
    selected = {**first, "from_name": "b", "type": "brushlabels", "value": value}

    (region,) = read_annotation({"result": [first, selected, text]}, config).regions

    assert (region.kind, region.label) == ("polygon", "bird")


def test_rotated_boxes_are_read_by_their_bounding_box() -> None:
    value = {"x": 50, "y": 50, "width": 20, "height": 10, "rotation": 90}

    assert np.allclose(value_to_box(value, 100, 200), (90, 50, 100, 90))


POINTS = [[0, 0], [50, 0], [50, 50]]


@pytest.mark.parametrize(
    ("kind", "value"),
    [
        ("polygon", {"points": POINTS[:2]}),
        ("polygon", {"points": None}),
        ("polygon", {"points": [[0, 0], [1, 1], [2]]}),
        ("polygon", {"points": [*POINTS, "ab"]}),
        ("polygon", {"points": [*POINTS, [float("nan"), 0]]}),
        ("polygon", {"points": [*POINTS, [1e300, 0]]}),
        ("polygon", {"points": [*POINTS, [10**400, 0]]}),
        ("polygon", {"points": [[0, 0]] * 100_001}),
        ("rectangle", {"x": 1, "y": 2, "width": None, "height": 3}),
        ("rectangle", {"x": 1, "y": 2, "width": float("inf"), "height": 3}),
        ("rectangle", {"x": 1, "y": 2, "width": 3, "height": 3, "rotation": float("nan")}),
        ("rectangle", {}),
        ("bitmask", {"imageDataURL": None}),
        ("bitmask", {"imageDataURL": "data:image/png;base64,AAAA"}),
        ("brush", {"rle": "abc"}),
    ],
)
def test_anything_else_is_left_out_with_a_reason(kind: str, value: Json) -> None:
    with pytest.raises(MaskFormatError):
        value_to_runs(value, kind, 60, 80)  # type: ignore[arg-type]
    config = form(own(kind.capitalize()))
    result = {**answer(config, blob())[0], "value": value}

    content = read_annotation({"result": [result]}, config)

    assert (content.regions, content.boxes) == ((), ())
    assert len(content.problems) == (1 if value else 0), "a value without a shape belongs to another tag"


def test_many_large_polygons_of_an_annotation_are_bounded() -> None:
    config = form(own("Polygon"))
    result = {**answer(config, blob())[0], "original_width": 1000, "original_height": 1000}
    results = [{**result, "id": str(number)} for number in range(102)]

    content = read_annotation({"result": results}, config, max_pixels=10**6)

    assert (len(content.regions), len(content.problems)) == (100, 2)


def test_a_box_is_the_box_of_its_mask() -> None:
    mask = blob((3, 4, 9, 17), (20, 30, 40, 50))

    held = as_held(ProposedRegion("abc", "the dog", mask, 0.9), form(own("Rectangle")))

    assert mask_to_box_xyxy(held.mask) == mask_to_box_xyxy(mask)
