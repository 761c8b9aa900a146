"""Categories: the form's labels, the same in every export."""

from __future__ import annotations

import pytest

from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from worker.export.categories import Categories, FormLabels, form_labels, used_labels


def labels_of(tags: str) -> FormLabels:
    form = f'<View><Image name="image" value="$image"/>{tags}</View>'
    return form_labels(form, LabelingConfig.parse(form))


def ids(tags: str, *used: str) -> dict[str, int]:
    return {each["name"]: each["id"] for each in Categories(labels_of(tags), used).as_coco()}


LABELS = '<Label value="dog" category="{}"/><Label value="cat" category="{}"/>'
BRUSH = '<BrushLabels name="mask" toName="image">{}</BrushLabels>'


@pytest.mark.parametrize(
    ("tags", "expected"),
    [
        (BRUSH.format('<Label value="dog"/><Label value="cat"/>'), {"dog": 1, "cat": 2}),
        (BRUSH.format('<View><Label value="猫"/></View><Label value="a b"/>'), {"猫": 1, "a b": 2}),
        (BRUSH.format('<Label value="Dog" alias="dog"/>'), {"dog": 1}),
        (
            BRUSH.format('<Label value="dog"/><Label value="cat" category="1"/><Label value="cow"/>'),
            {"dog": 2, "cat": 1, "cow": 3},
        ),
        (BRUSH.format(LABELS.format("7", "7")), {"dog": 7, "cat": 1}),
        (BRUSH.format(LABELS.format("0", "x")), {"dog": 0, "cat": 1}),
        (
            BRUSH.format('<Label value="dog"/>')
            + '<PolygonLabels name="p" toName="image"><Label value="cat"/><Label value="dog"/>'
            "</PolygonLabels>",
            {"dog": 1, "cat": 2},
        ),
        (
            '<Labels name="l" toName="image"><Label value="dog"/></Labels><Brush name="b" toName="image"/>',
            {"dog": 1},
        ),
        ('<Brush name="mask" toName="image"/>', {"object": 1}),
        (
            '<Text name="text" value="$text"/><Labels name="l" toName="text"><Label value="noun"/></Labels>'
            + BRUSH.format('<Label value="dog"/>')
            + '<KeyPointLabels name="k" toName="image"><Label value="nose"/></KeyPointLabels>'
            + '<RectangleLabels name="b" toName="image" smartOnly="true"><Label value="refine"/>'
            "</RectangleLabels>",
            {"dog": 1},
        ),
        (
            BRUSH.format('<Label value="dog"/>')
            + '<RectangleLabels name="b" toName="image"><Label value="refine"/></RectangleLabels>',
            {"dog": 1},
        ),
        (
            BRUSH.format('<Label value="dog"/>')
            + '<RectangleLabels name="b" toName="image" smart="false"><Label value="cat"/></RectangleLabels>',
            {"dog": 1, "cat": 2},
        ),
    ],
)  # fmt: skip
def test_labels_in_the_forms_order_with_their_own_ids(tags: str, expected: dict[str, int]) -> None:
    found = ids(tags)
    assert list(found.items()) == list(expected.items())


def test_the_recommended_form_has_one() -> None:
    form = form_labels(RECOMMENDED_CONFIG, LabelingConfig.parse(RECOMMENDED_CONFIG))
    assert Categories(form).as_coco() == [{"id": 1, "name": "object", "supercategory": ""}]


def test_labels_that_only_annotations_have_come_last_in_any_order_of_use() -> None:
    tags = BRUSH.format('<Label value="Dog" alias="dog"/><Label value="cat" category="3"/>')
    expected = {"dog": 1, "cat": 3, "ant": 2, "bee": 4}
    assert ids(tags, "bee", "ant", "Dog") == ids(tags, "ant", "bee", "cat") == expected


def test_labels_are_found_by_value_and_alias() -> None:
    categories = Categories(labels_of(BRUSH.format('<Label value="Dog" alias="dog"/><Label value="cat"/>')))
    assert [categories.id_of(label) for label in ("dog", "Dog", "cat", "new", None)] == [1, 1, 2, 3, 4]
    assert [categories.index_of(label) for label in ("Dog", "cat", "new", None)] == [0, 1, 2, 3]
    assert categories.names == ["dog", "cat", "new", "object"]


@pytest.mark.parametrize(
    ("summary", "expected"),
    [
        ({"created_labels": {"mask": {"dog": 2, "old": 1}, "k": {"nose": 1}, "gone": {"ant": 3}}},
         ["dog", "old"]),
        ({"created_labels": None}, []),
        ({}, []),
    ],
)  # fmt: skip
def test_used_labels_are_those_of_region_tags(summary: dict[str, object], expected: list[str]) -> None:
    form = labels_of(
        BRUSH.format('<Label value="dog"/>')
        + '<KeyPointLabels name="k" toName="image"><Label value="nose"/></KeyPointLabels>'
    )
    assert used_labels(summary, form) == expected
