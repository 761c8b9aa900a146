"""Regions of every shape, as Label Studio saves them, and what is counted instead of exported."""

from __future__ import annotations

import base64
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image
from pycocotools import mask as coco_mask

from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.worker.label_studio_server import region
from worker.export.categories import form_labels
from worker.export.regions import ExportContent, LabelledRegion, read_regions
from worker.export.shapes import have_pixels

Mask = npt.NDArray[np.bool_]
Json = dict[str, Any]

HEIGHT, WIDTH = 40, 80
FORM = """
<View>
  <Image name="image" value="$image"/>
  <Image name="second" value="$second"/>
  <BrushLabels name="mask" toName="image" choice="multiple">
    <Label value="cat"/><Label value="猫"/>
  </BrushLabels>
  <PolygonLabels name="polygon" toName="image"><Label value="cat"/></PolygonLabels>
  <KeyPointLabels name="click" toName="image" smartOnly="true"><Label value="refine"/></KeyPointLabels>
  <RectangleLabels name="box" toName="image" smart="true"><Label value="refine"/></RectangleLabels>
  <TextArea name="phrase" toName="image" perRegion="true"/>
</View>
"""


def result(kind: str, value: Json, region_id: str = "a", **fields: Any) -> Json:
    """A result as the editor saves it."""
    shared = {"id": region_id, "from_name": kind, "to_name": "image", "type": kind, "image_rotation": 0}
    return {**shared, "original_width": WIDTH, "original_height": HEIGHT, "value": value, **fields}


def read(*results: Json, form: str = FORM, max_pixels: int = 10_000) -> ExportContent:
    config = LabelingConfig.parse(form)
    return read_regions({"result": list(results)}, config, form_labels(form, config), max_pixels)


def only(*results: Json) -> LabelledRegion:
    content = read(*results)
    assert (content.problems, content.left_out) == ((), {})
    (found,) = content.regions
    return found


def box_mask(x0: int, y0: int, x1: int, y1: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=np.bool_)
    mask[y0:y1, x0:x1] = True
    return mask


def bitmask(picture: Image.Image) -> str:
    data = BytesIO()
    picture.save(data, "PNG")
    return "data:image/png;base64," + base64.b64encode(data.getvalue()).decode()


def test_a_polygon_has_the_pixels_within_it() -> None:
    corners = [[25, 25], [75, 25], [75, 75], [25, 75]]
    found = only(result("polygonlabels", {"points": corners, "closed": True, "polygonlabels": ["cat"]}))
    np.testing.assert_array_equal(found.mask, box_mask(20, 10, 60, 30))
    assert (found.shape, found.labels) == ("polygon", ("cat",))
    assert found.polygons(found.mask) == [[20, 10, 60, 10, 60, 30, 20, 30]]


def test_the_polygons_of_an_object_are_one_region() -> None:
    first = result("polygonlabels", {"points": [[25, 25], [75, 25], [75, 75], [25, 75]], "closed": True})
    second = result("polygonlabels", {"points": [[0, 0], [10, 0], [10, 10], [0, 10]]}, "a-part-2")
    nothing = result("polygonlabels", {"points": [[0, 0]] * 3, "closed": True}, "a-part-3")

    content = read(first, second, nothing)

    (found,) = content.regions
    assert (found.region_id, found.shape) == ("a", "polygon")
    np.testing.assert_array_equal(found.mask, box_mask(20, 10, 60, 30) | box_mask(0, 0, 8, 4))
    assert found.polygons(found.mask) == [[20, 10, 60, 10, 60, 30, 20, 30], [0, 0, 8, 0, 8, 4, 0, 4]]
    assert content.left_out == {"polygons without pixels are left out": 1}


def test_polygons_are_cut_at_the_border() -> None:
    corners = [[-50, 25], [5000, 25], [5000, 75], [-50, 75]]
    found = only(result("polygon", {"points": corners}))
    np.testing.assert_array_equal(found.mask, box_mask(0, 10, 80, 30))


@pytest.mark.parametrize("rotation", [0, 360, 90, 180, 270, 30])
def test_rectangles_turn_about_their_top_left_corner(rotation: float) -> None:
    value = {"x": 50, "y": 50, "width": 25, "height": 25, "rotation": rotation}
    found = only(result("rectanglelabels", {**value, "rectanglelabels": ["cat"]}))
    angle = np.deg2rad(rotation)
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5 - 40, np.arange(HEIGHT) + 0.5 - 20)
    across, down = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    expected = (across > 0) & (across < 20) & (down > 0) & (down < 10)
    wrong = (found.mask ^ expected).sum()
    assert wrong == 0
    assert (found.box_xyxy is not None) == (rotation % 360 == 0)


def test_an_upright_rectangle_keeps_its_fractions() -> None:
    found = only(result("rectangle", {"x": 10.3, "y": 10, "width": 20.2, "height": 30, "rotation": 0}))
    assert found.box_xyxy == pytest.approx((8.24, 4, 24.4, 16))


@pytest.mark.parametrize("rotation", [0, 50])
def test_ellipses_turn_about_their_centre(rotation: float) -> None:
    value = {"x": 50, "y": 50, "radiusX": 20, "radiusY": 15, "rotation": rotation}
    found = only(result("ellipselabels", {**value, "ellipselabels": ["cat"]}))
    angle = np.deg2rad(rotation)
    x, y = np.meshgrid(np.arange(WIDTH) + 0.5 - 40, np.arange(HEIGHT) + 0.5 - 20)
    across, down = x * np.cos(angle) + y * np.sin(angle), y * np.cos(angle) - x * np.sin(angle)
    expected = (across / 16) ** 2 + (down / 6) ** 2 < 1
    assert (found.mask ^ expected).sum() <= 2, "its outline is within a twentieth of a pixel"
    assert found.mask.sum() == pytest.approx(np.pi * 16 * 6, rel=0.02)


def test_bitmasks_are_read_by_their_alpha() -> None:
    mask = box_mask(3, 4, 9, 11)
    rgba = np.zeros((HEIGHT, WIDTH, 4), dtype=np.uint8)
    rgba[..., 3] = mask * 255
    found = only(result("bitmask", {"imageDataURL": bitmask(Image.fromarray(rgba))}))
    np.testing.assert_array_equal(found.mask, mask)
    assert found.shape == "mask"


def test_older_brush_masks_have_their_labels_in_a_result_of_their_own() -> None:
    """Of a form with <Brush> and <Labels>; the present form need not have the tags any more."""
    mask = box_mask(1, 1, 5, 5)
    value = {"format": "rle", "rle": mask_to_brush_rle(mask)}
    found = only(
        result("labels", {**value, "labels": ["dog"]}, from_name="label"),
        result("brush", value, from_name="brush"),
        result("textarea", {**value, "text": ["the dog"]}, from_name="phrase"),
    )
    np.testing.assert_array_equal(found.mask, mask)
    assert (found.labels, found.phrase) == (("dog",), "the dog")


def test_both_labels_of_a_region_are_read() -> None:
    results = region("a", None, box_mask(1, 1, 5, 5))
    results[0]["value"]["brushlabels"] = ["cat", "猫"]
    assert only(*results).labels == ("cat", "猫")


def test_a_click_on_a_region_adds_no_label() -> None:
    results = region("a", None, box_mask(1, 1, 5, 5), "cat")
    click = {**results[0]["value"], "keypointlabels": ["refine"]}
    for order in (1, -1):
        both = [*results, result("keypointlabels", click, from_name="click")][::order]
        assert only(*both).labels == ("cat",)


def test_a_closed_vector_is_a_polygon() -> None:
    vertices = [{"x": 25, "y": 25}, {"x": 75, "y": 25}, {"x": 75, "y": 75}]
    assert only(result("vectorlabels", {"vertices": vertices, "closed": True})).shape == "polygon"


@pytest.mark.parametrize(
    ("left_out", "message"),
    [
        (result("keypointlabels", {"x": 1, "y": 1, "width": 1}), "key points are left out: a point has no"),
        (result("vector", {"vertices": [], "closed": False}), "vectors that are open or curved"),
        (
            result("rectanglelabels", {"x": 1, "y": 1, "width": 9, "height": 9}, from_name="box"),
            "rectangles of the tag “box” are left out: they were drawn for the model",
        ),
        (
            result("polygon", {"points": [[0, 0], [9, 0], [9, 9]]}, to_name="second"),
            "polygons on the image “second” are left out",
        ),
        (
            result("polygon", {"points": [[0, 0], [9, 0], [9, 9]]}, item_index=2),
            "polygons on the image “image, page 2” are left out",
        ),
        (result("hypertextlabels", {"start": 1, "end": 2}), "regions of the type “hypertextlabels”"),
        (
            result("rectangle", {"x": 120, "y": 1, "width": 9, "height": 9}),
            "rectangles without pixels are left out",
        ),
    ],
)
def test_regions_that_are_left_out_are_counted_by_kind_with_the_reason(left_out: Json, message: str) -> None:
    content = read(left_out, {**left_out, "id": "b"}, *region("c", None, box_mask(1, 1, 5, 5), "cat"))
    assert len(content.regions) == 1
    ((reason, count),) = content.left_out.items()
    assert (reason.startswith(message), count) == (True, 2), reason


def test_texts_and_choices_are_no_regions() -> None:
    texts = [result("textarea", {"text": ["a phrase"]}, "t"), result("choices", {"choices": ["day"]}, "c")]
    content = read(*texts, {"type": "relation", "from_id": "a", "to_id": "b", "direction": "right"})
    assert (content.regions, content.left_out, content.problems) == ((), {}, ())


@pytest.mark.parametrize(
    "broken",
    [
        result("polygon", {"points": [[0, 0], [1, 1]]}),
        result("polygon", {"points": [[0, 0], [1, 1], [2, "x"]]}),
        result("polygon", {"points": [[0, 0], [1, 1], [2, float("nan")]]}),
        result("polygon", {"points": [[0, 0]] * 100_001}),
        result("polygon", {"points": [[0, 0], [1, 1], [0, 2]]}, original_width=200, original_height=200),
        result("rectangle", {"x": 1, "y": None, "width": 9, "height": 9}),
        result("ellipse", {"x": 1, "y": 1, "radiusX": 9}),
        result("rectangle", {"x": 1, "y": 1, "width": 9, "height": 9}, original_width=None),
        result("bitmask", {"imageDataURL": "data:image/png;base64,AAAA"}),
        result("bitmask", {"imageDataURL": "https://pictures.example/mask.png"}),
        result("bitmask", {"imageDataURL": bitmask(Image.new("1", (HEIGHT, WIDTH)))}),
        result("brush", {"rle": "nonsense"}),
    ],
)
def test_regions_that_cannot_be_read_are_named(broken: Json) -> None:
    content = read(broken, *region("c", None, box_mask(1, 1, 5, 5), "cat"))
    assert [found.region_id for found in content.regions] == ["c"]
    (problem,) = content.problems
    assert problem.startswith("region a: ")


def test_an_outline_is_measured_before_pycocotools_fills_it() -> None:
    """One of 20,000 points that crosses an image of 1,000 px each time would take nearly a gigabyte."""
    crossing = np.tile([[0.0, 0.0], [1000.0, 1000.0]], (10_000, 1))
    assert not have_pixels([crossing], np.zeros((1000, 1000), dtype=np.bool_))


@pytest.mark.parametrize("shift", [0, 0.3, 0.5, 0.77])
def test_polygons_have_the_pixels_of_the_mask_whichever_rule_fills_them(shift: float) -> None:
    """The product fills pixels whose centre is inside, pycocotools has a rule of its own."""
    corners = [[20 + shift, 25], [75, 31 + shift], [60, 75 + shift]]
    found = only(result("polygon", {"points": corners}))
    rles = coco_mask.frPyObjects(found.polygons(found.mask), HEIGHT, WIDTH)
    np.testing.assert_array_equal(coco_mask.decode(coco_mask.merge(rles)), found.mask)


def test_a_label_of_another_tag_is_what_was_selected() -> None:
    """The editor adds it to a mask that a phrase has brought."""
    results = region("a", None, box_mask(1, 1, 5, 5), "cat")
    selected = {**results[0]["value"], "polygonlabels": ["猫"]}
    assert only(*results, result("polygonlabels", selected, from_name="polygon")).labels == ("猫",)


def test_many_large_shapes_are_not_read() -> None:
    """Few bytes can stand for many pixels: a mask of the limit's size is one hundredth of what is read."""
    value = {"x": 0, "y": 0, "width": 100, "height": 100}
    sides = {"original_width": 100, "original_height": 100}
    content = read(*(result("rectangle", value, str(number), **sides) for number in range(101)))
    assert len(content.regions) == 100
    assert "the most that are read" in content.problems[0]


def test_the_recommended_form_exports_brush_masks() -> None:
    content = read(*region("a", "the cat", box_mask(1, 1, 5, 5)), form=RECOMMENDED_CONFIG)
    assert [(found.labels, found.phrase) for found in content.regions] == [(("object",), "the cat")]
