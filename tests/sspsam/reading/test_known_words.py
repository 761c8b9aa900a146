"""Typing errors are mended where the match is unique, and unknown words are named."""

from __future__ import annotations

import time

import pytest

from sspsam.phrases import MAX_CHARACTERS, token_ids
from sspsam.reading.known_words import KnownWords
from sspsam.reading.reader import PhraseReader

NAMES = (
    "scissors",
    "hot dog",
    "laptop",
    "ladybugs",
    "dog",
    "dogs",
    "cat",
    "peach",
    "spider",
    "brown bear",
    "sun",
)
KNOWN = KnownWords(
    NAMES, ("the", "on", "of", "left", "right", "red", "brown", "big", "next", "to", "from", "second")
)


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("the scisors", "the scissors"),
        ("scissosr on the left", "scissors on the left"),
        ("the Spidr", "the spider"),
        ("lap top", "laptop"),
        ("lady bugs", "ladybugs"),
        ("hotdog", "hot dog"),
        ("hot-dog", "hot dog"),
        ("peech", "peach"),
        ("the scissörs", "the scissors"),
        ("the bright-red dog", "the bright red dog"),
        ("dog sniffing", "dog"),
    ],
)
def test_typing_errors_are_mended(typed: str, asked: str) -> None:
    read = KNOWN.read(typed)
    assert read.text == asked
    assert read.changes
    assert not read.unknown


@pytest.mark.parametrize(
    "typed",
    [
        "crown",
        "dig",
        "fog",
        "can",
        "log",
        "peaches",
        "the dog's",
        "big brown bear",
        "koala",
        "sum",
        "THE DOG",
        "the sixth dog",
        "nine dogs",
        "a dozen dogs",
        "the non red dog",
        "the non-red dog",
        "the un-brown dog",
        "the dog wing",
        "the dog king",
        "42",
    ],
)
def test_words_and_english_words_are_not_changed(typed: str) -> None:
    read = KNOWN.read(typed)
    assert (read.text, read.changes) == (typed, ())


def test_a_word_with_two_nearest_ones_is_not_changed() -> None:
    known = KnownWords(("marble", "garble"))
    assert known.read("varble").text == "varble"


@pytest.mark.parametrize(
    ("typed", "asked"),
    [
        ("yummy peach", "peach"),
        ("the dog sleeping on the left", "the dog on the left"),
        ("slice of hot dog", "hot dog"),
        ("any dogs", "dogs"),
    ],
)
def test_unknown_words_that_describe_a_known_name_are_left_out(typed: str, asked: str) -> None:
    read = KNOWN.read(typed)
    assert read.text == asked
    assert "" in {meant for _, meant in read.changes}
    assert not read.unknown


@pytest.mark.parametrize(
    "typed", ["less big dog", "fatter dog", "greenish dog", "dog without cat", "dog kennel"]
)
def test_unknown_words_that_choose_between_things_stay(typed: str) -> None:
    assert KNOWN.read(typed).text == typed


@pytest.mark.parametrize(
    ("typed", "unknown"),
    [
        ("the sprocket", ("sprocket",)),
        ("sprocket next to the dog", ("sprocket",)),
        ("the second koala from the left", ("koala",)),
        ("the dog next to the koala", ()),
        ("the red dog", ()),
        ("something", ()),
        ("¿dónde está el perro?", ("dónde", "está", "perro")),
        ("собака слева", ("собака", "слева")),
        ("左边的狗", ("左边的狗",)),
        ("狗", ("狗",)),
        ("कुत्ता", ("कुत्ता",)),
    ],
)
def test_an_unknown_subject_is_named(typed: str, unknown: tuple[str, ...]) -> None:
    assert KNOWN.read(typed).unknown == unknown


def test_words_that_a_fine_tune_learned_are_known() -> None:
    learned = frozenset([*token_ids("koala"), *token_ids("狗")])
    assert KNOWN.read("the koala", learned).unknown == ()
    assert KNOWN.read("狗", learned).unknown == ()
    assert KNOWN.read("the marmoset", learned).unknown == ("marmoset",)


def test_without_a_list_of_words_only_the_request_is_removed() -> None:
    reading = PhraseReader().read("where is the scisors?")
    assert (reading.asked, reading.changes, reading.unknown) == ("the scisors", (), ())


def test_the_work_is_bounded() -> None:
    reader = PhraseReader(KNOWN)
    hostile = [
        " ".join(f"qz{'w' * (i % 7)}{i}vbx"[:9] for i in range(120)),
        "scisorz" * 140,
        "a-" * 500,
        "x " * 500,
        "狗 " * 500,
    ]
    started = time.perf_counter()
    for text in hostile:
        reader.read(text[:MAX_CHARACTERS])
    assert time.perf_counter() - started < 1.0
