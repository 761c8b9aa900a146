"""Human phrases are classified like the phrases of scenes."""

from __future__ import annotations

import pytest

from finetune.data.dataset import open_dataset
from finetune.data.phrase_types import FAMILY_PATTERNS, family_of
from finetune.data.stickers.phrases import FAMILIES


@pytest.mark.parametrize(
    ("phrase", "family"),
    [
        ("the dog", "noun"),
        ("a coffee mug", "noun"),
        ("the man in red on the left", "place"),
        ("the second cup from the left", "ordinal"),
        ("the 3rd window", "ordinal"),
        ("the boat next to the pier", "relation"),
        ("the cat left of the dog", "relation"),
        ("woman with an umbrella", "relation"),
        ("all apples", "several"),
        ("the biggest tree", "size"),
        ("the smaller one", "size"),
        ("a Red car", "colour"),
        ("the leftmost horse", "place"),
        ("a tenant", "noun"),
    ],
)
def test_family_of(phrase: str, family: str) -> None:
    assert family_of(phrase, has_target=True) == family
    assert family_of(phrase, has_target=False) == "none"


def test_the_names_are_those_of_scenes() -> None:
    assert {*FAMILY_PATTERNS, "none", "noun"} == set(FAMILIES)


def test_most_of_what_is_said_about_scenes_is_sorted_as_the_scenes_say() -> None:
    scenes = open_dataset("stickers/val?count=30")
    samples = [scenes[index] for index in range(0, len(scenes), 2)]
    right = sum(family_of(sample.phrase, sample.has_target) == sample.family for sample in samples)
    assert right / len(samples) > 0.85
