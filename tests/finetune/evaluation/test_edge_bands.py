"""The band of uncertain edges, and the fraction of edges that an annotator drew."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.evaluation.edge_bands import band_px, drawn_fraction, edge_band

Mask = npt.NDArray[np.bool_]
HW = (240, 320)
BAND = 4


def box(top: int, left: int, bottom: int, right: int) -> Mask:
    mask = np.zeros(HW, dtype=np.bool_)
    mask[top:bottom, left:right] = True
    return mask


OBJECT = box(60, 80, 160, 200)


@pytest.mark.parametrize(("hw", "width"), [((64, 64), 1), (HW, BAND), ((640, 427), 8), ((3000, 4000), 47)])
def test_the_width_follows_the_image(hw: tuple[int, int], width: int) -> None:
    assert band_px(hw) == width


def test_the_band_lies_on_either_side_of_the_edge() -> None:
    band = edge_band(OBJECT)
    outer = box(56, 80, 164, 200) | box(60, 76, 160, 204)
    corner = box(56, 76, 60, 80)  # the band is round there
    assert not ((band ^ (outer & ~box(64, 84, 156, 196)))[:100, :150] & ~corner[:100, :150]).any()
    assert not edge_band(box(0, 0, 160, 200))[:100, :100].any(), "the image's border is no edge"


@pytest.mark.parametrize("mask", [box(0, 0, 0, 0), box(0, 0, *HW)], ids=["empty", "everything"])
def test_without_an_edge_there_is_no_band(mask: Mask) -> None:
    assert not edge_band(mask).any()


@given(st.integers(0, 2**32 - 1), st.floats(0.01, 0.9), st.integers(1, 4))
@settings(max_examples=60, deadline=None)
def test_half_of_every_object_can_be_compared(seed: int, density: float, cell: int) -> None:
    mask = np.kron(np.random.default_rng(seed).random((20, 25)) < density, np.ones((cell, cell))) > 0
    assert np.count_nonzero(mask & ~edge_band(mask)) >= np.count_nonzero(mask) / 2


def test_an_accepted_mask_has_no_drawn_edge() -> None:
    assert drawn_fraction(OBJECT, OBJECT) == 0


def test_a_repaired_part_is_drawn_and_the_rest_is_not() -> None:
    missing_corner = OBJECT & ~box(60, 80, 80, 110)
    assert drawn_fraction(OBJECT, missing_corner) == pytest.approx((20 + 30 + 4 * BAND) / 436, abs=0.01)
    surplus = OBJECT | box(100, 200, 120, 230)
    assert drawn_fraction(OBJECT, surplus) == pytest.approx((20 + 4 * BAND) / 436, abs=0.01)
    assert drawn_fraction(OBJECT, OBJECT | box(200, 250, 220, 280)) == 0, "a part removed elsewhere"


def test_another_mask_is_drawn() -> None:
    assert drawn_fraction(OBJECT, OBJECT ^ box(50, 70, 170, 210)) == 1
    assert drawn_fraction(OBJECT, box(0, 0, 0, 0)) == 1


def test_a_refined_edge_is_drawn_although_it_crosses_the_proposal() -> None:
    rows, columns = np.ogrid[: HW[0], : HW[1]]
    angle = np.arctan2(rows - 120, columns - 160)
    radius = np.hypot(rows - 120, columns - 160)
    rough, fine = radius < 60 + 2 * np.sin(25 * angle), radius < 60
    assert drawn_fraction(fine, rough) > 0.95
