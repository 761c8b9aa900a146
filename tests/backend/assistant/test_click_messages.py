"""What annotators read about their clicks: failures, limits, and the phrases that are open."""

from __future__ import annotations

import re

import numpy as np
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.assistant.interactive import MOST_GESTURES
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.state.redis_store import RedisStore
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.backend.assistant.annotators import Annotator
from tests.backend.assistant.test_interactive import FAR, HOLE, RED, WHITE, anna
from tests.backend.editor import PATH, ask, click, ids, prompt, status, texts
from tests.backend.web_server import Web
from tests.facts import untold

__all__ = ["anna"]


def test_a_click_that_cannot_be_obeyed_is_told_and_the_mask_stays(
    anna: Annotator, redis_store: RedisStore
) -> None:
    """The whole mask lies within reach of the click: nothing would be left."""
    anna.ask(prompt("the red square"))
    dot = np.zeros_like(WHITE)
    dot[RED[1], RED[0]] = True
    anna.results[0]["value"]["rle"] = mask_to_brush_rle(dot)
    anna.save()

    prediction = anna.ask(click(*RED, "1", positive=False))

    assert ids(prediction) == []
    assert "not changed: use the eraser" in str(texts(prediction, "status"))
    assert redis_store.shown("2", "1")[0].current == (), "as if it had not been clicked"
    after = anna.ask(click(*RED, "2"))
    assert texts(after, "status") == [], "what was said is taken back"
    assert texts(anna.ask(click(*RED, "3")), "status") is None


def test_a_message_ends_although_the_first_draft_came_after_it(anna: Annotator) -> None:
    told = anna.ask(click(*FAR, "1", positive=False))
    anna.save()

    after = anna.ask(click(*RED, "2"))

    assert texts(told, "status")
    assert texts(after, "status") == []


def resize(annotator: Annotator, place: int) -> None:
    """Gives a mask the size of another image, which was at the address before."""
    other = np.zeros((30, 40), np.bool_)
    other[:20, :30] = True
    brush = [result for result in annotator.results if "rle" in result["value"]][place]
    brush |= {"original_height": 30, "original_width": 40, "value": {**brush["value"]}}
    brush["value"]["rle"] = mask_to_brush_rle(other)


def test_a_mask_of_an_image_of_another_size_is_told(anna: Annotator, redis_server: Redis) -> None:
    anna.ask(prompt("the red square"))
    resize(anna, 0)
    anna.save()
    redis_server.flushall()

    answer = anna.ask(click(*RED, "1"))

    assert ids(answer) == []
    assert untold(str(texts(answer, "status")), "40 x 30", "60 x 40", "delete") == []


def test_another_object_of_another_size_is_ignored(anna: Annotator, redis_server: Redis) -> None:
    answer = anna.ask(prompt("the red square"))
    brush, phrase = answer["result"][:2]
    anna.results += [{**brush, "id": "other"}, {**phrase, "id": "other"}]
    resize(anna, 1)
    anna.save()
    redis_server.flushall()

    assert ids(anna.ask(click(*RED, "1"))) == [brush["id"]]


def test_many_clicks_are_refused_at_once(anna: Annotator) -> None:
    """Each needs the model, which all annotators share."""
    clicks = [click(*RED, str(number)) for number in range(2000)]

    prediction = anna.ask(*clicks)

    assert ids(prediction) == []
    assert untold(str(texts(prediction, "status")), str(MOST_GESTURES), "Accept") == []


def test_an_image_that_cannot_be_had_is_told(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response("", 404)

    prediction = ask(client, click(*RED, "1"))

    (said,) = texts(prediction, "status") or []
    assert untold(said, "click", "404") == []


WITHOUT_STATUS = RECOMMENDED_CONFIG.replace(
    '<TextArea name="status" toName="image" maxSubmissions="1" editable="false" smart="false"/>', ""
)


def test_without_a_status_line_the_prompt_box_tells(client: FlaskClient) -> None:
    """Below the phrases that it holds; a click that works takes it back."""
    anna = Annotator(client, 1, config=WITHOUT_STATUS)
    asked = anna.ask(prompt("the red square", "zebra"))
    held = texts(asked, "prompt")
    anna.save()

    failed = anna.ask(click(*FAR, "1", positive=False))
    after = anna.ask(click(*RED, "2"))

    *phrases, said = texts(failed, "prompt") or []
    assert phrases == held
    assert "no mask" in said
    assert failed["result"][0]["id"] == prompt()["id"]
    assert read_annotation(failed, LabelingConfig.parse(WITHOUT_STATUS)).found_nothing == ("zebra",)
    assert ids(after)
    assert texts(after, "prompt") == held
    assert texts(anna.ask(click(*RED, "3")), "prompt") is None


def test_a_click_keeps_phrases_that_are_newer_than_the_draft(client: FlaskClient) -> None:
    anna = Annotator(client, 1, config=WITHOUT_STATUS)
    anna.ask(prompt("the red square"))
    anna.save()
    held = texts(anna.ask(prompt("zebra")), "prompt") or []

    *phrases, said = texts(anna.ask(click(*FAR, "1", positive=False)), "prompt") or []

    assert (phrases, "no mask" in said) == (held, True)
    assert texts(anna.ask(click(*RED, "2")), "prompt") == held
    anna.results = [result for result in anna.results if result["from_name"] != "prompt"]
    anna.results.append(prompt("a unicorn"))
    anna.save()
    assert (texts(anna.ask(click(*FAR, "3", positive=False)), "prompt") or [])[0] == "a unicorn"


def test_a_form_with_neither_gets_nothing(client: FlaskClient, label_studio: Web) -> None:
    label_studio.answers[PATH] = Response("", 404)
    bare = re.sub(r'<TextArea name="prompt".*?/>', "", WITHOUT_STATUS, flags=re.DOTALL)

    assert ask(client, click(*RED, "1"), config=bare) == {"result": []}


def test_status_of_a_phrase_is_left_alone(client: FlaskClient) -> None:
    ask(client, prompt("zebra"), status("Nothing here fits “zebra”."))

    assert texts(ask(client, click(*RED, "1")), "status") is None


def test_the_status_of_a_phrase_ends_with_the_phrase(anna: Annotator) -> None:
    anna.ask(prompt("zebra; the red square"))
    anna.save()
    assert texts(anna.ask(click(*HOLE, "1")), "status") is None, "the phrase is still open"

    anna.results = [result for result in anna.results if result["from_name"] != "prompt"]  # its bin icon
    anna.save()

    assert texts(anna.ask(click(*FAR, "2")), "status") == []


def test_after_a_click_the_status_is_about_the_open_phrases_again(anna: Annotator) -> None:
    said = texts(anna.ask(prompt("zebra; the red square")), "status")
    anna.save()
    failed = anna.ask(click(-1, -1, "1", positive=False))
    assert texts(failed, "status") not in (None, said)
    anna.save()

    assert texts(anna.ask(click(*HOLE, "2")), "status") == said
