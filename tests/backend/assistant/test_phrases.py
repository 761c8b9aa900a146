"""Phrases typed by annotators: masks, no match, and errors, each reported on the form."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.state.redis_store import RedisStore, Served
from backend.web.app import create_app
from sspsam.images.brush_rle import brush_rle_to_mask
from sspsam.images.masks import coco_rle_to_mask
from tests.backend.colours import ColourPredictor
from tests.backend.editor import (
    CONFIG,
    absent,
    ask,
    colour,
    masks,
    predict_body,
    prompt,
    status,
    task,
    texts,
)
from tests.backend.parts import BASE, service_of
from tests.facts import untold

Json = dict[str, Any]
NO_STATUS = RECOMMENDED_CONFIG.replace('name="status"', 'name="remark"')


def test_a_phrase_gives_its_mask_and_leaves_the_prompt(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square"))

    found = masks(prediction)
    assert list(found) == ["the red square"]
    np.testing.assert_array_equal(found["the red square"], colour("red"))
    assert [result["from_name"].partition("-")[0] for result in prediction["result"]] == [
        "mask",
        "phrase",
        "prompt",
    ]
    assert prediction["result"][2]["id"] == "Wp6j8HRcD1"
    assert texts(prediction, "prompt") == []
    assert texts(prediction, "status") is None
    assert prediction["model_version"] == BASE


def test_a_phrase_that_fits_nothing_stays_and_says_so(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the green bird"))

    assert masks(prediction) == {}
    assert texts(prediction, "prompt") == [prompt_text.with_no_match("the green bird")]
    (said,) = texts(prediction, "status") or []
    assert untold(said, "Nothing found for “the green bird”", "“no green bird”") == []
    assert texts(prediction, "absent") is None, "only a person confirms an absence"


def test_without_a_status_line_the_prompt_says_so(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the green bird"), config=NO_STATUS)

    (entry,) = texts(prediction, "prompt") or []
    assert prompt_text.found_nothing(entry)
    assert untold(entry, "the green bird", "“no green bird”") == []
    saved = read_annotation({"result": [prompt(entry)]}, CONFIG)
    assert (saved.no_target_phrases, saved.found_nothing) == ((), ("the green bird",))
    after = ask(client, prompt(entry, "the red square"), config=NO_STATUS)
    assert texts(after, "prompt") == [entry], "and goes on saying so"


def test_only_the_new_phrase_is_looked_for(app: Flask, settings: Settings, redis_server: Redis) -> None:
    predictor = ColourPredictor()
    app = create_app(settings, redis_server, predictor)
    service_of(app).engine.start()
    client = app.test_client()
    box = texts(ask(client, prompt("a green bird")), "prompt") or []
    predictor.asked.clear()

    prediction = ask(client, prompt(*box, "the red square"))

    assert predictor.asked == ["the red square"]
    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == box
    assert "a green bird" in str(texts(prediction, "status")), "it is still open"
    service_of(app).engine.stop()


@pytest.mark.parametrize("old", ["the red ghost", "the red ghost  ∅ nothing here fits"])
def test_what_was_saved_in_the_old_way_stays_open(client: FlaskClient, old: str) -> None:
    """A plain entry may never have been asked: it is asked now."""
    prediction = ask(client, prompt(old, "the blue bar"))

    asked = ["the blue bar", "the red ghost"] if old == "the red ghost" else ["the blue bar"]
    assert list(masks(prediction)) == asked
    assert texts(prediction, "absent") is None


def test_an_earlier_phrase_whose_answer_was_lost_is_answered_too(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square", "the blue bar"))

    found = masks(prediction)
    assert list(found) == ["the blue bar", "the red square"], "the newest first"
    assert len({result["id"] for result in prediction["result"] if result["type"] == "brushlabels"}) == 2


def test_the_newest_phrase_is_looked_for_again_when_typed_again(client: FlaskClient) -> None:
    box = texts(ask(client, prompt("the red square ")), "prompt") or []
    assert box == []
    stale = prompt_text.with_no_match("the red square")

    assert list(masks(ask(client, prompt(stale, "The red  square")))) == ["the red square"]
    assert ask(client, prompt(stale)) == {"result": []}, "another control has sent the request"


def test_the_same_phrase_twice_gives_one_mask(client: FlaskClient) -> None:
    once = ask(client, prompt("the red square"))
    twice = ask(client, prompt("the red square", "The red square "))

    ids = [
        [result["id"] for result in prediction["result"] if result["type"] == "brushlabels"]
        for prediction in (once, twice)
    ]
    assert ids[0] == ids[1], "the region is replaced, not doubled"
    assert len(ids[0]) == 1


def test_several_phrases_in_one_entry(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square; a zebra;the blue bar; The Red square"))

    assert list(masks(prediction)) == ["the red square", "the blue bar"]
    assert texts(prediction, "prompt") == [prompt_text.with_no_match("a zebra")]
    ids = [result["id"] for result in prediction["result"] if result["type"] == "brushlabels"]
    assert ids == [
        result["id"]
        for phrase in ("the red square", "the blue bar")
        for result in ask(client, prompt(phrase))["result"]
        if result["type"] == "brushlabels"
    ], "the same regions as when entered one by one"


def test_all_phrases_of_the_last_entry_are_looked_for_again(client: FlaskClient) -> None:
    box = texts(ask(client, prompt("a zebra; a ghost")), "prompt") or []

    prediction = ask(client, prompt(*box, "a zebra; the red square"))

    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == list(map(prompt_text.with_no_match, ["a ghost", "a zebra"]))
    assert "“a ghost”, “a zebra”" in str(texts(prediction, "status"))


def test_a_phrase_is_absent_once_it_is_denied(client: FlaskClient) -> None:
    box = texts(ask(client, prompt("A zebra; a ghost")), "prompt") or []

    prediction = ask(client, prompt(*box, "No zebra", "the red square"), absent("a tent"), status("..."))

    assert list(masks(prediction)) == ["the red square"]
    assert texts(prediction, "prompt") == [prompt_text.with_no_match("a ghost")]
    assert texts(prediction, "absent") == ["a tent", "A zebra"]
    assert "zebra" not in str(texts(prediction, "status"))
    kept = {"result": [absent(*(texts(prediction, "absent") or []))]}
    assert read_annotation(kept, CONFIG).no_target_phrases == ("a tent", "A zebra")
    again = ask(client, prompt("no a zebra", "the blue bar"), absent("a tent", "A zebra"))
    assert list(masks(again)) == ["the blue bar"], "it is not asked as a phrase either"
    assert texts(again, "prompt") == []
    assert texts(again, "absent") is None


def test_no_is_part_of_a_phrase_unless_the_rest_stands_in_the_form(client: FlaskClient) -> None:
    assert list(masks(ask(client, prompt("no red entry sign")))) == ["no red entry sign"]
    saved = read_annotation({"result": [prompt("a zebra", "no a zebra")]}, CONFIG)
    assert saved.no_target_phrases == (), "not answered yet: the box of confirmed absences decides"


def test_only_what_was_entered_after_a_phrase_denies_it(client: FlaskClient) -> None:
    asked_before = prompt_text.with_no_match("no zebra")
    answer = ask(client, prompt(asked_before, "a zebra"))
    assert texts(answer, "prompt") == [asked_before, prompt_text.with_no_match("a zebra")]
    assert texts(answer, "absent") is None
    for entries in (["no zebra", "a zebra"], ["a zebra", "no zebra", "a zebra"]):
        assert texts(ask(client, prompt(*entries)), "absent") is None, "it is asked again"


def test_a_form_without_a_box_for_absences_has_none(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('name="absent"', 'name="remark"')
    box = texts(ask(client, prompt("a zebra"), config=config), "prompt") or []

    prediction = ask(client, prompt(*box, "no a zebra"), config=config)

    assert texts(prediction, "prompt") == [*box, prompt_text.with_no_match("no a zebra")]


def test_what_was_painted_or_confirmed_by_hand_is_no_longer_open(client: FlaskClient) -> None:
    box = texts(ask(client, prompt("a zebra; a ghost; a tent")), "prompt") or []
    drawn = {"id": "WR_laGtqWv", "from_name": "phrase", "to_name": "image", "value": {"text": ["A zebra"]}}

    one = task(drafts=[{"result": [drawn]}])
    prediction = ask(client, prompt(*box, "the red square"), absent("a ghost"), one=one)

    assert texts(prediction, "prompt") == [prompt_text.with_no_match("a tent")]
    assert untold(str(texts(prediction, "status")), "zebra", "ghost") == ["zebra", "ghost"]


def test_a_renamed_mask_survives_the_old_phrase(client: FlaskClient) -> None:
    mask, phrase, _ = ask(client, prompt("the red square"))["result"]
    renamed = {**phrase, "value": {**mask["value"], "text": ["the red tile"]}}
    one = task(drafts=[{"result": [mask, renamed]}])

    again = [ask(client, prompt("the red square"), one=one) for _ in range(2)]

    (first,), (second,) = (
        [result["id"] for result in answer["result"] if result["type"] == "brushlabels"] for answer in again
    )
    assert first == second != mask["id"]
    both = [mask, renamed, *again[0]["result"][:2]]
    (third,) = [
        result["id"]
        for result in ask(client, prompt("the red square"), one=task(drafts=[{"result": both}]))["result"]
        if result["type"] == "brushlabels"
    ]
    assert third == first, "asked again, it is replaced"


def test_several_phrases_that_were_never_sent_are_not_labels(client: FlaskClient) -> None:
    """Typed with Auto-Annotation off; the next phrase has them asked."""
    saved = read_annotation({"result": [prompt("a zebra; a ghost")]}, CONFIG)

    assert (saved.no_target_phrases, saved.not_asked) == ((), ("a zebra", "a ghost"))
    asked = ask(client, prompt("a zebra; the blue bar", "the red square"))
    assert list(masks(asked)) == ["the red square", "the blue bar"]
    assert texts(asked, "prompt") == [prompt_text.with_no_match("a zebra")]


@pytest.mark.parametrize("context", [None, {"result": []}, {}])
def test_drafts_and_saved_phrases_are_not_asked(client: FlaskClient, context: Json | None) -> None:
    drafts = [{"result": [prompt("the red square")], "user": "a@example.com"}]
    one = task(drafts=drafts, annotations=[{"id": 9, "result": [prompt("the blue bar")]}])

    response = client.post("/predict", json=predict_body([one], context))

    (prediction,) = response.json["results"]
    assert prediction["result"] == []


def test_what_the_status_said_is_taken_back(client: FlaskClient) -> None:
    prediction = ask(client, prompt("the red square"), status("Nothing here fits “zebra”."))

    assert texts(prediction, "status") == []
    assert prediction["result"][-1]["id"] == "status0001"


@pytest.mark.parametrize(
    "results",
    [
        [],
        [prompt()],
        [{**prompt("a comment"), "from_name": "comment"}],
        [{"from_name": "click", "type": "keypointlabels", "value": {"x": 1}, "id": "a"}],
        [{"from_name": "knee", "type": "keypointlabels", "value": {"x": 1, "y": 1}, "id": "a"}],
        [{"from_name": "prompt"}],
        [None, 7, "text"],
    ],
    ids=[
        "after submit",
        "empty prompt",
        "comment",
        "half a click",
        "another tag's click",
        "no value",
        "junk",
    ],
)
def test_calls_without_a_phrase_get_nothing(client: FlaskClient, results: list[Any]) -> None:
    assert ask(client, *results) == {"result": []}


def test_served_masks_are_kept_for_the_worker(
    client: FlaskClient, redis_store: RedisStore, redis_server: Redis
) -> None:
    brush = ask(client, prompt("the red square", "zebra"))["result"][0]

    served = redis_store.served(brush["id"])

    assert isinstance(served, Served)
    assert (served.version, served.phrase) == (BASE, "the red square")
    np.testing.assert_array_equal(coco_rle_to_mask(served.rle), colour("red"))
    assert 0 < redis_server.ttl(f"sspsam:served:{brush['id']}") <= 30 * 24 * 3600
    assert redis_store.served("another") is None


def test_brush_rle_of_an_answer_has_the_size_of_the_picture(client: FlaskClient) -> None:
    brush = ask(client, prompt("the blue bar"))["result"][0]

    assert (brush["original_height"], brush["original_width"]) == (40, 60)
    np.testing.assert_array_equal(brush_rle_to_mask(brush["value"]["rle"], 40, 60), colour("blue"))
