"""Mirrored pictures, whose phrases still tell left from right."""

from __future__ import annotations

import re
from dataclasses import replace

import numpy as np

from finetune.data.dataset import Sample

_SIDES = re.compile(r"\b(left|right)(?=(?:most|hand|side|ward|wards|y|er|est|s)?\b)", re.IGNORECASE)
_OTHER = {"left": "right", "right": "left"}


def swap_sides(phrase: str) -> str:
    """Left becomes right and right left, also in "leftmost" or "right-hand"; "bright" stays as it is."""
    return _SIDES.sub(lambda match: _like(match[1], _OTHER[match[1].lower()]), phrase)


def mirror(sample: Sample) -> Sample:
    """The sample as seen in a mirror: picture, masks and box flipped, sides swapped in the phrase."""
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


def _like(word: str, other: str) -> str:
    """The other word, spelled in capitals as the word is."""
    if word.isupper():
        return other.upper()
    return other.capitalize() if word[0].isupper() else other
