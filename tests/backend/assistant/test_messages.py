"""What the status line says about how phrases were read."""

from __future__ import annotations

from backend.assistant.messages import reading_message
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
