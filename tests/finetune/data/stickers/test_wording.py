"""Wordings keep what a template phrase refers to, and none is one of the natural phrases."""

from __future__ import annotations

import re

import numpy as np
import pytest

from benchmarks.common.natural import draw_scene, read_phrases
from finetune.data.dataset import open_dataset
from finetune.data.sample import DatasetNameError
from finetune.data.stickers.dataset import StickerDataset
from finetune.data.stickers.sentences import make_sentence
from finetune.data.stickers.vocabulary import nouns, vocabulary
from finetune.data.stickers.wording.reword import filler_words, misspell, reword
from finetune.data.stickers.wording.synonyms import SYNONYMS
from sspsam.phrases import normalise, tokenize

MEANING = (
    ("the dog on the left", r"left"),
    ("right dog", r"right"),
    ("leftmost dog", r"left(?=.*edge|.*side| )?|left"),
    (
        "the second dog from the right",
        r"(?:2nd|second|number 2|number two|no\. ?2|2).*right|right.*(?:2nd|second)",
    ),
    ("the red dog", r"red"),
    ("the smallest dog", r"smallest|tiniest|littlest"),
    ("dog left of the cat", r"(?:dog|puppy|doggy|hound).*left.*(?:cat|kitt)"),
    ("the dog above the cat", r"(?:dog|puppy|doggy|hound).*(?:above|over|higher).*(?:cat|kitt)"),
    ("the dog that is not next to the cat", r"not|n't|nt |far|away"),
    ("all dogs", r"dogs|hounds"),
    ("the two dogs", r"two|2|both|pair"),
    ("dog and cat", r"(?:dog|puppy|doggy|hound).*(?:cat|kitt)"),
)


def wordings(phrase: str, count: int = 60) -> list[str]:
    rng = np.random.default_rng(3)
    return [reword(phrase, rng).lower().replace("-", " ") for _ in range(count)]


@pytest.mark.parametrize(("phrase", "pattern"), MEANING)
def test_wordings_keep_the_words_that_choose_the_object(phrase: str, pattern: str) -> None:
    said = wordings(phrase)
    kept = [bool(re.search(pattern, wording)) for wording in said]
    assert np.mean(kept) > 0.85, [
        w for w, k in zip(said, kept, strict=True) if not k
    ]  # the rest are misspelled
    assert len(set(said)) > 30


def test_the_opposite_side_is_never_named() -> None:
    assert not [wording for wording in wordings("the dog on the left", 200) if "right" in wording.split()]


def test_colours_are_not_taken_for_fruit() -> None:
    said = wordings("orange car", 80)
    assert not [wording for wording in said if "fruit" in wording]


def test_synonyms_are_names_of_no_other_noun() -> None:
    names = {name for noun in vocabulary().values() for name in (noun.name, noun.plural)}
    synonyms = [synonym for group in SYNONYMS.values() for synonym in group]
    assert not names & set(synonyms)
    assert len(synonyms) == len(set(synonyms))
    assert all(isinstance(group, tuple) for group in SYNONYMS.values())


def test_novel_nouns_occur_in_no_wording() -> None:
    novel = {part for noun in nouns("novel") for part in noun.split()} - {"tree"}
    assert not novel & set(filler_words())


def test_a_typing_error_changes_a_word_a_little() -> None:
    rng = np.random.default_rng(0)
    for _ in range(50):
        changed = misspell("scissors", rng)
        assert abs(len(changed) - len("scissors")) <= 1
        assert changed[0] == "s"


def test_scenes_and_targets_are_those_of_the_templates() -> None:
    plain, varied = (
        StickerDataset("val", 2, seed=3, size_range=(96, 128), wording=w) for w in ("templates", "varied")
    )
    for index in range(len(plain)):
        one, other = plain[index], varied[index]
        assert (one.mask == other.mask).all()
        assert one.family == other.family
    assert [plain[i].phrase for i in range(16)] != [varied[i].phrase for i in range(16)]
    assert [varied[i].phrase for i in range(16)] == [varied[i].phrase for i in range(16)]


def test_an_unknown_wording_is_refused() -> None:
    with pytest.raises(DatasetNameError, match="no wording 'rhyme'"):
        open_dataset("stickers/val?wording=rhyme")


def test_natural_phrases_are_not_produced_by_the_generator() -> None:
    natural = {normalise(row.phrase) for row in read_phrases()}
    rng = np.random.default_rng(7)
    trained = nouns("core", "base")
    for _ in range(1500):
        sentence = make_sentence(trained, rng).text
        assert normalise(sentence) not in natural
        assert normalise(reword(sentence, rng)) not in natural


def test_there_are_300_natural_phrases_about_objects_of_their_scenes() -> None:
    rows = read_phrases()
    assert len(rows) == len({(row.scene, row.phrase) for row in rows}) == 300
    tokenize([row.phrase for row in rows])
    for row in rows:
        assert (row.targets == ()) == (row.group in ("none", "unknown"))


def test_natural_phrases_are_about_the_scenes_that_they_were_written_for() -> None:
    assert [thing.noun for thing in draw_scene(3).objects] == ["banana", "stopwatch", "banana", "lizard"]
    assert [thing.noun for thing in draw_scene(22).objects] == ["goat", "shield", "helicopter"]
