"""Polygons with few points: close to their mask, and read back as written."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from sspsam.images import few_points
from sspsam.images.few_points import MOST_POINTS, Part, Points, mask_to_parts, polygon_to_runs
from sspsam.images.masks import BoolMask, MaskFormatError
from sspsam.images.polygons import mask_to_polygons


def drawn(parts: list[Part], mask: BoolMask) -> BoolMask:
    found = np.zeros_like(mask)
    for part in parts:
        found |= polygon_to_runs(part.points, *mask.shape).to_mask()
    return found


def iou(one: BoolMask, other: BoolMask) -> float:
    return float((one & other).sum() / (one | other).sum())


def ring(hole_px: int = 30) -> BoolMask:
    mask = np.zeros((200, 300), np.uint8)
    cv2.ellipse(mask, (130, 100), (110, 80), 20, 0, 360, 1, -1)
    cv2.circle(mask, (150, 90), hole_px, 0, -1)
    return mask.astype(np.bool_)


def test_a_hole_is_cut_with_a_seam_or_filled_and_counted() -> None:
    mask = ring()

    (cut,), (whole,) = mask_to_parts(mask, cut_holes=True), mask_to_parts(mask)

    assert (cut.holes, whole.holes) == (0, 1)
    assert max(len(cut.points), len(whole.points)) <= MOST_POINTS
    assert iou(drawn([cut], mask), mask) > 0.98
    assert iou(drawn([whole], mask), ring(0)) > 0.98
    assert drawn([whole], mask)[90, 150]
    assert not drawn([cut], mask)[90, 150]


def test_each_part_has_a_polygon_the_largest_first_without_specks() -> None:
    mask = np.zeros((100, 100), np.bool_)
    mask[5:15, 5:15] = mask[30:90, 30:90] = mask[2, 90] = True

    large, small = mask_to_parts(mask)

    assert iou(drawn([large, small], mask), mask) > 0.98
    assert large.points.min() == 30
    assert small.points.max() == 15


def test_of_very_many_equal_parts_as_many_as_allowed_are_kept() -> None:
    mask = np.zeros((60, 80), np.bool_)
    mask[::3, ::3] = True

    assert len(mask_to_parts(mask)) == few_points.MOST_PARTS


def test_a_ragged_part_has_at_most_so_many_points() -> None:
    noise = np.random.default_rng(0).standard_normal((200, 300)).astype(np.float32)
    mask = np.asarray(cv2.GaussianBlur(noise, (0, 0), 4) > -0.02)

    parts = mask_to_parts(mask, cut_holes=True)

    assert 0 < len(parts) <= few_points.MOST_PARTS
    assert max(len(part.points) for part in parts) <= MOST_POINTS


def test_the_smallest_holes_of_a_sieve_are_filled() -> None:
    mask = np.ones((100, 100), np.bool_)
    for top, left, side in ((10, 10, 30), (60, 10, 25), (10, 60, 20), (60, 60, 15)):
        mask[top : top + side, left : left + side] = False

    (part,) = mask_to_parts(mask, cut_holes=True, most_points=20)

    assert len(part.points) <= 20
    assert part.holes == 2
    assert drawn([part], mask)[65, 65]
    assert not drawn([part], mask)[20, 20]


@pytest.mark.parametrize("box", [(3, 4, 4, 5), (0, 7, 20, 8), (5, 0, 6, 30), (0, 0, 20, 30)])
def test_pixels_rows_and_columns_are_kept(box: tuple[int, int, int, int]) -> None:
    top, left, bottom, right = box
    mask = np.zeros((20, 30), np.bool_)
    mask[top:bottom, left:right] = True

    np.testing.assert_array_equal(drawn(mask_to_parts(mask), mask), mask)


def test_an_empty_mask_has_no_parts() -> None:
    assert mask_to_parts(np.zeros((4, 5), np.bool_)) == []


@settings(deadline=None, max_examples=60)
@given(arrays(np.bool_, st.tuples(st.integers(1, 12), st.integers(1, 12))))
def test_exact_polygons_with_seams_fill_their_mask(mask: BoolMask) -> None:
    found = np.zeros_like(mask)
    for polygon in mask_to_polygons(mask):
        found ^= polygon_to_runs(np.reshape(polygon, (-1, 2)), *mask.shape).to_mask()

    np.testing.assert_array_equal(found, mask)


def test_a_seam_has_no_area_whatever_its_slope() -> None:
    outer: Points = np.array([(0, 0), (40, 0), (40, 30), (0, 30)], np.float64)
    hole: Points = np.array([(10.3, 7.7), (10.3, 17.1), (20.9, 17.1), (20.9, 7.7)])
    with_seam = np.concatenate([outer, outer[:1], hole, hole[:1]])

    both = polygon_to_runs(outer, 30, 40).to_mask() ^ polygon_to_runs(hole, 30, 40).to_mask()

    np.testing.assert_array_equal(polygon_to_runs(with_seam, 30, 40).to_mask(), both)


def test_what_is_outside_the_image_is_cut_off() -> None:
    points = np.array([(-1e4, -1e4), (1e4, -1e4), (1e4, 3), (-1e4, 3)])

    mask = polygon_to_runs(points, 6, 5).to_mask()

    np.testing.assert_array_equal(mask, np.arange(6)[:, None] + np.zeros((1, 5)) < 3)


def test_the_work_on_a_polygon_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(few_points, "MOST_CROSSINGS", 100)
    zigzag = np.array([(number, 60 * (number % 2)) for number in range(8)], np.float64)

    with pytest.raises(MaskFormatError, match="rows"):
        polygon_to_runs(zigzag, 60, 60)
    with pytest.raises(MaskFormatError, match="at most"):
        polygon_to_runs(zigzag[:3], 60, 60, max_pixels=3599)
