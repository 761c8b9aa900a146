"""Scenes with an object that the shipped weights were not trained on, and phrases that name it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import count

import numpy as np

from finetune.data.sample import Sample
from finetune.data.stickers.demo import NOUNS
from finetune.data.stickers.drawing import Mask, Picture
from finetune.data.stickers.phrases import make_phrases
from finetune.data.stickers.scenes import Scene, make_scene
from finetune.data.stickers.vocabulary import also_called, nouns, select_nouns

COMPANY = 11
"""Known nouns from which a scene is drawn, besides the new one."""
SIZE_RANGE_PX = (320, 640)
FRESH_SPLIT = "test"
"""Split of the evaluation scenes; used neither for corrections nor for the weights."""
CORRECTED_SPLIT = "val"
FIRST_SEED = 9_000_000
"""Seeds that nothing else uses."""
PER_NOUN = 100_000
PHRASES_TRIED = 12


@dataclass(frozen=True, eq=False)
class NovelScene:
    """A scene with one object of a new noun."""

    image: Picture
    """(H, W, 3) RGB."""
    phrase: str
    """Phrase that names the object."""
    mask: Mask
    """(H, W): its visible part."""


def novel_scenes(noun: str, split: str) -> Iterator[NovelScene]:
    """Draws scenes with a noun, deterministically.

    Args:
        noun: Noun of the vocabulary.
        split: CORRECTED_SPLIT or FRESH_SPLIT; they share no scene.
    """
    first = FIRST_SEED + PER_NOUN * select_nouns(["core", "base", "novel"]).index(noun)
    others = sorted(set(nouns(*NOUNS)) - also_called(noun) - {noun})
    for seed in count(first):
        rng = np.random.default_rng((seed, len(split)))
        company = rng.choice(others, COMPANY, replace=False).tolist()
        scene = make_scene(seed, split, [noun, *company], size_range=SIZE_RANGE_PX)
        said = name_of(scene, noun, rng)
        if said is not None:
            yield said


def name_of(scene: Scene, noun: str, rng: np.random.Generator) -> NovelScene | None:
    """Returns a phrase for the object of a noun, if there is exactly one."""
    if len(scene.by_noun.get(noun, ())) != 1:
        return None
    for said in make_phrases(scene, rng, ["noun"], PHRASES_TRIED):
        if said.targets == scene.by_noun[noun] and noun in said.phrase.lower():
            return NovelScene(scene.image, said.phrase, scene.mask_of(said.targets))
    return None


class NovelDataset:
    """These scenes as a data set."""

    def __init__(self, scenes: Sequence[NovelScene], is_box: bool = False) -> None:
        self.scenes = scenes
        self._is_box = is_box

    def __len__(self) -> int:
        return len(self.scenes)

    def __getitem__(self, index: int) -> Sample:
        scene = self.scenes[index]
        name = f"novel/{index}"
        return Sample(name, name, scene.image, scene.phrase, scene.mask, "noun", is_box=self._is_box)
