"""Colours of masks: neighbours differ, and each mask keeps its own."""

from __future__ import annotations

import re

from flask.testing import FlaskClient

from backend.assistant.colours import with_colours
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, colour_by_id
from backend.state.displayed_masks import DisplayedMask
from tests.backend.assistant.annotators import Annotator
from tests.backend.editor import Json, click, colour, prompt, texts

BLUE, FAR = (57, 20), (3, 38)
"""Pixels of the picture: on the blue square, on nothing."""
COUNT = len(LabelingConfig.parse(RECOMMENDED_CONFIG).colours)


def tags(answer: Json) -> dict[str, str]:
    """ID -> region control of each mask of an answer."""
    return {
        result["id"]: result["from_name"] for result in answer["result"] if result["type"] == "brushlabels"
    }


def proposed(*region_ids: str) -> list[ProposedRegion]:
    return [ProposedRegion(each, "a phrase", colour("red"), 0.5) for each in region_ids]


def shown(regions: list[ProposedRegion]) -> list[DisplayedMask]:
    return [DisplayedMask(region.region_id, region.phrase, {}, colour=region.colour) for region in regions]


def test_as_many_masks_as_colours_are_all_different() -> None:
    first = with_colours(proposed("a", "b", "c"), [], COUNT)
    further = with_colours(proposed(*"defgh"), shown(first), COUNT)

    assert sorted(region.colour or 0 for region in [*first, *further]) == list(range(COUNT))
    [ninth] = with_colours(proposed("i"), shown([*first, *further]), COUNT)
    assert ninth.colour == first[0].colour


def test_a_mask_keeps_its_colour() -> None:
    regions = with_colours(proposed("a", "b"), [], COUNT)
    again = with_colours(proposed("b", "c", "a"), shown(regions), COUNT)

    assert {region.region_id: region.colour for region in again} == {"a": 0, "b": 1, "c": 2}


def test_a_mask_of_an_earlier_release_keeps_the_colour_of_its_id() -> None:
    [region] = with_colours(proposed("a"), [DisplayedMask("a", "a phrase", {})], COUNT)

    assert region.colour == colour_by_id("a") % COUNT


def test_colours_tell_nothing_of_another_annotator(client: FlaskClient) -> None:
    anna, bert = Annotator(client, 7), Annotator(client, 8)
    for annotator in (anna, bert):
        annotator.save()

    first = tags(anna.ask(prompt("the red square")))
    other = tags(bert.ask(prompt("the blue square")))

    assert set(first.values()) == set(other.values()) == {"mask"}


def test_a_form_with_one_colour() -> None:
    assert [region.colour for region in with_colours(proposed("a", "b"), [], 1)] == [0, 0]


def test_a_form_whose_region_tag_was_removed_is_told(client: FlaskClient) -> None:
    anna = Annotator(client, 7)
    anna.ask(prompt("the red square"))
    anna.config = re.sub("<BrushLabels.*?</BrushLabels>|<Rectangle .*?/>", "", anna.config, flags=re.DOTALL)

    [entry] = texts(anna.ask(prompt("the blue square")), "prompt") or []

    assert "no <BrushLabels>" in entry


def test_phrases_and_clicks_get_colours_of_their_own(client: FlaskClient) -> None:
    anna = Annotator(client, 7)

    found = tags(anna.ask(prompt("the red square; the blue square")))
    anna.save()
    clicked = tags(anna.ask(click(*FAR, "c1")))

    used = found | clicked
    assert len(used) == len(set(used.values())) == 3
    again = tags(anna.ask(prompt("the blue square")))
    refined = tags(anna.ask(click(*BLUE, "c2", positive=False)))
    assert again == refined
    assert again.items() <= found.items()
