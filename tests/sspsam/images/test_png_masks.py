"""Masks as PNG data URLs."""

from __future__ import annotations

import base64
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from PIL import Image

from sspsam.images.masks import BoolMask, MaskFormatError
from sspsam.images.png_masks import PREFIX, mask_to_png_url, png_url_to_runs


def url_of(picture: Image.Image) -> str:
    file = BytesIO()
    picture.save(file, "PNG")
    return PREFIX + base64.b64encode(file.getvalue()).decode()


@settings(deadline=None, max_examples=60)
@given(arrays(np.bool_, st.tuples(st.integers(1, 20), st.integers(1, 20))))
def test_every_pixel_comes_back(mask: BoolMask) -> None:
    runs = png_url_to_runs(mask_to_png_url(mask), *mask.shape)

    np.testing.assert_array_equal(runs.to_mask(), mask)
    assert runs.is_empty == (not mask.any())


def test_a_mask_is_written_with_one_bit_per_pixel() -> None:
    noise = np.random.default_rng(0).random((200, 300)) > 0.5

    assert len(mask_to_png_url(noise)) < 200 * 300 / 8 * 1.5


def test_what_the_editor_writes_is_mask_where_it_is_mostly_opaque() -> None:
    """A canvas: colour is irrelevant, edges are antialiased."""
    pixels = np.zeros((2, 4, 4), np.uint8)
    pixels[0, :, 3] = (0, 127, 128, 255)
    pixels[1, :, :3] = 255

    mask = png_url_to_runs(url_of(Image.fromarray(pixels)), 2, 4).to_mask()

    np.testing.assert_array_equal(mask, [[False, False, True, True], [False] * 4])


GOOD = mask_to_png_url(np.ones((3, 5), np.bool_))


@pytest.mark.parametrize(
    "url",
    [
        None,
        5,
        "",
        PREFIX,
        "data:image/svg+xml;base64,PHN2Zy8+",
        "https://example.com/mask.png",
        PREFIX + "%%%",
        PREFIX + base64.b64encode(b"GIF89a" + bytes(40)).decode(),
        GOOD[:60],
        GOOD[:-44],
        url_of(Image.new("1", (3, 5))),
    ],
)
def test_anything_else_is_refused(url: object) -> None:
    with pytest.raises(MaskFormatError):
        png_url_to_runs(url, 3, 5)


def test_the_size_is_compared_before_anything_is_decoded() -> None:
    """A PNG of 30 kilobytes can have 268 megapixels."""
    bomb = url_of(Image.new("1", (4096, 4096)))

    with pytest.raises(MaskFormatError, match="4096 x 4096"):
        png_url_to_runs(bomb, 3, 5)
    with pytest.raises(MaskFormatError, match="at most"):
        png_url_to_runs(bomb, 4096, 4096, max_pixels=10**6)
