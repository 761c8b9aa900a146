"""The sticker art: one sheet per drawing style, read from the atlas on first use."""

from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.data.stickers.vocabulary import ATLAS_DIR, vocabulary

Picture = npt.NDArray[np.uint8]

STYLES = ("noto", "noto-v1", "fluent", "fluent-flat", "fluent-3d")
CELL_PX = 128
ART_PX = 122
"""Longest side of the art in its cell."""
COLUMNS = 16
"""Cells in a row of a sheet."""
LEVELS = 4
"""Mipmap levels of 128, 64, 32 and 16 px, so that reducing a sticker does not alias."""


@dataclass(frozen=True, eq=False)
class Art:
    """One noun in one style.

    Attributes:
        levels: premultiplied RGBA images, uint8, (128, 128, 4) and then half as large each time.
        size_hw: height and width of the drawn part in the first of them, px.
    """

    levels: tuple[Picture, ...]
    size_hw: tuple[int, int]


@cache
def _read_sheet(style: str) -> tuple[Picture, ...]:
    """Reads one sheet at every level; ~21 MB."""
    with Image.open(ATLAS_DIR / f"{style}.webp") as sheet:
        levels = [np.asarray(cv2.cvtColor(np.asarray(sheet.convert("RGBA")), cv2.COLOR_RGBA2mRGBA), np.uint8)]
    while len(levels) < LEVELS:
        height, width = levels[-1].shape[:2]
        half = cv2.resize(levels[-1], (width // 2, height // 2), interpolation=cv2.INTER_AREA)
        levels.append(np.asarray(half, np.uint8))
    return tuple(levels)


@cache
def read_art(noun: str, style: str) -> Art:
    """Returns the art of a noun in a style.

    Raises:
        ValueError: the atlas has no such noun or style.
    """
    if noun not in vocabulary() or style not in STYLES:
        raise ValueError(f"the atlas has no {noun!r} in style {style!r}; styles are {', '.join(STYLES)}")
    row, column = divmod(list(vocabulary()).index(noun), COLUMNS)
    levels = []
    for index, sheet in enumerate(_read_sheet(style)):
        side = CELL_PX >> index
        levels.append(
            np.ascontiguousarray(sheet[row * side : (row + 1) * side, column * side : (column + 1) * side])
        )
    solid = levels[0][..., 3] >= 16
    rows, columns = np.flatnonzero(solid.any(axis=1)), np.flatnonzero(solid.any(axis=0))
    return Art(tuple(levels), (int(rows[-1] - rows[0]) + 1, int(columns[-1] - columns[0]) + 1))
