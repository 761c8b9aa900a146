"""The demo's pictures: sticker scenes, the same on every machine, with phrases that fit them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.demo import NOUNS
from finetune.data.stickers import Scene, ScenePhrase, make_phrases, make_scene, select_nouns

SPLIT = "val"
FIRST_SEED = 7_000_000
"""Scenes that neither training nor evaluation draws."""
SIZE_RANGE_PX = (480, 800)
WIDTH_PER_HEIGHT = (1.0, 1.7)
"""Landscape pictures: the editor is wider than high."""
STICKERS = (3, 6)
LEAST_SIDE = 0.12
"""Of a sticker, as a part of the picture's shorter side: easy to see, and to paint over."""
PLACES = re.compile(r"\b(left|right|top|bottom)\b")
INDEX = "pictures.json"


@dataclass(frozen=True)
class DemoPhrase:
    """Something to type, and which of the scene's objects it means."""

    text: str
    targets: tuple[int, ...]
    """Indices of objects; none when nothing fits."""


@dataclass(frozen=True)
class Picture:
    """A picture on disk, and a name, a place and a thing that is not there, to type."""

    path: Path
    seed: int
    """`demo_scene(seed)` draws it again, with what is in it."""
    phrases: tuple[DemoPhrase, ...]


def demo_pictures(folder: Path, number: int) -> list[Picture]:
    """Finds the pictures in the folder, or draws them there."""
    index = folder / INDEX
    if not index.exists():
        folder.mkdir(parents=True, exist_ok=True)
        drawn = [asdict(picture) for picture in islice(draw_pictures(folder), number)]
        listed = [{**picture, "path": picture["path"].name} for picture in drawn]
        index.write_text(json.dumps(listed, indent=1) + "\n")
    return [read_picture(folder, entry) for entry in json.loads(index.read_text())]


def read_picture(folder: Path, entry: Mapping[str, Any]) -> Picture:
    """Reads one entry of the index."""
    phrases = (DemoPhrase(said["text"], tuple(said["targets"])) for said in entry["phrases"])
    return Picture(folder / entry["path"], entry["seed"], tuple(phrases))


def demo_scene(seed: int) -> Scene:
    """The scene of one picture."""
    return make_scene(seed, SPLIT, (NOUNS,), size_range=SIZE_RANGE_PX, max_stickers=STICKERS[1])


def draw_pictures(folder: Path) -> Iterator[Picture]:
    """Draws one fitting scene after the other."""
    shown = 0
    for seed in count(FIRST_SEED):
        scene = demo_scene(seed)
        phrases = phrases_for(scene, np.random.default_rng(seed)) if fits_the_editor(scene) else None
        if phrases:
            shown += 1
            path = folder / f"scene-{shown:02d}.png"
            Image.fromarray(scene.image).save(path)
            yield Picture(path, seed, phrases)


def fits_the_editor(scene: Scene) -> bool:
    """Whether a scene is of a good shape, neither empty nor crowded, and nothing in it is tiny."""
    height, width = scene.image.shape[:2]
    shape_fits = WIDTH_PER_HEIGHT[0] <= width / height <= WIDTH_PER_HEIGHT[1]
    least = LEAST_SIDE * min(height, width)
    boxes = [thing.box_xyxy for thing in scene.objects]
    large = all(min(x1 - x0, y1 - y0) >= least for x0, y0, x1, y1 in boxes)
    return shape_fits and large and STICKERS[0] <= len(scene.objects) <= STICKERS[1]


def phrases_for(scene: Scene, rng: np.random.Generator) -> tuple[DemoPhrase, ...] | None:
    """A noun of the scene, another thing by its place, and a noun that is not there; None if it has none."""
    known = set(select_nouns((NOUNS,)))
    names = [said for said in make_phrases(scene, rng, ["noun"], count=4) if bare(said) in known]
    places = [said for said in make_phrases(scene, rng, ["place"], count=6) if is_simple_place(said, known)]
    pairs = [(name, place) for name in names for place in places if name.targets != place.targets]
    if not pairs:
        return None
    nothing = DemoPhrase(f"the {rng.choice(sorted(known - set(scene.by_noun)))}", ())
    return (*(DemoPhrase(said.phrase.lower(), said.targets) for said in pairs[0]), nothing)


def bare(phrase: ScenePhrase) -> str:
    """A phrase without its article."""
    return re.sub(r"^(the|an?) ", "", phrase.phrase.lower())


def is_simple_place(phrase: ScenePhrase, nouns: set[str]) -> bool:
    """Whether a phrase names a noun and one of the four sides."""
    words = phrase.phrase.lower()
    return PLACES.search(words) is not None and any(noun in words.split() for noun in nouns)
