"""Phrases that may have several targets."""

from __future__ import annotations

import pytest

from sspsam.reading.several import may_have_several


@pytest.mark.parametrize(
    "phrase",
    [
        "all dogs",
        "both cats",
        "the two cars on the left",
        "every fruit",
        "The Animals",
        "dog and cat",
        "people",
        "left dogs",
        "the men in red",
        "3 birds",
        "a dog and a cat",
        "dogs that are next to the tree",
        "犬",
        "scissors",
    ],
)
def test_several(phrase: str) -> None:
    assert may_have_several(phrase)


@pytest.mark.parametrize(
    "phrase",
    [
        "a carrot",
        "the dog left of the trees",
        "the bus",
        "spoon",
        "man in red on the left",
        "second car from the right",
        "that glass",
        "the cactus",
        "right car",
        "the bird that is not next to the trees",
        "the dog's bone",
        "Tennis racket",
    ],
)
def test_one(phrase: str) -> None:
    assert not may_have_several(phrase)
