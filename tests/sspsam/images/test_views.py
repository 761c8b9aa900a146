"""Views: where their pixels, points and masks are."""

from __future__ import annotations

import numpy as np
import pytest

from sspsam.images import frames
from sspsam.images.views import MIN_SIDE, Window, view_logits_to_mask, view_to_sam


@pytest.fixture
def image() -> frames.UInt8Image:
    return np.random.default_rng(0).integers(0, 256, (60, 90, 3), dtype=np.uint8)


@pytest.mark.parametrize("window", [Window(0, 0, 48), Window(30, 10, 32), Window(42, 12, 48)])
def test_a_view_within_the_image_is_the_cut_image(image: frames.UInt8Image, window: Window) -> None:
    cut = image[window.top : window.top + window.side, window.left : window.left + window.side]
    assert np.allclose(view_to_sam(image, window, 64), frames.image_to_sam(cut, 64), atol=0.02)


def test_beyond_the_image_a_view_has_the_colour_of_its_border(image: frames.UInt8Image) -> None:
    image[[0, -1]] = image[:, [0, -1]] = (10, 200, 30)
    view = view_to_sam(image, Window(-45, -60, 180), 64)
    colour = (np.array((10, 200, 30)) - frames.SAM_PIXEL_MEAN) / frames.SAM_PIXEL_STD
    inside = (
        slice(None),
        slice(22, 42),
        slice(17, 47),
    )  # the image is at rows 21.3 to 42.7, columns 16 to 48
    assert np.allclose(view[:, 0, 0], colour, atol=1e-4)
    assert np.allclose(view[:, 50, 30], colour, atol=1e-4)
    assert float(view[inside].std()) > 0.3


@pytest.mark.parametrize("width", [1, 2, 3])
def test_an_image_narrower_than_a_cell_is_in_one(width: int) -> None:
    image = np.full((5000, width, 3), 255, np.uint8)
    view = view_to_sam(image, Window(-856, 3317, 1722), 512)

    assert view.shape == (3, 512, 512)
    assert view.isfinite().all()
    for top in range(0, 4000, 97):
        view_to_sam(image, Window.around((0, top, width, top + 400), 4.0), 512)


def test_a_shrunken_image_is_not_shifted() -> None:
    """A disc is where its centre is, to a tenth of a cell, however the window lies."""
    image = np.zeros((100, 150, 3), np.uint8)
    rows, columns = np.ogrid[:100, :150]
    image[(rows - 39.5) ** 2 + (columns - 69.5) ** 2 < 30**2] = 255
    for window in (Window(-17, -31, 200), Window(-100, -90, 330), Window(3, -5, 111)):
        seen = view_to_sam(image, window, 64)[0].double().numpy()
        weights = seen - seen.min()
        centre = [
            float((weights.sum(axis=axis) * (np.arange(64) + 0.5)).sum() / weights.sum()) for axis in (0, 1)
        ]
        scale = 64 / window.side
        assert centre == pytest.approx([(70 - window.left) * scale, (40 - window.top) * scale], abs=0.1)


@pytest.mark.parametrize(
    "window", [Window(0, 0, 64), Window(20, 10, 30), Window(-30, -20, 160), Window(50, 30, 77)]
)
def test_the_mask_of_a_view_is_where_its_points_are(window: Window) -> None:
    """Logits that rise to the right: the mask begins at the column that a point of the view names."""
    original_hw = (60, 90)
    cells = 32
    edge = 0.55  # of the view's width
    logits = np.broadcast_to((np.arange(cells) + 0.5) / cells - edge, (cells, cells)).astype(np.float32)
    mask = view_logits_to_mask(logits, window, original_hw, 0.0)
    rows, columns = window.visible(original_hw)
    assert mask.shape == (rows.stop - rows.start, columns.stop - columns.start)
    expected = np.arange(columns.start, columns.stop) + 0.5 > window.left + edge * window.side
    assert np.count_nonzero(mask[5] != expected) <= 1


def test_windows_of_almost_equal_boxes_are_equal() -> None:
    window = Window.around((100, 200, 160, 230), 4)
    assert window == Window.around((100, 200, 159, 231), 4)
    assert 240 <= window.side <= 240 * 2**0.25 + 1
    middle = np.array([window.left, window.top]) + window.side / 2
    assert np.abs(middle - (130, 215)).max() <= window.side / 30
    assert Window.around((5, 5, 5, 5), 4).side == MIN_SIDE


def test_points_and_boxes_move_with_the_window() -> None:
    window = Window(-10, 20, 100)
    assert window.points_in_view([[5, 25, 1]]).tolist() == [[15, 5, 1]]
    assert window.box_in_view([0, 20, 30, 50]).tolist() == [10, 0, 40, 30]
