"""Clicks and boxes correct a mask in place, with and without Auto-Accept, on any of several backends."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.settings import Settings
from backend.state.redis_store import SHOWN_S, RedisStore
from backend.web.app import create_app
from sspsam.images.masks import coco_rle_to_mask
from tests.backend.colours import COLOURS, ColourPredictor, picture
from tests.backend.editor import PATH, Json, ask, click, colour, ids, masks, prompt, status, task, texts
from tests.backend.web_server import Web
from tests.facts import untold

RED, BLUE, HOLE, FAR = (12, 7), (57, 20), (17, 12), (3, 38)
"""Pixels of `picture()`: on the square, on the bar, in the square's hole, far from both."""
BOXES = RECOMMENDED_CONFIG.replace(
    "<Image ", '<RectangleLabels name="box" toName="image"><Label value="b"/></RectangleLabels><Image '
)


def box(x0: int, y0: int, x1: int, y1: int, result_id: str = "b1") -> dict[str, Any]:
    height, width = picture().shape[:2]
    where = {"x": 100 * x0 / width, "y": 100 * y0 / height}
    size = {"width": 100 * (x1 - x0) / width, "height": 100 * (y1 - y0) / height, "rotation": 0}
    return {**click(0, 0, result_id), "from_name": "box", "type": "rectanglelabels", "value": where | size}


@pytest.mark.parametrize("auto_accept", [True, False])
def test_clicks_correct_the_mask_that_they_are_on(client: FlaskClient, auto_accept: bool) -> None:
    first = ask(client, prompt("the red square; the blue bar"))
    one, two = click(*HOLE, "1"), click(*BLUE, "2")

    filled = ask(client, one)
    both = ask(client, *([two] if auto_accept else [one, two]))

    assert ids(filled) == ids(first)[:1], "the nearest mask: its region, replaced in place"
    assert [result["from_name"] for result in filled["result"]] == ["mask", "phrase"]
    white = np.asarray((picture() == 255).all(axis=2))
    np.testing.assert_array_equal(masks(filled)["the red square"], colour("red") | white)
    if auto_accept:
        assert ids(both) == ids(first)[1:], "a click of its own, on another mask"
    else:
        np.testing.assert_array_equal(masks(both)["the red square"], colour("red") | white | colour("blue"))


def test_a_negative_click_takes_away(client: FlaskClient) -> None:
    ask(client, prompt("the red or blue thing"))

    prediction = ask(client, click(*BLUE, "1", positive=False))

    np.testing.assert_array_equal(masks(prediction)["the red or blue thing"], colour("red"))


def test_the_model_gets_phrase_and_clicks_together(settings: Settings, redis_server: Redis) -> None:
    class Listening(ColourPredictor):
        def decode(self, questions: Any, models: Any = None) -> Any:
            heard.extend(questions)
            return super().decode(questions, models)

    heard: list[Any] = []
    app = create_app(settings, redis_server, Listening())
    app.extensions["sspsam"].engine.start()
    client = app.test_client()
    ask(client, prompt("the red square"))

    ask(client, click(*RED, "1"))
    ask(client, click(*HOLE, "2", positive=False))

    question = heard[-1]
    assert question.phrase == "the red square"
    np.testing.assert_allclose(question.points, [[12.5, 7.5, 1], [17.5, 12.5, 0]])
    assert question.boxes is None
    app.extensions["sspsam"].engine.stop()


def test_a_box_cuts_a_mask_in_place(client: FlaskClient) -> None:
    first = ask(client, prompt("the red square"), config=BOXES)

    prediction = ask(client, box(8, 3, 20, 27), config=BOXES)

    assert ids(prediction) == ids(first)
    expected = colour("red")
    expected[:, 20:] = False
    np.testing.assert_array_equal(masks(prediction)["the red square"], expected)


def test_a_click_on_something_else_is_plain_sam(client: FlaskClient) -> None:
    ask(client, prompt("the red square"))

    new = ask(client, click(*BLUE, "1"))
    grown = ask(client, click(*BLUE, "1"), click(*RED, "2"))
    without = ask(client, click(*RED, "3", positive=False))

    assert [result["type"] for result in new["result"]] == ["brushlabels"], "the annotator gives the phrase"
    np.testing.assert_array_equal(masks(new)["None"], colour("blue"))
    np.testing.assert_array_equal(masks(grown)["None"], colour("blue") | colour("red"))
    assert ids(new) == ids(grown)
    assert len(masks(without)) <= 1


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
    ask(client, prompt("the red square"))
    ask(client, click(*HOLE, "1"))
    other = create_app(settings, redis_server, ColourPredictor())
    other.extensions["sspsam"].engine.start()

    prediction = ask(other.test_client(), click(*FAR, "2", positive=False))

    np.testing.assert_array_equal(masks(prediction)["the red square"], colour("red"))
    other.extensions["sspsam"].engine.stop()


def test_tasks_do_not_mix(client: FlaskClient) -> None:
    ask(client, prompt("the red square"))

    prediction = ask(client, click(*RED, "1"), one=task(2))

    assert list(masks(prediction)) == ["None"]


def draft_of(user: int, prediction: Json) -> Json:
    """As Label Studio gives a backend the draft of the annotator who asks."""
    name = f"{user}@example.com"
    return {"user": name, "created_username": f"{name}, {user}", "result": prediction["result"]}


def test_two_annotators_of_a_task_do_not_share_clicks(client: FlaskClient) -> None:
    first = ask(client, prompt("the red square"))
    anna, bela = (task(drafts=[draft_of(user, first)]) for user in (1, 2))
    ask(client, click(*HOLE, "1"), one=anna)

    hers = ask(client, click(*BLUE, "2"), one=anna)
    his = ask(client, click(*RED, "3"), one=bela)

    white = np.asarray((picture() == 255).all(axis=2))
    np.testing.assert_array_equal(masks(hers)["the red square"], colour("red") | colour("blue") | white)
    np.testing.assert_array_equal(masks(his)["the red square"], colour("red"))
    assert ids(hers) == ids(his) == ids(first)


def test_a_mask_that_another_annotator_has_saved_is_left_alone(client: FlaskClient) -> None:
    saved = ask(client, prompt("the red square"))
    other = {"id": 7, "completed_by": 1, "result": saved["result"]}
    own = draft_of(2, {"result": []})

    hers = ask(client, click(*RED, "1"), one=task(annotations=[other], drafts=[draft_of(1, saved)]))
    his = ask(client, click(*RED, "2"), one=task(annotations=[other], drafts=[own]))

    assert ids(hers) == ids(saved)
    assert list(masks(his)) == ["None"], "a new mask, without her phrase"


def test_what_is_kept_has_a_time_limit(
    client: FlaskClient, redis_store: RedisStore, redis_server: Redis
) -> None:
    ask(client, prompt("the red square"))
    ask(client, click(*RED, "1"))

    (shown,) = redis_store.shown("2", "1")
    assert [gesture.gesture_id for gesture in shown.current] == ["1"]
    assert 0 < redis_server.ttl("sspsam:shown:2:1") <= SHOWN_S


def test_a_mask_corrected_by_clicks_stays_a_correction(client: FlaskClient, redis_store: RedisStore) -> None:
    """What was proposed for the phrase alone is what the worker compares the saved mask with."""
    (region,) = ids(ask(client, prompt("the red square")))
    ask(client, click(*BLUE, "1"))
    ask(client, click(*HOLE, "2"))

    served = redis_store.served(region)

    assert served is not None
    np.testing.assert_array_equal(coco_rle_to_mask(served.rle), colour("red"))
    (pointed_at,) = ids(ask(client, click(*BLUE, "1")))
    assert redis_store.served(pointed_at) is None, "without a phrase nothing was proposed for one"


def test_a_phrase_asked_again_forgets_the_clicks(client: FlaskClient) -> None:
    ask(client, prompt("the red square"))
    ask(client, click(*HOLE, "1"))

    again = ask(client, prompt("the red square"))

    np.testing.assert_array_equal(masks(again)["the red square"], colour("red"))
    after = ask(client, click(*RED, "2"))
    np.testing.assert_array_equal(masks(after)["the red square"], colour("red"))


def test_phrase_and_label_are_those_of_the_draft(client: FlaskClient) -> None:
    config = RECOMMENDED_CONFIG.replace('<Label value="object"', '<Label value="sky"/><Label value="car"')
    first = ask(client, prompt("the red square"), config=config)
    mask, phrase, *_ = first["result"]
    draft = {
        "user": "a@example.com",
        "result": [
            {**mask, "value": {**mask["value"], "brushlabels": ["car"]}},
            {**phrase, "value": {**mask["value"], "text": ["the blue or red thing"]}},
        ],
    }

    prediction = ask(client, click(*RED, "1"), one=task(drafts=[draft]), config=config)

    assert ids(prediction) == ids(first)
    assert list(masks(prediction)) == ["the blue or red thing"]
    assert prediction["result"][0]["value"]["brushlabels"] == ["car"]


@pytest.mark.parametrize("where", ["drafts", "predictions"])
def test_masks_that_are_not_remembered_are_found(
    client: FlaskClient, redis_server: Redis, where: str
) -> None:
    first = ask(client, prompt("the red square"))
    redis_server.flushall()

    prediction = ask(client, click(*RED, "1"), one=task(**{where: [{"result": first["result"]}]}))

    assert ids(prediction) == ids(first)
    assert list(masks(prediction)) == ["the red square"]


def test_nothing_left_is_told_and_the_mask_stays(client: FlaskClient, redis_store: RedisStore) -> None:
    ask(client, prompt("the red square"))

    prediction = ask(client, click(*RED, "1", positive=False))

    assert ids(prediction) == []
    assert "brush" in str(texts(prediction, "status")), "what to do instead"
    assert redis_store.shown("2", "1")[0].current == (), "as if it had not been clicked"
    after = ask(client, click(*HOLE, "2"))
    assert texts(after, "status") == [], "what was said is taken back"
    assert texts(ask(client, click(*RED, "3")), "status") is None


def test_an_image_that_cannot_be_had_is_told(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response("", 404)

    prediction = ask(client, click(*RED, "1"))

    (said,) = texts(prediction, "status") or []
    assert untold(said, "click", "404") == []


WITHOUT_STATUS = RECOMMENDED_CONFIG.replace(
    '<TextArea name="status" toName="image" maxSubmissions="1" editable="false" smart="false"/>', ""
)


@pytest.mark.parametrize("drafted", [False, True])
def test_without_a_status_line_the_prompt_box_tells(client: FlaskClient, drafted: bool) -> None:
    """Below the phrases that it holds; a click that works takes it back."""
    asked = ask(client, prompt("the red square", "zebra"), config=WITHOUT_STATUS)
    held = texts(asked, "prompt")
    one = task(drafts=[{"result": asked["result"]}] if drafted else [])

    failed = ask(client, click(*RED, "1", positive=False), one=one, config=WITHOUT_STATUS)
    after = ask(client, click(*HOLE, "2"), one=one, config=WITHOUT_STATUS)

    *phrases, said = texts(failed, "prompt") or []
    assert phrases == held
    assert "brush" in said
    assert failed["result"][0]["id"] == prompt()["id"]
    assert read_annotation(failed, LabelingConfig.parse(WITHOUT_STATUS)).found_nothing == ("zebra",)
    assert ids(after)
    assert texts(after, "prompt") == held
    assert texts(ask(client, click(*RED, "3"), one=one, config=WITHOUT_STATUS), "prompt") is None


def test_a_form_with_neither_gets_nothing(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response("", 404)
    bare = re.sub(r'<TextArea name="prompt".*?/>', "", WITHOUT_STATUS, flags=re.DOTALL)

    assert ask(client, click(*RED, "1"), config=bare) == {"result": []}


def test_without_redis_a_click_is_plain_sam(settings: Settings) -> None:
    nowhere = settings.model_copy(update={"redis_url": "unix:///nonexistent.sock"})
    app = create_app(nowhere, predictor=ColourPredictor())
    app.extensions["sspsam"].engine.start()
    client = app.test_client()

    one = ask(client, click(*RED, "1"))
    both = ask(client, click(*RED, "1"), click(*BLUE, "2"))

    assert ids(one) == ids(both)
    np.testing.assert_array_equal(masks(both)["None"], colour("red") | colour("blue"))
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
    ask(client, prompt("the red square"))
    ask(client, click(*RED, "1"))
    ask(client, click(*BLUE, "2"))

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


def test_status_of_a_phrase_is_left_alone(client: FlaskClient) -> None:
    ask(client, prompt("zebra"), status("Nothing here fits “zebra”."))

    assert texts(ask(client, click(*RED, "1")), "status") is None
