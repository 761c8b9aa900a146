"""Drawn masks: tinted and unchanged pixels, and a legend that fits."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from sspsam import Referent
from sspsam.drawing import COLOURS, draw_mask, draw_referents

GREY = np.full((60, 80, 3), 128, dtype=np.uint8)


def square(top: int = 10, left: int = 20, side: int = 30) -> npt.NDArray[np.bool_]:
    mask = np.zeros(GREY.shape[:2], dtype=bool)
    mask[top : top + side, left : left + side] = True
    return mask


def referent(phrase: str = "the dog", mask: npt.NDArray[np.bool_] | None = None) -> Referent:
    mask = square() if mask is None else mask
    return Referent(phrase, mask, 0.9, (0.0, 0.0, 1.0, 1.0), not mask.any())


def test_only_the_mask_is_drawn_on_and_the_input_is_left_alone() -> None:
    before = GREY.copy()
    drawn = draw_mask(GREY, square(), (255, 0, 0))
    changed = (drawn != GREY).any(axis=2)
    np.testing.assert_array_equal(changed, square())
    np.testing.assert_array_equal(GREY, before)


def test_the_rim_is_opaque_and_the_inside_lets_the_picture_through() -> None:
    drawn = draw_mask(GREY, square(), (255, 0, 0))
    assert drawn[10, 20].tolist() == [255, 0, 0]
    red, green, blue = drawn[25, 35].tolist()
    assert 128 < red < 255
    assert 0 < green == blue < 128


def test_a_hole_has_a_rim_of_its_own_and_stays_clear() -> None:
    mask = square()
    mask[20:30, 30:40] = False
    drawn = draw_mask(GREY, mask, (255, 0, 0))
    assert drawn[25, 35].tolist() == [128, 128, 128]
    assert drawn[19, 35].tolist() == [255, 0, 0]


def test_a_mask_of_the_whole_picture_is_closed_at_the_border() -> None:
    drawn = draw_mask(GREY, np.ones((60, 80), dtype=bool), (255, 0, 0))
    assert drawn[0, 40].tolist() == drawn[59, 40].tolist() == drawn[30, 0].tolist() == [255, 0, 0]


@pytest.mark.parametrize("side", [0, 1, 2])
def test_tiny_masks_are_drawn(side: int) -> None:
    drawn = draw_mask(GREY, square(side=side), (255, 0, 0))
    assert int((drawn != GREY).any(axis=2).sum()) == side**2


def test_another_size_is_refused() -> None:
    with pytest.raises(ValueError, match=r"the mask is \(4, 4\), the image \(60, 80\)"):
        draw_mask(GREY, np.ones((4, 4), dtype=bool), (255, 0, 0))


def test_the_legend_stands_below_the_picture_with_the_colour_of_the_mask() -> None:
    picture = np.asarray(draw_referents(GREY, [referent(mask=square(side=0)), referent("the cat")]))
    assert picture.shape[1] == 80
    assert picture.shape[0] > 60
    legend = picture[60:].reshape(-1, 3).tolist()
    assert list(COLOURS[0]) in legend
    assert list(COLOURS[1]) in legend
    assert picture[10, 20].tolist() == list(COLOURS[1]), (
        "each phrase keeps its colour, also after an empty one"
    )


def test_long_phrases_wrap_and_make_the_legend_higher() -> None:
    short = draw_referents(GREY, [referent("dog")])
    long = draw_referents(GREY, [referent("the dog that sits to the left of the second tree from the right")])
    assert long.height > short.height
    assert long.width == short.width


def test_more_phrases_than_colours() -> None:
    assert draw_referents(GREY, [referent(str(number)) for number in range(len(COLOURS) + 2)]).width == 80


def test_no_phrases_is_the_picture_itself() -> None:
    np.testing.assert_array_equal(np.asarray(draw_referents(GREY, [])), GREY)
