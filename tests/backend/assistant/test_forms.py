"""Phrases with labeling configs unlike the recommended one: names, several brushes, missing tags."""

from __future__ import annotations

import re

import numpy as np
import pytest
from flask.testing import FlaskClient

from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.state.redis_store import RedisStore
from sspsam import mask_to_coco_rle
from tests.backend.assistant.annotators import draft
from tests.backend.colours import SCORE, ColourPredictor, picture
from tests.backend.editor import PATH, ask, click, colour, masks, prompt, task, texts
from tests.facts import untold

OWN = """<View>
  <Image name="photo" value="$url"/><TextArea name="what" toName="photo" sspsam="prompt"/>
  <TextArea name="remark" toName="photo" perRegion="true" sspsam="phrase"/>
  <BrushLabels name="things" toName="photo"><Label value="thing"/></BrushLabels>
  <BrushLabels name="shapes" toName="photo">
    <Label value="Bar" alias="stripe"/><Label value="Square" predicted_values="box, red tile"/>
  </BrushLabels></View>"""


@pytest.mark.parametrize(
    ("phrase", "brush", "label"),
    [
        ("the blue stripe", "shapes", "stripe"),
        ("the red tile", "shapes", "Square"),
        ("a red square", "shapes", "Square"),
        ("something red", "things", "thing"),
    ],
    ids=["alias", "predicted_values", "name", "else the first"],
)
def test_a_form_of_ones_own(client: FlaskClient, phrase: str, brush: str, label: str) -> None:
    """Tags by type and role, several brushes; the region carries label, phrase and score."""
    one = {**task(), "data": {"url": PATH}}
    entry = {**prompt(phrase), "from_name": "what", "to_name": "photo"}

    mask, text, box = ask(client, entry, one=one, config=OWN)["result"]

    assert (mask["from_name"], mask["to_name"], mask["type"]) == (brush, "photo", "brushlabels")
    assert mask["value"]["brushlabels"] == [label]
    assert mask["score"] == SCORE
    assert (text["from_name"], text["id"], text["value"]) == ("remark", mask["id"], {"text": [phrase]})
    assert (box["from_name"], box["value"]) == ("what", {"text": []})


def without(name: str) -> str:
    """The recommended form without a tag."""
    xml = re.sub(rf'<(\w+) name="{name}"[^>]*(/>|>.*?</\1>)', "", RECOMMENDED_CONFIG, flags=re.DOTALL)
    assert f'name="{name}"' not in xml
    return xml


@pytest.mark.parametrize("name", ["phrase", "status", "click", "absent"])
def test_optional_tags_may_be_missing(client: FlaskClient, name: str) -> None:
    config = without(name)

    prediction = ask(client, prompt("the red square; a zebra"), config=config)

    content = read_annotation(prediction, LabelingConfig.parse(config))
    assert [region.phrase for region in content.regions] == ["the red square"]
    assert content.found_nothing == ("a zebra",)
    assert content.no_target_phrases == ()


NOTES = (
    '<View><Image name="image" value="$image"/><TextArea name="notes" toName="image"/>'
    '<BrushLabels name="mask" toName="image"><Label value="object"/></BrushLabels></View>'
)


@pytest.mark.parametrize("config", [NOTES, RECOMMENDED_CONFIG], ids=["no prompt", "prompt"])
def test_notes_are_not_asked_and_stay_in_their_box(client: FlaskClient, config: str) -> None:
    notes = {**prompt("too dark left"), "id": "n", "from_name": "notes"}

    assert ask(client, notes, config=config) == {"result": []}
    answer = ask(client, notes, prompt("the red square"), config=config)

    assert {result["from_name"].partition("-")[0] for result in answer["result"]} <= {
        "mask",
        "phrase",
        "prompt",
    }
    assert "too dark" not in str(answer)


def test_a_prompt_on_another_image_is_not_answered(client: FlaskClient) -> None:
    assert ask(client, {**prompt("the red square"), "to_name": "second"}) == {"result": []}


def test_labels_of_the_same_name_are_used(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('<Label value="object"', '<Label value="sky"/><Label value="Red"')

    brush = ask(client, prompt("red"), config=config)["result"][0]

    assert brush["value"]["brushlabels"] == ["Red"]


def test_a_config_without_a_brush_is_told_in_the_prompt(client: FlaskClient) -> None:
    config = '<View><TextArea name="prompt" toName="image"/><Image name="image" value="$image"/></View>'

    (entry,) = texts(ask(client, prompt("the red square"), config=config), "prompt") or []

    assert prompt_text.has_failed(entry)
    assert "no <BrushLabels>" in entry


def test_a_config_that_cannot_be_read_gets_nothing(client: FlaskClient) -> None:
    assert ask(client, prompt("the red square"), config="<View>") == {"result": []}


REGIONS = {
    "bitmask": '<BitmaskLabels name="mask" toName="image"><Label value="object"/></BitmaskLabels>',
    "polygon": '<PolygonLabels name="mask" toName="image"><Label value="object"/></PolygonLabels>',
    "rectangle": '<RectangleLabels name="mask" toName="image"><Label value="object"/></RectangleLabels>',
    "polygon with labels": '<Polygon name="mask" toName="image"/>'
    '<Labels name="what" toName="image"><Label value="object"/></Labels>',
}


def with_regions(xml: str) -> str:
    """The recommended form with other regions than brush masks."""
    config, count = re.subn(
        r'<BrushLabels name="mask".*?</BrushLabels>', xml, RECOMMENDED_CONFIG, flags=re.DOTALL
    )
    assert count == 1
    return re.sub(r"<BrushLabels.*?</BrushLabels>", "", config, flags=re.DOTALL)


@pytest.mark.parametrize("kind", REGIONS)
def test_a_phrase_is_answered_in_the_form_that_is_there(
    client: FlaskClient, redis_store: RedisStore, kind: str
) -> None:
    """What the annotator submits unchanged is equal to what was stored as the proposal."""
    config = with_regions(REGIONS[kind])

    prediction = ask(client, prompt("the blue bar"), config=config)

    content = read_annotation(prediction, LabelingConfig.parse(config))
    (region,) = content.regions or content.boxes
    assert content.problems == ()
    assert (region.phrase, region.label, region.kind) == ("the blue bar", "object", kind.split()[0])
    np.testing.assert_array_equal(region.mask, colour("blue"))
    served = redis_store.served(region.region_id)
    assert served is not None
    assert served.rle == mask_to_coco_rle(region.mask)


def test_a_mask_of_very_many_parts_is_answered_by_polygons(
    client: FlaskClient, predictor: ColourPredictor, monkeypatch: pytest.MonkeyPatch
) -> None:
    dots = np.zeros(picture().shape[:2], np.bool_)
    dots[::2, ::2] = True
    config = with_regions(REGIONS["polygon"])
    monkeypatch.setattr(predictor, "_find", lambda *_: dots)

    prediction = ask(client, prompt("the dots"), config=config)

    (region,) = read_annotation(prediction, LabelingConfig.parse(config)).regions
    assert 0 < region.mask.sum() <= dots.sum()


def test_a_hole_that_a_polygon_cannot_have_is_told_or_cut(client: FlaskClient) -> None:
    filled = with_regions(REGIONS["polygon"])
    cut = filled.replace("<PolygonLabels", '<PolygonLabels sspsam="seam"')

    told, silent = (ask(client, prompt("the red square"), config=config) for config in (filled, cut))

    assert untold((texts(told, "status") or [""])[0], "the red square", "holes") == []
    assert texts(silent, "status") is None
    (region,) = read_annotation(silent, LabelingConfig.parse(cut)).regions
    np.testing.assert_array_equal(region.mask, colour("red"))


@pytest.mark.parametrize("kind", ["bitmask", "polygon"])
def test_a_click_corrects_a_region_of_any_kind(client: FlaskClient, kind: str) -> None:
    config = with_regions(REGIONS[kind])
    answer = ask(client, prompt("the red square"), config=config)["result"]
    draft = {"id": 5, "user": "annotator", "result": answer, "updated_at": "2026-01-01"}
    rows, columns = np.nonzero(colour("blue"))

    corrected = ask(
        client, click(int(columns[0]), int(rows[0]), "c1"), one=task(drafts=[draft]), config=config
    )

    regions = read_annotation(corrected, LabelingConfig.parse(config)).regions
    assert any(region.mask[rows[0], columns[0]] for region in regions)
    assert {region.kind for region in regions} == {kind}


BOTH_KINDS = RECOMMENDED_CONFIG.replace(
    "<KeyPoint ",
    '<PolygonLabels name="outline" toName="image" smart="false"><Label value="object"/><Label value="b"/>'
    '</PolygonLabels><BrushLabels name="cats" toName="image"><Label value="cat"/></BrushLabels><KeyPoint ',
)


@pytest.mark.parametrize("label", ["object", "b", "cat"])
def test_a_click_keeps_the_tag_and_the_label_of_a_region(client: FlaskClient, label: str) -> None:
    """The annotator has drawn a polygon; the label may be one of another tag, selected in the browser."""
    height, width = picture().shape[:2]
    shape = {"points": [[0, 0], [40, 0], [40, 50], [0, 50]], "closed": True}
    drawn = {
        "id": "hand1",
        "from_name": "outline",
        "to_name": "image",
        "type": "polygonlabels",
        "original_width": width,
        "original_height": height,
        "value": {**shape, "polygonlabels": [] if label == "cat" else [label]},
    }
    cat = {**drawn, "from_name": "cats", "type": "brushlabels", "value": {**shape, "brushlabels": ["cat"]}}
    saved = draft(1, [drawn, cat] if label == "cat" else [drawn])

    answer = ask(client, click(2, 2, "c2", positive=False), one=task(drafts=[saved]), config=BOTH_KINDS)

    (region,) = read_annotation(answer, LabelingConfig.parse(BOTH_KINDS)).regions
    assert answer["result"][0]["from_name"] == "outline"
    assert (region.region_id, region.kind, region.label) == ("hand1", "polygon", label)


def test_the_label_that_was_taken_is_said_if_the_phrase_names_none(client: FlaskClient) -> None:
    labels = '<Label value="sky"/><Label value="Red_Square"'
    config = RECOMMENDED_CONFIG.replace('<Label value="object"', labels)

    named = ask(client, prompt("the red squares"), config=config)
    unnamed = ask(client, prompt("something red"), config=config)
    single = ask(client, prompt("something red"))

    assert named["result"][0]["value"]["brushlabels"] == ["Red_Square"]
    assert texts(named, "status") is None
    (said,) = texts(unnamed, "status") or []
    assert untold(said, "something red", "sky") == []
    assert texts(single, "status") is None


def test_a_form_with_pages_is_told_in_one_line(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('value="$image"', 'valueList="$images"')

    (entry,) = texts(ask(client, prompt("the red square"), config=config), "prompt") or []

    assert prompt_text.has_failed(entry)
    assert "pages are not supported" in entry


def test_an_image_deep_in_the_task_is_found(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace("$image", "$photos[0].path")
    one = {**task(), "data": {"photos": [{"path": PATH}]}}

    assert len(masks(ask(client, prompt("the red square"), one=one, config=config))) == 1
