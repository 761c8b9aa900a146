"""The demo's images: sticker scenes, the same on every machine, with suggested phrases."""

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from finetune.data.stickers.dataset import Scene, ScenePhrase, make_phrases, make_scene, select_nouns
from finetune.data.stickers.demo import NOUNS
from finetune.data.stickers.vocabulary import also_called

SPLIT = "val"
FIRST_SEED = 7_000_057
"""Scenes that neither training nor evaluation uses. The shipped weights answer the phrases of the first
scene correctly, since users start with it; the others are uncurated, including failures."""
SIZE_RANGE_PX = (480, 800)
WIDTH_PER_HEIGHT = (1.0, 1.7)
"""Landscape images: the editor is wider than high."""
STICKERS = (3, 6)
LEAST_SIDE = 0.12
"""Size of a sticker as a fraction of the image's shorter side: easy to see and to paint over."""
FAMILIES = ("place", "size", "several", "ordinal", "colour", "relation")
"""In addition to a plain name; each image gets PER_PICTURE of these families, in rotation."""
PER_PICTURE = 2
INDEX = "pictures.json"


@dataclass(frozen=True)
class DemoPhrase:
    """A suggested phrase and the scene's objects that it refers to."""

    text: str
    targets: tuple[int, ...]
    """Indices of objects; empty without a target."""


@dataclass(frozen=True)
class Picture:
    """An image on disk and suggested phrases: a name, two phrases of other families, one without a target."""

    path: Path
    seed: int | None
    """`demo_scene(seed)` draws the scene again, with its objects; None for a photograph."""
    phrases: tuple[DemoPhrase, ...]


def demo_pictures(folder: Path, number: int) -> list[Picture]:
    """Finds the images in the folder, or draws them."""
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
    """The scene of one image."""
    return make_scene(seed, SPLIT, NOUNS, size_range=SIZE_RANGE_PX, max_stickers=STICKERS[1])


def draw_pictures(folder: Path) -> Iterator[Picture]:
    """Yields suitable scenes."""
    shown = 0
    for seed in count(FIRST_SEED):
        scene = demo_scene(seed)
        turn = PER_PICTURE * shown
        families = [FAMILIES[(turn + number) % len(FAMILIES)] for number in range(PER_PICTURE)]
        phrases = (
            phrases_for(scene, families, np.random.default_rng(seed)) if fits_the_editor(scene) else None
        )
        if phrases:
            shown += 1
            path = folder / f"scene-{shown:02d}.png"
            Image.fromarray(scene.image).save(path)
            yield Picture(path, seed, phrases)


def fits_the_editor(scene: Scene) -> bool:
    """Whether a scene has a suitable shape, is neither empty nor crowded, and contains no tiny object."""
    height, width = scene.image.shape[:2]
    shape_fits = WIDTH_PER_HEIGHT[0] <= width / height <= WIDTH_PER_HEIGHT[1]
    least = LEAST_SIDE * min(height, width)
    boxes = [thing.box_xyxy for thing in scene.objects]
    large = all(min(x1 - x0, y1 - y0) >= least for x0, y0, x1, y1 in boxes)
    return shape_fits and large and STICKERS[0] <= len(scene.objects) <= STICKERS[1]


def phrases_for(
    scene: Scene, families: Sequence[str], rng: np.random.Generator
) -> tuple[DemoPhrase, ...] | None:
    """A name in the scene, a phrase of each family and an absent noun; None if one is missing."""
    chosen: dict[tuple[int, ...], ScenePhrase] = {}
    for family in ("noun", *families):
        said = make_phrases(scene, rng, [family], count=4)
        new = next((phrase for phrase in said if phrase.targets not in chosen), None)
        if new is None:
            return None
        chosen[new.targets] = new
    there = set(scene.by_noun).union(*(also_called(noun) for noun in scene.by_noun))
    absent = sorted(set(select_nouns(NOUNS)) - there)
    nothing = DemoPhrase(f"the {rng.choice(absent)}", ())
    return (*(DemoPhrase(said.phrase.lower(), said.targets) for said in chosen.values()), nothing)
