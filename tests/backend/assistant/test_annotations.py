"""Gestures apply to masks of the annotation that they are made in, and to no other."""

from __future__ import annotations

from threading import Event, Semaphore, Thread
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Request, Response

from backend.assistant import annotation_masks
from backend.assistant.annotation_masks import MOST_WAITING, AnnotationFinder, AnnotationMasks, MaskReader
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.interactions import Interaction
from backend.labelstudio.predictions import ProposedRegion, region_results
from backend.labelstudio.regions.controls import Kind
from backend.queries import Task
from backend.serving.batch_queue import Caller
from backend.state.displayed_masks import PackedMask
from tests.backend.assistant.annotators import Annotator, draft
from tests.backend.editor import Json, ask, click, colour, ids, masks, prompt, task, texts
from tests.backend.web_server import Web, as_json

RED, HOLE = (12, 7), (17, 12)
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
DRAFTS = "/api/tasks/1/drafts"


@pytest.fixture
def anna(client: FlaskClient) -> Annotator:
    return Annotator(client, 1)


@pytest.fixture
def bela(client: FlaskClient) -> Annotator:
    return Annotator(client, 2)


def is_new(answer: Json, *before: Json) -> bool:
    """Whether an answer is one region without a phrase, which no earlier answer has."""
    known = {region for earlier in before for region in ids(earlier)}
    return len(ids(answer)) == 1 and not known & set(ids(answer)) and list(masks(answer)) == ["None"]


def test_a_mask_shown_since_the_draft_was_saved_is_refined(anna: Annotator) -> None:
    anna.save()
    first = anna.ask(prompt("the red square"))

    corrected = anna.ask(click(*RED, "1"))

    assert ids(corrected) == ids(first)


def test_a_click_continues_from_the_last_answer(anna: Annotator) -> None:
    """The draft does not have it yet."""
    first = anna.ask(prompt("the red or blue thing"))
    anna.save()
    anna.ask(click(57, 20, "1", positive=False))

    second = anna.ask(click(*RED, "2"))

    assert ids(second) == ids(first)
    np.testing.assert_array_equal(masks(second)["the red or blue thing"], colour("red"))


@pytest.mark.parametrize("deleted_from", ["draft", "editor"])
def test_a_deleted_mask_does_not_come_back(anna: Annotator, deleted_from: str) -> None:
    """Deleted after it was saved, or refused before."""
    anna.save()
    first = anna.ask(prompt("the red square"))
    if deleted_from == "draft":
        anna.save()
    anna.delete(ids(first)[0])
    anna.save()

    assert is_new(anna.ask(click(*RED, "1")), first)


def test_a_request_without_a_draft_may_be_of_anyone(client: FlaskClient) -> None:
    first = ask(client, prompt("the red square"))

    assert is_new(ask(client, click(*RED, "1")), first)


def test_double_annotation_is_blind(anna: Annotator, bela: Annotator) -> None:
    """Whatever either has typed, clicked, saved or submitted, before or after the other's first draft."""
    hers = anna.ask(prompt("the red square"))
    assert is_new(bela.ask(click(*RED, "b1")), hers)
    anna.save()
    corrected = anna.ask(click(*HOLE, "a1"))
    assert is_new(bela.ask(click(*RED, "b2")), hers, corrected)
    bela.results = []
    bela.save()
    for fields in (
        {},
        {"annotations": [{"id": 7, "completed_by": 1, "result": anna.results}]},
        {"annotations": [{"id": 7, "completed_by": {"id": 1}, "result": anna.results}]},
        {"predictions": [{"id": 8, "result": anna.results}]},
    ):
        bela.fields = fields
        bela.results = []
        bela.save()
        assert is_new(bela.ask(click(*RED, f"b{len(fields)}{fields}")), hers, corrected)


def test_the_same_phrase_of_two_annotators_is_two_masks(anna: Annotator, bela: Annotator) -> None:
    anna.ask(prompt("the red or blue thing"))
    bela.ask(prompt("the red or blue thing"))
    anna.save()
    bela.save()

    anna.ask(click(57, 20, "a", positive=False))
    his = bela.ask(click(*RED, "b"))

    both = colour("red") | colour("blue")
    np.testing.assert_array_equal(masks(his)["the red or blue thing"], both)


def test_a_message_does_not_carry_the_phrases_of_another(anna: Annotator, bela: Annotator) -> None:
    without_status = RECOMMENDED_CONFIG.replace('name="status"', 'name="other"')
    anna.config = bela.config = without_status
    typed = anna.ask(prompt("zebra"))

    at_once = bela.ask(click(*RED, "1", positive=False))
    bela.save()
    with_draft = bela.ask(click(*RED, "2", positive=False))

    assert "zebra" in str(texts(typed, "prompt"))
    assert "zebra" not in str([texts(at_once, "prompt"), texts(with_draft, "prompt")])
    assert "no mask" in str(texts(with_draft, "prompt"))


def test_of_several_annotations_of_one_annotator_none_is_taken_for_the_open_one(
    client: FlaskClient, anna: Annotator
) -> None:
    first = anna.ask(prompt("the red square"))
    other = draft(1, [], number=55)
    mine = draft(1, anna.results)

    both = ask(client, click(*RED, "1"), one=task(drafts=[mine, other]))

    assert is_new(both, first)


class Drafts:
    """Label Studio's drafts of a task: those of a list, one after another."""

    def __init__(self, *answers: list[Json]) -> None:
        self.answers = list(answers)

    def __call__(self, request: Request) -> Response:
        return as_json(self.answers.pop(0) if len(self.answers) > 1 else self.answers[0])


def test_the_draft_with_the_gesture_says_what_the_annotation_holds(
    anna: Annotator, label_studio: Web
) -> None:
    """The editor saves it some seconds after the first change, here a phrase."""
    first = anna.ask(prompt("the red square"))
    one = click(*RED, "1")
    other = draft(2, [click(*RED, "x")])
    label_studio.answers[DRAFTS] = Drafts([], [other], [other, draft(1, [*anna.results, one])])

    corrected = anna.ask(one)

    assert ids(corrected) == ids(first)
    assert list(masks(corrected)) == ["the red square"]


def test_the_draft_with_a_phrase_asked_again_says_that_its_mask_was_renamed(
    anna: Annotator, label_studio: Web
) -> None:
    first = anna.ask(prompt("the red square"))
    renamed = [
        {**result, "value": {"text": ["the red tile"]}} if result["from_name"] == "phrase" else result
        for result in anna.results
    ]
    again = prompt("the red square")
    late = [draft(2, [prompt("a cup")]), draft(1, [*renamed[:-1], again])]
    label_studio.answers[DRAFTS] = Drafts([], late)

    second = anna.ask(again)

    assert not set(ids(second)) & set(ids(first))
    assert list(masks(second)) == ["the red square"]
    label_studio.answers[DRAFTS] = Drafts([draft(1, [*first["result"][:-1], again])])
    assert ids(anna.ask(again)) == ids(first), "not renamed: replaced"


def test_the_draft_with_the_gesture_says_that_a_mask_was_refused(anna: Annotator, label_studio: Web) -> None:
    anna.save()
    first = anna.ask(prompt("the red square"))
    one = click(*RED, "1")
    label_studio.answers[DRAFTS] = Drafts([draft(1, [prompt(), one])])

    assert is_new(anna.ask(one), first)


@pytest.mark.parametrize("saved", ["annotations", "predictions"])
def test_a_saved_annotation_is_refined_where_it_is_open(
    anna: Annotator, bela: Annotator, label_studio: Web, saved: str
) -> None:
    first = anna.ask(prompt("the red square"))
    results, one, two = anna.results, click(*RED, "1"), click(*RED, "2")
    anna.results = []
    anna.fields = bela.fields = {saved: [{"id": 7, "completed_by": 1, "result": results}]}
    label_studio.answers[DRAFTS] = Drafts([draft(1, [*results, one]), draft(2, [two])])

    assert is_new(bela.ask(two), first)
    corrected = anna.ask(one)

    assert ids(corrected) == ids(first)
    assert list(masks(corrected)) == ["the red square"]


def test_an_answer_that_a_draft_may_have_missed_is_confirmed(anna: Annotator, label_studio: Web) -> None:
    """The draft was saved while the model answered: it has the mask as it was before the click."""
    anna.ask(prompt("the red or blue thing"))
    anna.save()
    old = list(anna.results)
    anna.ask(click(57, 20, "1", positive=False))
    new, two = list(anna.results), click(*RED, "2")
    anna.results = old
    anna.save()
    label_studio.answers[DRAFTS] = Drafts([draft(1, [*new, two])])

    second = anna.ask(two)

    np.testing.assert_array_equal(masks(second)["the red or blue thing"], colour("red"))


def test_a_click_on_nothing_does_not_wait(anna: Annotator, label_studio: Web) -> None:
    anna.ask(prompt("the red square"))

    anna.ask(click(*HOLE, "1"))

    assert not [request for request in label_studio.asked if request.path.startswith(DRAFTS)]


def test_waiting_ends(
    app: Flask, anna: Annotator, label_studio: Web, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = anna.ask(prompt("the red square"))
    label_studio.answers[DRAFTS] = as_json([])
    monkeypatch.setattr(finder_of(app), "_wait_s", 0.2)

    assert is_new(anna.ask(click(*RED, "1")), first)


def test_few_clicks_wait_at_a_time() -> None:
    """Each holds a thread of the server; further ones are answered without the draft."""
    entered, free = Semaphore(0), Event()

    class Slow:
        def drafts(self, task_id: int, timeout_s: float) -> list[Json]:
            entered.release()
            free.wait(20)
            return []

    finder, one = AnnotationFinder(Slow(), wait_s=0.1), Interaction("1", "click", (0.5, 0.5, 0.5, 0.5))
    unknown = AnnotationMasks("", "", ())

    def confirm() -> AnnotationMasks:
        return finder.confirmed(unknown, Task("1", {}), (), [one], CONFIG, Caller())

    waiting = [Thread(target=confirm) for _ in range(MOST_WAITING)]
    for thread in waiting:
        thread.start()
    assert all(entered.acquire(timeout=20) for _ in waiting)

    assert confirm().certain == []

    assert not entered.acquire(blocking=False)
    free.set()
    for thread in waiting:
        thread.join()


def finder_of(app: Flask) -> AnnotationFinder:
    finder: AnnotationFinder = app.extensions["sspsam"].assistant._refiner._annotations
    return finder


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    decoded: list[int] = []

    def decode(value: Json, kind: Kind, *hw: int) -> Any:
        decoded.append(len(value["rle"]))
        return original(value, kind, *hw)

    original = annotation_masks.value_to_runs
    monkeypatch.setattr(annotation_masks, "value_to_runs", decode)
    return decoded


def many_masks(count: int) -> list[Json]:
    rows = np.arange(40)[:, None] + np.zeros((1, 60), np.int64)
    regions = [ProposedRegion(str(number), "a row", rows == number % 40, 1.0) for number in range(count)]
    return [result for region in regions for result in region_results(region, CONFIG)]


def test_masks_of_a_draft_are_decoded_once(counted: list[int]) -> None:
    reader, results = MaskReader(), many_masks(30)

    first, again = reader.masks(results, CONFIG), reader.masks(results, CONFIG)

    assert [mask.region_id for mask in first] == [mask.region_id for mask in again]
    assert [mask.phrase for mask in first] == ["a row"] * 30
    assert len(counted) == 30


def test_a_hundred_masks_of_six_megapixels_are_kept_for_the_next_click() -> None:
    """Masks that take much memory: ragged, as wide and high as the image."""
    whole = PackedMask((2000, 3000), (0, 0), (2000, 3000), np.zeros(2000 * 3000 // 8, np.uint8), 1)

    assert 100 * whole.size_bytes <= annotation_masks.CACHE_BYTES
    assert annotation_masks.MOST_PIXELS >= 100 * 2000 * 3000


def test_a_draft_of_very_many_masks_is_bounded(counted: list[int]) -> None:
    reader = MaskReader()

    found = reader.masks(many_masks(annotation_masks.MOST_MASKS + 50), CONFIG)

    assert [mask.region_id for mask in found][-1] == str(annotation_masks.MOST_MASKS + 49)
    assert len(found) == annotation_masks.MOST_MASKS
    assert len(counted) <= 40, "the same mask only once"


def test_pixels_decoded_for_a_click_are_bounded(counted: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    """The latest masks first; the next click goes on."""
    monkeypatch.setattr(annotation_masks, "MOST_PIXELS", 3 * 40 * 60)
    reader, results = MaskReader(), many_masks(7)

    found = [[mask.region_id for mask in reader.masks(results, CONFIG)] for _ in range(3)]

    assert found == [["4", "5", "6"], ["1", "2", "3", "4", "5", "6"], [str(n) for n in range(7)]]
    huge = {**results[0], "original_width": 10**9, "original_height": 10**9}
    assert reader.masks([huge], CONFIG) == []
    assert len(counted) == 7


@pytest.mark.parametrize(
    "value", [{"rle": [1, 2]}, {"rle": "abc"}, {"rle": [999]}, {"rle": None}, {}, None, {"rle": [0] * 9}]
)
def test_unreadable_masks_of_a_draft_are_left_out(value: object) -> None:
    good = many_masks(1)
    bad = {**good[0], "id": "bad", "value": value}

    found = MaskReader().masks(
        [bad, *good, {**good[0], "id": "no size", "original_width": float("inf")}], CONFIG
    )

    assert [mask.region_id for mask in found] == ["0"]
    assert MaskReader().masks(None, CONFIG) == MaskReader().masks("x", CONFIG) == []


def test_redis_may_be_lost(anna: Annotator, redis_server: Redis) -> None:
    first = anna.ask(prompt("the red square"))
    redis_server.flushall()
    anna.save()

    assert ids(anna.ask(click(*RED, "1"))) == ids(first)
