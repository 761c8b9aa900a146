"""Words and marks around a phrase are removed; what could change its meaning stays."""

from __future__ import annotations

import time

import pytest

from sspsam.phrases import MAX_CHARACTERS
from sspsam.reading.requests import bare_phrase


@pytest.mark.parametrize(
    ("typed", "bare"),
    [
        ("where is the tiger?", "the tiger"),
        ("Where's the tiger", "the tiger"),
        ("wheres the cheese", "the cheese"),
        ("can you find the gift on the left hand side, please?", "the gift on the left hand side"),
        ("Could you please show me all dogs", "all dogs"),
        ("I am looking for the shirt", "the shirt"),
        ("i'm looking for my keys!", "my keys"),
        ("I would like to see the dog", "the dog"),
        ("is there a dog?", "a dog"),
        ("are there any dogs?", "any dogs"),
        ("hey, can you find the dog", "the dog"),
        ("please mark the scissors.", "the scissors"),
        ("find the dog", "the dog"),
        ("the dog pls", "the dog"),
        ("hamburger, if you please", "hamburger"),
        ("THE DOG PLEASE", "THE DOG"),
        ("  the   dog ?!", "the dog"),
        ("“the dog”", "the dog"),
        ("right-most dog", "rightmost dog"),
        ("left most dog", "leftmost dog"),
        ("dog on the left-hand side", "dog on the left hand side"),
        ("top-left cat", "top left cat"),
    ],
)
def test_what_cannot_change_the_meaning_is_removed(typed: str, bare: str) -> None:
    assert bare_phrase(typed) == bare


@pytest.mark.parametrize(
    "typed",
    [
        "the dog", "where is", "please", "find the", "where is it", "?!",  # nothing else would remain
        "Please Touch Museum", "Find Nemo poster", "a sign that says please wait",  # names, and words inside
        "show jumping horse", "mark on the wall", "label of the bottle", "point guard",  # nouns, not requests
        "el perro a la izquierda, ¿dónde está?", "où est le chien", "der größte Hund", "請找狗",
        "t-shirt", "x-ray machine", "the dog that is there", "Where's Waldo book",
    ],
)  # fmt: skip
def test_other_phrases_stay_as_typed(typed: str) -> None:
    assert bare_phrase(typed) == typed


def test_the_time_is_linear_in_the_length() -> None:
    hostile = ["please " * 140, "where is " * 110, "can you " * 120, "'" * 1000, "?" * 1000, "a, " * 300]
    started = time.perf_counter()
    for text in hostile:
        bare_phrase(text[:MAX_CHARACTERS])
    assert time.perf_counter() - started < 0.5
