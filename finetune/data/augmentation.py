"""Augmented views of images: mirrored with left and right swapped in phrases, cropped, lighter or darker."""

from __future__ import annotations

import re
import zlib
from dataclasses import replace

import cv2
import numpy as np

from finetune.data.sample import Dataset, Sample
from sspsam.images.masks import mask_to_box_xyxy

LEAST_WINDOW = 0.5
"""Minimum fraction of an image side in a crop."""
CONTRAST = (0.75, 1.25)
BRIGHTNESS = (-25.0, 25.0)
"""In units of 1/255."""
_SIDES = re.compile(r"\b(left|right)(?=(?:most|hand|side|ward|wards|y|er|est|s)?\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def swap_sides(phrase: str) -> str:
    """Swaps left and right, also in "leftmost" or "right-hand"; "bright" is unchanged."""
    return _SIDES.sub(lambda match: _like(match[1], _OTHER[match[1].lower()]), phrase)


def mirror(sample: Sample) -> Sample:
    """The mirrored sample: image, masks and box flipped, sides swapped in the phrase."""
    everything = sample.all_objects
    box = sample.box_xyxy
    width = sample.image.shape[1]
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[:, ::-1]),
        mask=np.ascontiguousarray(sample.mask[:, ::-1]),
        phrase=swap_sides(sample.phrase),
        all_objects=None if everything is None else np.ascontiguousarray(everything[:, ::-1]),
        box_xyxy=None if box is None else (width - box[2], box[1], width - box[0], box[3]),
    )


class VariedDataset:
    """Every sample several times: the original and fixed augmented views.

    A few corrections are thus seen at many positions and sizes, and embedded once each.

    Args:
        dataset: Samples.
        views: Number of views per sample; 1 leaves the data set unchanged.
    """

    def __init__(self, dataset: Dataset, views: int) -> None:
        self.dataset = dataset
        self.views = views

    def __len__(self) -> int:
        return len(self.dataset) * self.views

    def __getitem__(self, index: int) -> Sample:
        view, number = divmod(index, len(self.dataset))
        sample = self.dataset[number]
        return sample if view == 0 else vary(sample, view)


def vary(sample: Sample, view: int) -> Sample:
    """An augmented view of a sample, determined by its ID and the number of the view.

    Only samples with a plain name are cropped: statements about position, order or other objects might become
    false in a crop.
    """
    rng = np.random.default_rng((zlib.crc32(sample.sample_id.encode()), view))
    name = f"{sample.sample_id}#{view}"
    sample = replace(sample, sample_id=name, image_id=f"{sample.image_id}#{name}")
    if sample.family == "noun" and sample.has_target:
        sample = _cut_out(sample, rng)
    if rng.random() < 0.5:
        sample = mirror(sample)
    light = np.arange(256) * rng.uniform(*CONTRAST) + rng.uniform(*BRIGHTNESS)
    image = cv2.LUT(sample.image, np.clip(light, 0, 255).astype(np.uint8))
    return replace(sample, image=np.asarray(image, np.uint8))


def _cut_out(sample: Sample, rng: np.random.Generator) -> Sample:
    """A crop of the image that contains the whole target."""
    x0, y0, x1, y1 = (round(side) for side in mask_to_box_xyxy(sample.mask))
    height, width = sample.mask.shape
    left, right = _window(rng, x0, x1, width)
    top, bottom = _window(rng, y0, y1, height)
    part = np.s_[top:bottom, left:right]
    box = sample.box_xyxy
    return replace(
        sample,
        image=np.ascontiguousarray(sample.image[part]),
        mask=np.ascontiguousarray(sample.mask[part]),
        all_objects=None if sample.all_objects is None else sample.all_objects[part],
        box_xyxy=None if box is None else (box[0] - left, box[1] - top, box[2] - left, box[3] - top),
    )


def _window(rng: np.random.Generator, start: int, end: int, size: int) -> tuple[int, int]:
    """A window along one side, of at least LEAST_WINDOW, containing start..end."""
    length = max(end - start, round(size * rng.uniform(LEAST_WINDOW, 1)))
    first = int(rng.integers(max(0, end - length), min(start, size - length) + 1))
    return first, first + length


def _like(word: str, other: str) -> str:
    """The other word, capitalised like the word."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
