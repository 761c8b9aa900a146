"""Polygons reproduce every pixel of their mask."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from pycocotools import mask as coco_mask

from sspsam.images.masks import BoolMask, MaskFormatError
from sspsam.images.polygons import mask_to_polygons


def filled(*boxes: tuple[int, int, int, int], hw: tuple[int, int] = (48, 64)) -> BoolMask:
    mask = np.zeros(hw, dtype=np.bool_)
    for top, left, bottom, right in boxes:
        mask[top:bottom, left:right] ^= True
    return mask


MASKS = {
    "hole": (filled((5, 5, 40, 60), (12, 20, 30, 40)), 1),
    "two holes": (filled((5, 5, 40, 60), (12, 20, 30, 40), (33, 8, 35, 12)), 1),
    "island in a hole": (filled((5, 5, 40, 60), (12, 20, 30, 40), (15, 25, 20, 30)), 2),
    "parts": (filled((2, 2, 9, 9), (20, 30, 31, 50), (44, 60, 47, 63)), 3),
    "parts that touch at a corner": (filled((4, 4, 8, 8), (8, 8, 12, 12)), 2),
    "holes that touch at a corner": (filled((0, 0, 20, 20), (4, 4, 8, 8), (8, 8, 12, 12)), 1),
    "one pixel": (filled((17, 33, 18, 34)), 1),
    "first pixel": (filled((0, 0, 1, 1)), 1),
    "last pixel": (filled((47, 63, 48, 64)), 1),
    "full": (filled((0, 0, 48, 64)), 1),
    "one row": (filled((0, 3, 1, 9), hw=(1, 16)), 1),
    "one column": (filled((3, 0, 9, 1), hw=(16, 1)), 1),
    "empty": (filled(), 0),
}


def filled_by_pycocotools(polygons: list[list[float]], height: int, width: int) -> BoolMask:
    if not polygons:
        return np.zeros((height, width), dtype=np.bool_)
    return np.asarray(
        coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, height, width))), np.bool_
    )


@pytest.mark.parametrize("name", MASKS)
def test_every_pixel_comes_back(name: str) -> None:
    mask, parts = MASKS[name]

    polygons = mask_to_polygons(mask)

    assert len(polygons) == parts
    np.testing.assert_array_equal(filled_by_pycocotools(polygons, *mask.shape), mask)


@settings(deadline=None, max_examples=60)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_any_mask_comes_back(mask: BoolMask) -> None:
    np.testing.assert_array_equal(filled_by_pycocotools(mask_to_polygons(mask), *mask.shape), mask)


def test_a_ragged_mask_comes_back() -> None:
    noise = np.random.default_rng(0).random((40, 50))
    mask = np.kron(noise, np.ones((9, 9)))[:, :] + np.random.default_rng(1).random((360, 450)) * 0.4 > 0.7

    np.testing.assert_array_equal(filled_by_pycocotools(mask_to_polygons(mask), 360, 450), mask)


def test_corners_are_those_of_pixels() -> None:
    assert mask_to_polygons(filled((1, 2, 4, 7), hw=(6, 9))) == [[2, 1, 7, 1, 7, 4, 2, 4]]


def test_what_is_no_mask_is_refused() -> None:
    with pytest.raises(MaskFormatError, match="a mask is"):
        mask_to_polygons(np.zeros((2, 2, 2)))
