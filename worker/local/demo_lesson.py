"""The demo's lesson: images with an object whose name the shipped weights were never taught.

The word is chosen for the lesson: a new noun is what a fine-tune learns best from few corrections, and of
the five that benchmarks/active_learning.py teaches, this one is learned best (docs/performance.md has the
others). The images are not chosen: they are the first that fit the editor.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

import numpy as np
from PIL import Image

from finetune.data.stickers.dataset import Scene, make_scene
from finetune.data.stickers.demo import NOUNS
from finetune.data.stickers.vocabulary import also_called, nouns
from worker.local.demo_pictures import (
    INDEX,
    SIZE_RANGE_PX,
    SPLIT,
    STICKERS,
    Picture,
    fits_the_editor,
    read_picture,
)

NOUN = "pizza"
PHRASE = f"the {NOUN}"
FIRST_SEED = 7_500_000
"""Scenes that nothing else uses."""
COMPANY = 4
"""Known nouns from which a scene is drawn, besides the new one."""
TAUGHT, ASKED = 8, 4
"""Images to correct, and images on which the word is asked afterwards."""


def lesson_pictures(folder: Path) -> list[Picture]:
    """Finds the images in the folder, or draws them: those to correct first."""
    index = folder / INDEX
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        listed = [
            {"path": path.name, "seed": seed, "phrases": [{"text": PHRASE, "targets": targets}]}
            for path, seed, targets in islice(_draw(folder), TAUGHT + ASKED)
        ]
        index.write_text(json.dumps(listed, indent=1) + "\n")
    return [read_picture(folder, entry) for entry in json.loads(index.read_text())]


def lesson_scene(seed: int) -> Scene:
    """The scene of one image."""
    others = sorted(set(nouns(*NOUNS)) - also_called(NOUN) - {NOUN})
    company = np.random.default_rng(seed).choice(others, COMPANY, replace=False).tolist()
    return make_scene(seed, SPLIT, [NOUN, *company], size_range=SIZE_RANGE_PX, max_stickers=STICKERS[1])


def suggestion_of(number: int) -> str:
    """What the form says above an image, by its number in `lesson_pictures`."""
    if number < TAUGHT:
        return (
            f"Teach it a word ({number + 1} of {TAUGHT}): lowest tool, click the {NOUN}; "
            f"type “{PHRASE}” under its mask, Submit"
        )
    return f"Did it learn? Ask for “{PHRASE}” before the fine-tune and after it"


def _draw(folder: Path) -> Iterator[tuple[Path, int, tuple[int, ...]]]:
    """Yields file, seed and the object of each scene with exactly one such object."""
    drawn = 0
    for seed in count(FIRST_SEED):
        scene = lesson_scene(seed)
        found = scene.by_noun.get(NOUN, ())
        if len(found) != 1 or not fits_the_editor(scene):
            continue
        drawn += 1
        path = folder / f"lesson-{drawn:02d}.png"
        Image.fromarray(scene.image).save(path)
        yield path, seed, tuple(found)
