"""Phrases with labeling configs unlike the recommended one: names, several brushes, missing tags."""

from __future__ import annotations

import re

import pytest
from flask.testing import FlaskClient

from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from tests.backend.colours import SCORE
from tests.backend.editor import PATH, ask, prompt, task, texts

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

    assert {result["from_name"] for result in answer["result"]} <= {"mask", "phrase", "prompt"}
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
