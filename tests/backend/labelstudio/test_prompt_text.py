"""Messages appended to a phrase, and their removal."""

from __future__ import annotations

import unicodedata

import pytest

from backend.labelstudio import prompt_text

PHRASES = ["the red ball", "zebra", "a - b (c)", "Bär 42", "x"]


@pytest.mark.parametrize("phrase", PHRASES)
def test_notes_come_off(phrase: str) -> None:
    for note in (
        prompt_text.with_failure(phrase, "the image is gone: 404 (again)"),
        prompt_text.with_no_match(phrase),
    ):
        assert note != phrase
        assert note.startswith(phrase)
        assert prompt_text.plain_phrase(note) == phrase
        assert prompt_text.plain_phrase(" ".join(note.split())) == phrase, "also with its blanks collapsed"


def test_only_failures_are_failures() -> None:
    assert prompt_text.has_failed(prompt_text.with_failure("cat", "no image"))
    assert prompt_text.has_failed(prompt_text.with_failure("", "the phrase is empty"))
    assert not prompt_text.has_failed(prompt_text.with_no_match("cat"))
    assert not prompt_text.has_failed("cat")


def test_a_second_note_takes_the_place_of_the_first() -> None:
    once = prompt_text.with_failure("cat", "no image")

    assert prompt_text.with_failure(once, "no image") == once
    assert prompt_text.plain_phrase(prompt_text.with_no_match(once)) == "cat"


def test_a_note_without_a_phrase_leaves_none() -> None:
    assert prompt_text.plain_phrase(prompt_text.with_failure(" ", "the phrase is empty")) == ""


def test_spellings_of_a_phrase_are_one() -> None:
    assert prompt_text.phrase_key("  The Red\n ball") == prompt_text.phrase_key(
        prompt_text.with_no_match("the red ball")
    )
    assert prompt_text.phrase_key("the red ball") != prompt_text.phrase_key("the red balls")


def test_accents_may_be_letters_or_follow_them() -> None:
    """As Windows and macOS write them. Keys of composed phrases have to stay: they make region IDs."""
    composed = "the \u00e9clair, \u01f0"

    assert prompt_text.phrase_key(composed) == composed.casefold()
    assert prompt_text.phrase_key(unicodedata.normalize("NFD", composed)) == composed.casefold()


@pytest.mark.parametrize(
    ("value", "texts"),
    [
        ("one", ["one"]),
        (["one", " two "], ["one", "two"]),
        (["", "  "], []),
        (None, []),
        ([1, None], []),
        ("", []),
    ],
)
def test_entries(value: object, texts: list[str]) -> None:
    assert prompt_text.entries(value) == texts


@pytest.mark.parametrize(
    ("entry", "phrases"),
    [
        ("the cat; the dog on the left ;a tree", ["the cat", "the dog on the left", "a tree"]),
        ("红色的杯子；左边的狗；", ["红色的杯子", "左边的狗"]),
        ("the cat", ["the cat"]),
        (";; the cat;", ["the cat"]),
        (" ; ", [""]),
        ("", [""]),
    ],
)
def test_semicolons_part_phrases(entry: str, phrases: list[str]) -> None:
    assert prompt_text.split(entry) == phrases


def test_semicolons_in_a_note_part_nothing() -> None:
    failed = prompt_text.with_failure("the cat", "the server is away; try again")

    assert prompt_text.split(failed) == [failed]
    assert prompt_text.split("a dog; " + failed) == [
        prompt_text.with_failure("a dog", "the server is away; try again"),
        failed,
    ]


def test_a_phrase_typed_twice_in_an_entry_is_one() -> None:
    assert list(prompt_text.distinct(["a cat; A  Cat", "a dog;a cat"]).values()) == ["a cat", "a dog"]
