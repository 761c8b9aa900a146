"""A cheap test for photographs. The packaged weights do not know them: they were trained on stickers."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

UInt8Image = npt.NDArray[np.uint8]

SIDE_PX = 256
"""Longer side of the picture that is examined."""
BLOCK_PX = 16
MIN_TEXTURE = 0.9
"""Median over the blocks of their median gradient, in grey levels per pixel."""
MIN_COLOUR_SPREAD = 20.0
"""Median distance of the blocks' mean colours from their median colour, in the most different channel."""


def is_photograph(image: UInt8Image) -> bool:
    """Whether a picture looks like a photograph: textured nearly everywhere, and of different colours.

    Drawings have flat areas; a drawing on a textured background has nearly one colour. Photographs that are
    smooth or of one material (a night sky, grass) are not recognised.

    Args:
        image: (H, W, 3) uint8, RGB; at least as large as SIDE_PX for a reliable answer.
    """
    scale = min(1.0, SIDE_PX / max(image.shape[:2]))
    height, width = (round(side * scale) for side in image.shape[:2])
    rows, columns = height // BLOCK_PX, width // BLOCK_PX
    if not rows or not columns:
        return False
    small = cv2.resize(image, (width, height), interpolation=cv2.INTER_AREA)
    # The median filter removes the noise of single pixels, which drawings may have, too.
    grey = cv2.cvtColor(cv2.medianBlur(small, 3), cv2.COLOR_RGB2GRAY)
    derivatives = (cv2.Sobel(grey, cv2.CV_32F, *order) / 8 for order in ((1, 0), (0, 1)))
    gradient = np.hypot(*derivatives)
    if np.median(np.median(_blocks(gradient[..., None], rows, columns), axis=1)) < MIN_TEXTURE:
        return False
    colours = _blocks(small.astype(np.float32), rows, columns).mean(axis=1)
    spread = np.abs(colours - np.median(colours, axis=0)).max(axis=1)
    return bool(np.median(spread) >= MIN_COLOUR_SPREAD)


def _blocks(values: np.ndarray, rows: int, columns: int) -> np.ndarray:
    """(H, W, C) as (blocks, pixels of a block, C)."""
    cut = values[: rows * BLOCK_PX, : columns * BLOCK_PX]
    split = cut.reshape(rows, BLOCK_PX, columns, BLOCK_PX, -1)
    return split.transpose(0, 2, 1, 3, 4).reshape(rows * columns, BLOCK_PX**2, -1)
