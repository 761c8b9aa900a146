"""Mirrored samples: what lay on the left lies on the right, and is called so."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.augmentation import mirror, swap_sides
from finetune.data.dataset import Sample
from finetune.data.stickers import StickerDataset
from sspsam.masks import mask_to_box_xyxy


@pytest.mark.parametrize(
    ("phrase", "mirrored", "reason"),
    [
        ("the dog on the left", "the dog on the right", "the plain case"),
        ("right dog left of the cat", "left dog right of the cat", "both at once"),
        ("leftmost bird", "rightmost bird", "in one word"),
        ("right-hand side, lefthand cup", "left-hand side, righthand cup", "with and without a hyphen"),
        ("Left one, RIGHT!", "Right one, LEFT!", "capitals stay"),
        ("bright light upright", "bright light upright", "within other words it is no side"),
        ("the leftover pizza", "the leftover pizza", "nor at the start of one"),
        ("far left, 2nd from right", "far right, 2nd from left", "among commas"),
        ("the dog", "the dog", "nothing to swap"),
    ],
)
def test_sides_change_places(phrase: str, mirrored: str, reason: str) -> None:
    assert swap_sides(phrase) == mirrored, reason
    assert swap_sides(mirrored) == phrase, reason


def test_everything_in_a_sample_is_mirrored() -> None:
    sample = next(s for s in StickerDataset("train", count=5, families=["noun"]) if not s.mask.all())
    flipped = mirror(sample)
    np.testing.assert_array_equal(flipped.image[:, ::-1], sample.image)
    np.testing.assert_array_equal(flipped.mask[:, ::-1], sample.mask)
    assert flipped.sample_id == sample.sample_id
    x0, y0, x1, y1 = mask_to_box_xyxy(sample.mask)
    width = sample.image.shape[1]
    assert flipped.true_box_xyxy == (width - x1, y0, width - x0, y1)
    again = mirror(flipped)
    np.testing.assert_array_equal(again.image, sample.image)
    assert again.phrase == sample.phrase


def test_a_published_box_is_mirrored_too() -> None:
    image, mask = np.zeros((4, 10, 3), np.uint8), np.zeros((4, 10), bool)
    mask[1:3, 1:4] = True
    sample = Sample("1", "1", image, "left", mask, box_xyxy=(0.5, 1.0, 4.0, 3.0))
    assert mirror(sample).true_box_xyxy == (6.0, 1.0, 9.5, 3.0)
    assert mirror(mirror(sample)).box_xyxy == sample.box_xyxy
