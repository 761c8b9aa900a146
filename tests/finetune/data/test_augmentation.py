"""Mirrored samples: left and right are swapped in image and phrase."""

from __future__ import annotations

import numpy as np
import pytest

from finetune.data.augmentation import LEAST_WINDOW, VariedDataset, mirror, swap_sides, vary
from finetune.data.phrase_types import family_of
from finetune.data.sample import Sample
from finetune.data.stickers.dataset import StickerDataset
from sspsam.images.masks import mask_to_box_xyxy


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


class Listed(list[Sample]):
    """Samples as a data set."""


def sample(phrase: str, target: bool = True) -> Sample:
    """A picture of noise, with something small in its upper left part."""
    image = np.random.default_rng(len(phrase)).integers(0, 255, (60, 80, 3), dtype=np.uint8)
    mask = np.zeros((60, 80), bool)
    mask[10:20, 20:30] = target
    return Sample(phrase, phrase, image, phrase, mask, family_of(phrase, target))


def test_every_sample_comes_as_it_is_and_in_other_views() -> None:
    data = Listed([sample("the cat"), sample("the cat on the left")])
    varied = VariedDataset(data, views=4)
    assert len(varied) == 8
    assert [varied[0], varied[1]] == [data[0], data[1]]
    assert len({one.sample_id for one in map(varied.__getitem__, range(8))}) == 8
    for index in range(2, 8):
        once, again = varied[index], varied[index]
        np.testing.assert_array_equal(once.image, again.image)
        assert once.image.shape[:2] == once.mask.shape
        assert once.image_id != data[index % 2].image_id, "it is embedded by itself"


def test_views_of_a_name_hold_the_whole_target_and_differ() -> None:
    original = sample("the cat")
    views = [vary(original, view) for view in range(1, 30)]
    assert {int(view.mask.sum()) for view in views} == {int(original.mask.sum())}
    assert len({view.mask.shape for view in views}) > 5, "parts are cut out"
    assert min(view.mask.shape[1] for view in views) >= original.mask.shape[1] * LEAST_WINDOW - 1


def test_of_places_nothing_is_cut_out_and_sides_change_with_the_picture() -> None:
    original = sample("the cat on the left")
    views = [vary(original, view) for view in range(1, 20)]
    assert {view.mask.shape for view in views} == {original.mask.shape}
    assert {view.phrase for view in views} == {"the cat on the left", "the cat on the right"}
    for view in views:
        mirrored = view.phrase.endswith("right")
        np.testing.assert_array_equal(view.mask, original.mask[:, ::-1] if mirrored else original.mask)


def test_a_picture_without_the_target_stays_whole() -> None:
    original = sample("the cat", target=False)
    assert {vary(original, view).mask.shape for view in range(1, 9)} == {original.mask.shape}
