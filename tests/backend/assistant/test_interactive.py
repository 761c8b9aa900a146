"""Clicks and boxes correct masks of the annotation in place, and create new ones."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.state.redis_store import SHOWN_S, RedisStore
from backend.web.app import create_app
from sspsam.images.brush_rle import mask_to_brush_rle
from sspsam.images.masks import coco_rle_to_mask
from tests.backend.assistant.annotators import Annotator
from tests.backend.colours import COLOURS, ColourPredictor, picture
from tests.backend.editor import ask, click, colour, ids, masks, prompt, task, texts

RED, BLUE, HOLE, FAR = (12, 7), (57, 20), (17, 12), (3, 38)
"""Pixels of `picture()`: on the square, on the bar, in the square's hole, far from both."""
WHITE = np.asarray((picture() == 255).all(axis=2))
BOXES = RECOMMENDED_CONFIG.replace(
    "<Image ", '<RectangleLabels name="box" toName="image"><Label value="b"/></RectangleLabels><Image '
)


def box(x0: int, y0: int, x1: int, y1: int, result_id: str = "b1") -> dict[str, Any]:
    height, width = picture().shape[:2]
    where = {"x": 100 * x0 / width, "y": 100 * y0 / height}
    size = {"width": 100 * (x1 - x0) / width, "height": 100 * (y1 - y0) / height, "rotation": 0}
    return {**click(0, 0, result_id), "from_name": "box", "type": "rectanglelabels", "value": where | size}


@pytest.fixture
def anna(client: FlaskClient) -> Annotator:
    return Annotator(client, 1)


def test_a_negative_click_removes_a_part_and_leaves_the_others(anna: Annotator) -> None:
    first = anna.ask(prompt("the red or blue thing"))
    anna.save()

    prediction = anna.ask(click(*BLUE, "1", positive=False))

    assert ids(prediction) == ids(first)
    assert [result["from_name"].partition("-")[0] for result in prediction["result"]] == ["mask", "phrase"]
    np.testing.assert_array_equal(masks(prediction)["the red or blue thing"], colour("red"))


def test_a_positive_click_leaves_what_is_there(anna: Annotator) -> None:
    first = anna.ask(prompt("the red or blue thing"))
    anna.save()

    prediction = anna.ask(click(*RED, "1"))

    assert ids(prediction) == ids(first)
    both = colour("red") | colour("blue")
    np.testing.assert_array_equal(masks(prediction)["the red or blue thing"], both)


@pytest.mark.parametrize("place", [HOLE, FAR, BLUE])
def test_a_click_outside_every_mask_makes_a_new_object(anna: Annotator, place: tuple[int, int]) -> None:
    first = anna.ask(prompt("the red square"))
    anna.save()

    new = anna.ask(click(*place, "1"))

    assert not set(ids(new)) & set(ids(first))
    assert list(masks(new)) == ["None"], "the annotator gives the phrase"
    assert masks(new)["None"][place[1], place[0]]


def test_a_negative_click_outside_every_mask_is_about_none(anna: Annotator) -> None:
    anna.ask(prompt("the red square"))
    anna.save()

    nothing = anna.ask(click(*HOLE, "2", positive=False))

    assert ids(nothing) == []
    assert "no mask" in str(texts(nothing, "status"))


@pytest.mark.parametrize("auto_accept", [True, False])
def test_clicks_in_a_row(anna: Annotator, auto_accept: bool) -> None:
    """With Auto-Accept off a request repeats the clicks that wait, and those near the mask add to it."""
    first = anna.ask(prompt("the red square"))
    anna.save()
    one, two = click(*RED, "1"), click(*HOLE, "2")
    anna.ask(one)

    both = anna.ask(*([two] if auto_accept else [one, two]))

    if auto_accept:
        assert list(masks(both)) == ["None"], "outside every mask"
    else:
        assert ids(both) == ids(first)
        np.testing.assert_array_equal(masks(both)["the red square"], colour("red") | WHITE)
        undone = anna.ask(one)
        np.testing.assert_array_equal(masks(undone)["the red square"], colour("red"))


def test_a_far_click_before_the_first_answer_is_accepted_is_about_another_object(anna: Annotator) -> None:
    one, two = click(*RED, "1"), click(*BLUE, "2")
    first = anna.ask(one)

    both = anna.ask(one, two)

    assert ids(both)[:1] == ids(first), "repeated, as the editor drops it otherwise"
    assert len(set(ids(both))) == 2
    red, blue = (anna.ask(one, two)["result"][place] for place in (0, 1))
    assert (red["id"], blue["id"]) == tuple(ids(both))


def test_two_boxes_before_the_first_answer_is_accepted_are_two_objects(client: FlaskClient) -> None:
    anna = Annotator(client, 1, config=BOXES)
    one, two, over_one = box(8, 3, 32, 27, "1"), box(50, 0, 60, 40, "2"), box(9, 4, 31, 26, "3")
    first = anna.ask(one)

    both = anna.ask(one, two)
    three = anna.ask(one, two, over_one)

    assert ids(both)[:1] == ids(first)
    assert len(set(ids(both))) == 2
    assert ids(three)[:2] == ids(both)
    assert len(set(ids(three))) == 3, "a box of its own, although it is on the first mask"


def test_the_model_gets_phrase_and_clicks_together(settings: Settings, redis_server: Redis) -> None:
    class Listening(ColourPredictor):
        def decode(self, questions: Any, models: Any = None) -> Any:
            heard.extend(questions)
            return super().decode(questions, models)

    heard: list[Any] = []
    app = create_app(settings, redis_server, Listening())
    app.extensions["sspsam"].engine.start()
    anna = Annotator(app.test_client(), 1)
    anna.ask(prompt("the red or blue thing"))
    anna.save()

    anna.ask(click(*RED, "1"))
    anna.ask(click(*BLUE, "2", positive=False))

    question = next(question for question in reversed(heard) if question.phrase)
    assert question.phrase == "the red or blue thing"
    np.testing.assert_allclose(question.points, [[12.5, 7.5, 1], [57.5, 20.5, 0]])
    assert question.boxes is None
    app.extensions["sspsam"].engine.stop()


def test_a_box_cuts_a_mask_in_place(client: FlaskClient) -> None:
    anna = Annotator(client, 1, config=BOXES)
    first = anna.ask(prompt("the red square"))
    anna.save()

    prediction = anna.ask(box(8, 3, 20, 27))

    assert ids(prediction) == ids(first)
    expected = colour("red")
    expected[:, 20:] = False
    np.testing.assert_array_equal(masks(prediction)["the red square"], expected)


def test_a_click_keeps_what_was_painted(anna: Annotator) -> None:
    """The draft has the mask with the strokes of the brush, which the model knows nothing of."""
    first = anna.ask(prompt("the red square"))
    painted = colour("red") | colour("blue")
    anna.results[0]["value"]["rle"] = mask_to_brush_rle(painted)
    anna.save()

    prediction = anna.ask(click(*RED, "1"))

    assert ids(prediction) == ids(first)
    np.testing.assert_array_equal(masks(prediction)["the red square"], painted)


def test_a_click_without_any_phrase_is_plain_sam(client: FlaskClient) -> None:
    prediction = ask(client, click(*RED, "1"))

    np.testing.assert_array_equal(masks(prediction)["None"], colour("red"))
    assert prediction["result"][0]["value"]["brushlabels"] == ["object"]


def test_the_clicks_label_is_the_masks_where_a_brush_has_it(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('<Label value="object"', '<Label value="sky"/><Label value="car"')

    prediction = ask(client, click(*RED, "1", label="car"), config=config)

    assert prediction["result"][0]["value"]["brushlabels"] == ["car"]


def test_another_backend_process_knows_what_was_clicked(
    settings: Settings, redis_server: Redis, client: FlaskClient
) -> None:
    one = click(*RED, "1")
    first = ask(client, one)
    other = create_app(settings, redis_server, ColourPredictor())
    other.extensions["sspsam"].engine.start()

    prediction = ask(other.test_client(), one, click(*HOLE, "2"))

    assert ids(prediction) == ids(first)
    np.testing.assert_array_equal(masks(prediction)["None"], colour("red") | WHITE)
    other.extensions["sspsam"].engine.stop()


def test_tasks_do_not_mix(client: FlaskClient) -> None:
    ask(client, prompt("the red square"))

    prediction = ask(client, click(*RED, "1"), one=task(2))

    assert list(masks(prediction)) == ["None"]


def test_what_is_kept_has_a_time_limit(
    client: FlaskClient, redis_store: RedisStore, redis_server: Redis
) -> None:
    ask(client, click(*RED, "1"))

    (shown,) = redis_store.shown("2", "1")
    assert [gesture.gesture_id for gesture in shown.current] == ["1"]
    assert 0 < redis_server.ttl("sspsam:shown:2:1") <= SHOWN_S


def test_a_mask_corrected_by_clicks_stays_a_correction(anna: Annotator, redis_store: RedisStore) -> None:
    """What was proposed for the phrase alone is what the worker compares the saved mask with."""
    (region,) = ids(anna.ask(prompt("the red or blue thing")))
    anna.save()
    anna.ask(click(*BLUE, "1", positive=False))

    served = redis_store.served(region)

    assert served is not None
    np.testing.assert_array_equal(coco_rle_to_mask(served.rle), colour("red") | colour("blue"))
    (pointed_at,) = ids(anna.ask(click(*FAR, "2")))
    assert redis_store.served(pointed_at) is None, "without a phrase nothing was proposed for one"


def test_a_phrase_asked_again_forgets_the_clicks(anna: Annotator) -> None:
    anna.ask(prompt("the red or blue thing"))
    anna.save()
    anna.ask(click(*BLUE, "1", positive=False))

    again = anna.ask(prompt("the red or blue thing"))

    both = colour("red") | colour("blue")
    np.testing.assert_array_equal(masks(again)["the red or blue thing"], both)
    after = anna.ask(click(*BLUE, "2"))
    np.testing.assert_array_equal(masks(after)["the red or blue thing"], both)


def test_phrase_and_label_are_those_of_the_draft(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('<Label value="object"', '<Label value="sky"/><Label value="car"')
    anna = Annotator(client, 1, config=config)
    first = anna.ask(prompt("the red square"))
    mask, phrase, *_ = first["result"]
    anna.results = [
        {**mask, "value": {**mask["value"], "brushlabels": ["car"]}},
        {**phrase, "value": {**mask["value"], "text": ["the blue or red thing"]}},
    ]
    anna.save()

    prediction = anna.ask(click(*RED, "1"))

    assert ids(prediction) == ids(first)
    assert list(masks(prediction)) == ["the blue or red thing"]
    assert prediction["result"][0]["value"]["brushlabels"] == ["car"]


def test_masks_of_a_draft_are_found_without_redis(anna: Annotator, redis_server: Redis) -> None:
    first = anna.ask(prompt("the red square"))
    anna.save()
    redis_server.flushall()

    prediction = anna.ask(click(*RED, "1"))

    assert ids(prediction) == ids(first)
    assert list(masks(prediction)) == ["the red square"]


def test_repeated_clicks_ask_the_model_only_for_the_new_one(settings: Settings, redis_server: Redis) -> None:
    predictor = ColourPredictor()
    app = create_app(settings, redis_server, predictor)
    app.extensions["sspsam"].engine.start()
    anna = Annotator(app.test_client(), 1)
    clicks = [click(RED[0] + number, RED[1], str(number)) for number in range(8)]
    asked = []

    for number in range(1, len(clicks) + 1):
        before = len(predictor.asked)
        anna.ask(*clicks[:number])
        asked.append(len(predictor.asked) - before)

    assert max(asked) <= 3
    app.extensions["sspsam"].engine.stop()


def test_without_redis_a_click_is_plain_sam(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": "unix:///nonexistent.sock"})
    app = create_app(nowhere, predictor=ColourPredictor())
    app.extensions["sspsam"].engine.start()
    client = app.test_client()

    one = ask(client, click(*RED, "1"))
    both = ask(client, click(*RED, "1"), click(*HOLE, "2"))

    assert ids(one) == ids(both)
    np.testing.assert_array_equal(masks(both)["None"], colour("red") | WHITE)
    app.extensions["sspsam"].engine.stop()


def test_leftover_clicks_are_no_labels_and_no_part_of_a_region(client: FlaskClient) -> None:
    """Saved as they are, on their own or, with "Keep label selected", as a part of the mask's region."""
    first = ask(client, prompt("the red square"))
    (region,) = ids(first)
    value = first["result"][0]["value"]
    junk = {**click(*RED, region), "value": {**value, "keypointlabels": ["refine"]}}

    content = masks({"result": [click(*BLUE, "left"), *first["result"], junk]})

    assert list(content) == ["the red square"]
    np.testing.assert_array_equal(content["the red square"], colour("red"))


def test_clicks_are_counted(app: Flask, client: FlaskClient) -> None:
    anna = Annotator(client, 1)
    anna.ask(prompt("the red square"))
    anna.save()
    anna.ask(click(*RED, "1"))
    anna.ask(click(*BLUE, "2"))

    text = client.get("/metrics").text

    assert 'sspsam_clicks_total{outcome="corrected"} 1.0' in text
    assert 'sspsam_clicks_total{outcome="new"} 1.0' in text


def test_colours_are_apart() -> None:
    """What the pixels above stand for."""
    for (x, y), name in ((RED, "red"), (BLUE, "blue")):
        assert tuple(picture()[y, x]) == COLOURS[name]
    for x, y in (HOLE, FAR):
        assert tuple(picture()[y, x]) == (255, 255, 255)
    assert not colour("red")[HOLE[1], HOLE[0]]
