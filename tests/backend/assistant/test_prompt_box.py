"""What an entry of the prompt box denies."""

from __future__ import annotations

import pytest

from backend.assistant.prompt_box import read_box
from backend.labelstudio.prompt_text import with_no_match


@pytest.mark.parametrize(
    ("phrase", "entry"),
    [
        ("the sun", "no sun"),
        ("The Sun.", "no sun"),
        ("the sun", "No sun."),
        ("all dogs", "no dogs"),
        ("my dog", "no dog"),
        ("where is the dog?", "no dog"),
        ("any café", "no café"),
        ("sun", "no the sun"),
    ],
)
def test_no_denies_the_thing_of_an_open_phrase(phrase: str, entry: str) -> None:
    box = read_box([with_no_match(phrase), entry])

    assert (box.denied, box.asked, box.unmatched) == ((phrase,), (), ())


@pytest.mark.parametrize("entry", ["no entry sign", "no parking", "no dogs"])
def test_other_phrases_that_begin_so_are_asked(entry: str) -> None:
    box = read_box([with_no_match("the sun"), entry])

    assert (box.denied, box.asked) == ((), (entry,))
