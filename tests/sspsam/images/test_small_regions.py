"""Removal of small parts and holes; all other edges are unchanged."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import sspsam
from sspsam.images.frames import sam_logits_to_mask
from sspsam.images.small_regions import without_small_regions
from sspsam.results import Decoded, Question


def logits(*rows: str) -> np.ndarray:
    """`#` is mask."""
    return np.array([[2.0 if cell == "#" else -1.0 for cell in row] for row in rows], np.float32)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (("####..", "####.#", "####.."), ("####..", "####..", "####..")),
        (("######", "##.###", "######"), ("######", "######", "######")),
        (("#...##", ".#..##", "..#.##"), ("#...##", ".#..##", "..#.##")),
        (("##....", "......", "....#."), ("##....", "......", "....#.")),
        (("......", "......", "......"), ("......", "......", "......")),
    ],
    ids=["a small part", "a small hole", "parts that touch at corners", "all of it is small", "nothing"],
)
def test_small_parts_and_holes_go(before: tuple[str, ...], after: tuple[str, ...]) -> None:
    cleaned = without_small_regions(logits(*before), 0.0, min_cells=3)

    np.testing.assert_array_equal(cleaned > 0, logits(*after) > 0)
    same = (logits(*before) > 0) == (logits(*after) > 0)
    np.testing.assert_array_equal(cleaned[same], logits(*before)[same])
    assert cleaned.dtype == np.float32


def test_a_predictor_leaves_specks_out_when_told_to() -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    image = np.random.default_rng(0).integers(0, 256, (200, 400, 3), dtype=np.uint8)
    [decoded] = predictor.decode([Question(predictor.embed(image), "the dog")])
    grid = np.full((16, 16), -4.0, np.float32)
    grid[2:7, 3:9], grid[5, 13] = 4.0, 4.0
    with_speck = Decoded(decoded.question, torch.from_numpy(grid), 1.0, None)

    everything = predictor.finish(with_speck)
    cleaned = predictor.finish(with_speck, min_speck=2 / 128)  # the picture covers 8 of 16 rows

    np.testing.assert_array_equal(everything.mask, sam_logits_to_mask(grid, (200, 400), 0.0))
    assert everything.mask[:, 310:].any()
    assert not cleaned.mask[:, 310:].any()
    np.testing.assert_array_equal(cleaned.mask[:, :250], everything.mask[:, :250])
    np.testing.assert_array_equal(predictor.finish(with_speck, min_speck=0.9 / 128).mask, everything.mask)
