"""What the status line says about how phrases were read."""

from __future__ import annotations

import re

from backend.assistant.messages import open_phrases_message, reading_message
from backend.assistant.prompt_box import read_box
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.prompt_text import with_no_match
from sspsam.reading.reader import Reading

MENDED = Reading("the scissors", (("scisors", "scissors"),))
UNKNOWN = Reading("the sprocket", unknown=("sprocket",))


def test_a_phrase_that_was_read_as_typed_needs_no_message() -> None:
    assert reading_message({"where is the dog?": Reading("the dog")}, []) == ""


def test_changed_words_are_shown() -> None:
    assert reading_message({"the scisors": MENDED}, []) == "asked: the scissors."


def test_an_unknown_word_is_named_if_nothing_was_found() -> None:
    assert (
        reading_message({"the sprocket": UNKNOWN}, ["the sprocket"]) == "The model does not know “sprocket”."
    )
    assert reading_message({"the sprocket": UNKNOWN}, []) == ""


def test_long_words_and_many_phrases_are_shortened() -> None:
    readings = {f"phrase {i}": Reading("w" * 900, (("v", "w"),), ("x" * 900,)) for i in range(200)}
    assert len(reading_message(readings, list(readings))) < 500


def test_the_advice_to_deny_a_phrase_works_as_written() -> None:
    """A phrase that is too long for the message would not be denied by its beginning."""
    config = LabelingConfig.parse(RECOMMENDED_CONFIG)
    long = "the very small green bottle with a yellow label that stands behind the big red box"

    short_advice, long_advice = (open_phrases_message([one], {}, config) for one in ("the cup", long))

    [denial] = re.findall("Enter “(.*?)”\\.", short_advice)
    assert read_box([with_no_match("the cup"), denial]).denied == ("the cup",)
    assert "Enter “no” and the phrase." in long_advice
    assert read_box([with_no_match(long), f"no {long}"]).denied == (long,)
