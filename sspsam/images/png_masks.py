"""Mask <-> PNG data URL, as Label Studio's Bitmask regions hold it: opaque pixels are mask.

Formats: https://www.w3.org/TR/png-3/ , RFC 2397. Masks are written with 1 bit per pixel and a transparent
colour; of what the editor writes, alpha above 127 is mask.
"""

from __future__ import annotations

import base64
import struct
from io import BytesIO
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image

from sspsam.images.brush_rle import ALPHA_THRESHOLD
from sspsam.images.masks import MAX_PIXELS, MaskFormatError, MaskRuns, mask_to_runs

PREFIX = "data:image/png;base64,"
MAX_URL_CHARACTERS = 2**25
"""A ragged mask of 12 megapixels has about a million."""
MOST_RUNS = 2**22
"""Of equal pixels, row by row: a few kilobytes can hold a pattern of every second pixel."""
_SIGNATURE = b"\x89PNG\r\n\x1a\n"
_HEADER_BYTES = 24
_UNREADABLE = (OSError, ValueError, SyntaxError, TypeError, LookupError, OverflowError, struct.error)
"""Errors that Pillow's reader raises for malformed files."""


def mask_to_png_url(mask: npt.NDArray[Any]) -> str:
    """Encodes a mask as a PNG data URL.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.

    Raises:
        MaskFormatError: not two-dimensional, or without pixels.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise MaskFormatError(f"a mask is (H, W) with pixels in it, not {mask.shape}")
    picture = Image.fromarray(np.asarray(mask, dtype=np.bool_).view(np.uint8), mode="P")
    picture.putpalette([0, 0, 0] * 2)
    file = BytesIO()
    picture.save(file, "PNG", transparency=b"\x00\xff", bits=1)
    return PREFIX + base64.b64encode(file.getvalue()).decode("ascii")


def png_url_to_runs(url: object, height: int, width: int, max_pixels: int = MAX_PIXELS) -> MaskRuns:
    """Decodes a PNG data URL.

    Args:
        url: The URL.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        max_pixels: Larger images are refused before anything is decoded.

    Raises:
        MaskFormatError: it is not a PNG of the image's size, or it is damaged or too large.
    """
    if min(height, width) < 0 or height * width > max_pixels:
        raise MaskFormatError(f"a mask of {height} x {width} pixels; at most {max_pixels} are read")
    data = _bytes_of(url)
    if data[:8] != _SIGNATURE or len(data) < _HEADER_BYTES:
        raise MaskFormatError("the bitmask is not a PNG")
    found_w, found_h = struct.unpack(">II", data[16:_HEADER_BYTES])
    if (found_h, found_w) != (height, width):
        raise MaskFormatError(f"a bitmask of {found_h} x {found_w} pixels; the image has {height} x {width}")
    try:
        with Image.open(BytesIO(data), formats=("PNG",)) as picture:
            alpha = np.asarray(picture.convert("RGBA").getchannel("A"))
    except _UNREADABLE as error:
        raise MaskFormatError(f"the bitmask's PNG is damaged: {error}") from error
    mask = alpha > ALPHA_THRESHOLD
    edges = int(np.count_nonzero(mask[:, 1:] != mask[:, :-1])) + height
    if edges > MOST_RUNS:
        raise MaskFormatError(f"a bitmask of more than {MOST_RUNS} runs, the most that are read")
    return mask_to_runs(mask)


def _bytes_of(url: object) -> bytes:
    if not isinstance(url, str) or not url.startswith(PREFIX):
        raise MaskFormatError("the bitmask is not a PNG data URL")
    if len(url) > MAX_URL_CHARACTERS:
        raise MaskFormatError(f"a bitmask of {len(url)} characters; at most {MAX_URL_CHARACTERS} are read")
    try:
        return base64.b64decode(url[len(PREFIX) :], validate=True)
    except ValueError as error:
        raise MaskFormatError(f"the bitmask's data URL is damaged: {error}") from error
