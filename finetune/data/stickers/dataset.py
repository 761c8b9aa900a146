"""The data set `stickers`: scenes of sticker art, drawn on demand, with phrases about them."""

import re
from collections.abc import Sequence
from dataclasses import replace

import cv2
import numpy as np

from finetune.data.sample import DatasetNameError, Sample
from finetune.data.stickers.art import STYLES, Picture
from finetune.data.stickers.backgrounds import draw_background
from finetune.data.stickers.drawing import Mask, draw_sticker, overlap, paste, tint
from finetune.data.stickers.phrases import FAMILIES, ScenePhrase, make_phrases
from finetune.data.stickers.scenes import (
    CLOSE_UP_RANGE,
    MAX_ANGLE_DEG,
    MIN_SIDE_PX,
    RECOLOURED,
    SIZE_RANGE_PX,
    SOLID_ALPHA,
    SPLITS,
    Scene,
    SceneObject,
    make_scene,
)
from finetune.data.stickers.vocabulary import FIRST_NOUNS, nouns, select_nouns, vocabulary
from finetune.data.stickers.wording.reword import reword

__all__ = [
    "FAMILIES",
    "FIRST_NOUNS",
    "STYLES",
    "Scene",
    "SceneObject",
    "ScenePhrase",
    "StickerDataset",
    "make_phrases",
    "make_scene",
    "nouns",
    "parse_range",
    "parse_size",
    "render_crop",
    "select_nouns",
]

SCENES_PER_SEED = 1_000_000
"""Distance between the scene numbers of consecutive seeds, so that they do not overlap."""
WORDINGS = ("templates", "varied")
SPARE_SCENES = 8
"""Maximum number of scenes tried to find one with enough phrases."""
CACHED_SCENES = 4
MAX_SIDE_PX = 20_000


class StickerDataset:
    """Scenes with a fixed number of phrases each. Sample `i` is determined by the arguments."""

    def __init__(
        self,
        split: str = "train",
        count: int = 1000,
        seed: int = 0,
        families: Sequence[str] | None = None,
        nouns: Sequence[str] | None = None,
        styles: Sequence[str] | None = None,
        phrases_per_scene: int = 8,
        size_range: tuple[int, int] = SIZE_RANGE_PX,
        sticker_range: tuple[float, float] | None = None,
        canvas_hw: tuple[int, int] | None = None,
        close_ups: float = 0.0,
        wording: str = "templates",
    ) -> None:
        """Describes a data set; scenes are drawn on demand.

        Args:
            split: "train", "val" or "test"; they share no scene.
            count: Number of scenes.
            seed: Selects scenes of the split.
            families: Phrase families; all if None.
            nouns: Nouns that may appear in the scenes, or names of groups (see `select_nouns`).
            styles: Drawing styles; all if None.
            phrases_per_scene: Number of contiguous samples per scene.
            size_range: Shortest and longest side of the canvases, px.
            sticker_range: As for `make_scene`.
            canvas_hw: As for `make_scene`.
            close_ups: Share of scenes with stickers of CLOSE_UP_RANGE, 0..1.
            wording: "templates", or "varied" for the same phrases in wordings as varied as people's
                (`finetune.data.stickers.wording`); scenes and targets are the same.

        Raises:
            ValueError: an unknown split, family, noun, style or wording, or an impossible size or share.
        """
        if wording not in WORDINGS:
            raise ValueError(f"no wording {wording!r}; known: {', '.join(WORDINGS)}")
        if split not in SPLITS:
            raise ValueError(f"no split {split!r}; known: {', '.join(SPLITS)}")
        for chosen, known, what in ((families, FAMILIES, "family"), (styles, STYLES, "style")):
            strange = set(chosen or ()) - set(known)
            if strange:
                raise ValueError(f"no {what} {', '.join(sorted(strange))}; known: {', '.join(known)}")
        self.split = split
        self.count = count
        self.seed = seed
        self.families = tuple(families or FAMILIES)
        self.nouns = None if nouns is None else select_nouns(nouns)
        self.styles = styles
        self.phrases_per_scene = phrases_per_scene
        self.size_range = size_range
        self.sticker_range = sticker_range
        self.canvas_hw = canvas_hw
        if not 0 <= close_ups <= 1:
            raise ValueError(f"close_ups is {close_ups}, expected a share from 0 to 1")
        self.close_ups = close_ups
        self.wording = wording
        self._drawn: dict[int, tuple[Scene, list[ScenePhrase], Mask]] = {}

    def __len__(self) -> int:
        return self.count * self.phrases_per_scene

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number, turn = divmod(index, self.phrases_per_scene)
        scene, phrases, everything = self._read(number)
        phrase = phrases[turn]
        return Sample(
            sample_id=f"stickers/{scene.scene_id}/{turn}",
            image_id=f"stickers/{scene.scene_id}",
            image=scene.image,
            phrase=phrase.phrase,
            mask=scene.mask_of(phrase.targets),
            family=phrase.family,
            all_objects=everything,
        )

    def scene(self, number: int) -> tuple[Scene, list[ScenePhrase]]:
        """Scene `number` and the phrases of its samples."""
        return self._read(number)[:2]

    def sticker_range_of(self, seed: int) -> tuple[float, float] | None:
        """The argument `sticker_range` of the scene with that seed."""
        if self.close_ups and np.random.default_rng((SPLITS[self.split], seed, 2)).random() < self.close_ups:
            return CLOSE_UP_RANGE
        return self.sticker_range

    def _read(self, number: int) -> tuple[Scene, list[ScenePhrase], Mask]:
        """Draws a scene, or returns it from the cache of recent ones."""
        if number not in self._drawn:
            while len(self._drawn) >= CACHED_SCENES:
                del self._drawn[next(iter(self._drawn))]
            self._drawn[number] = self._draw(number)
        return self._drawn[number]

    def _draw(self, number: int) -> tuple[Scene, list[ScenePhrase], Mask]:
        """Finds the first scene for a number that allows enough phrases."""
        wanted = self.phrases_per_scene
        best: tuple[Scene, list[ScenePhrase]] | None = None
        for spare in range(SPARE_SCENES):
            seed = (self.seed * SCENES_PER_SEED + number) * SPARE_SCENES + spare
            scene = make_scene(
                seed,
                self.split,
                self.nouns,
                self.styles,
                self.size_range,
                sticker_range=self.sticker_range_of(seed),
                canvas_hw=self.canvas_hw,
            )
            rng = np.random.default_rng((SPLITS[self.split], seed, 1))
            phrases = make_phrases(scene, rng, self.families, wanted)
            if best is None or len(phrases) > len(best[1]):
                best = scene, phrases
            if len(phrases) == wanted:
                break
        assert best is not None
        scene, phrases = best
        if not phrases:
            raise DatasetNameError(
                f"{self.split} scene {number}: no phrases possible with families {', '.join(self.families)}"
            )
        if self.wording == "varied":
            rng = np.random.default_rng((SPLITS[self.split], self.seed, number, 2))
            phrases = [replace(phrase, phrase=reword(phrase.phrase, rng)) for phrase in phrases]
        repeated = [phrases[turn % len(phrases)] for turn in range(wanted)]
        return scene, repeated, scene.mask_of(range(len(scene.objects)))


_SIZE = re.compile(r"(\d{1,6})x(\d{1,6})")
_NUMBER = r"(\d{1,9}(?:\.\d{1,9})?|\.\d{1,9})"
_RANGE = re.compile(f"{_NUMBER}-{_NUMBER}")


def parse_size(text: str) -> tuple[int, int]:
    """Canvas size (H, W) from a text such as "4000x3000", width first.

    Raises:
        ValueError: another form, or a side below MIN_SIDE_PX or above MAX_SIDE_PX.
    """
    match = _SIZE.fullmatch(text.strip())
    width, height = (int(side) for side in match.groups()) if match else (0, 0)
    if not MIN_SIDE_PX <= min(width, height) <= max(width, height) <= MAX_SIDE_PX:
        raise ValueError(
            f"size is {text!r}, expected WIDTHxHEIGHT such as 4000x3000, each side from {MIN_SIDE_PX} to "
            f"{MAX_SIDE_PX} px"
        )
    return height, width


def parse_range(text: str) -> tuple[float, float]:
    """Fractions such as "0.02-0.1", the smaller first.

    Raises:
        ValueError: another form, or not within 0 and 1.
    """
    match = _RANGE.fullmatch(text.strip())
    low, high = (float(number) for number in match.groups()) if match else (0.0, 0.0)
    if not 0 < low <= high <= 1:
        raise ValueError(
            f"objects is {text!r}, expected two fractions from 0 to 1, the smaller first: 0.02-0.1"
        )
    return low, high


def render_crop(noun: str, style: str, rng: np.random.Generator, size: int = 96) -> tuple[Picture, Mask]:
    """Draws one sticker on a background, for training object recognition.

    Args:
        noun: Noun to draw.
        style: One of STYLES.
        rng: Source of size, rotation, position, colours and grain.
        size: Side of the image, px.

    Returns:
        (size, size, 3) uint8 RGB, and the (size, size) mask of the sticker.
    """
    longest_px = size * rng.uniform(0.3, 1.0)
    sticker = draw_sticker(noun, style, longest_px, rng.uniform(-1, 1) * MAX_ANGLE_DEG, rng.random() < 0.4)
    sticker = tint(rng, sticker, vocabulary()[noun].category in RECOLOURED)
    crop = draw_background(rng, size, size)
    height, width = sticker.shape[:2]
    left, top = (round(rng.uniform(-0.1, 1.1) * (size - side)) for side in (width, height))
    paste(crop, sticker, left, top)
    on_crop, in_sticker = overlap(crop.shape, left, top, sticker.shape)
    mask = np.zeros((size, size), bool)
    mask[on_crop] = sticker[in_sticker][..., 3] >= SOLID_ALPHA
    brightness = np.arange(256) * rng.uniform(0.75, 1.2) + rng.uniform(-20, 25)
    crop = np.asarray(cv2.LUT(crop, np.clip(brightness, 0, 255).astype(np.uint8)), np.uint8)
    if rng.random() < 0.4:
        grain = rng.integers(0, int(rng.integers(4, 40)), crop.shape, dtype=np.uint8)
        crop = np.asarray(cv2.add(cv2.subtract(crop, grain // 2), grain), np.uint8)
    return crop, mask
