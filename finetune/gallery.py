"""A picture of answers, side by side, right and wrong ones as they come."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace

import numpy as np
from PIL import Image, ImageOps

from finetune.data.dataset import Dataset, samples_by_image
from finetune.metrics import SegmentationMetrics
from finetune.protocols import PhraseModel
from sspsam.drawing import Rgb, draw_referents

TILE_PX = 320
"""Side of the square that a picture is shrunk into, before its legend."""
BORDER_PX = 6
RIGHT_IOU = 0.5
RIGHT: Rgb = (40, 170, 90)
WRONG: Rgb = (220, 50, 50)
PAPER: Rgb = (255, 255, 255)


def draw_gallery(model: PhraseModel, dataset: Dataset, columns: int = 6) -> Image.Image:
    """Asks about the first phrase of each picture and draws the answers.

    A green frame says that the IoU of answer and truth is RIGHT_IOU or more (or that both are empty), a red
    one that it is not.

    Args:
        model: Who is asked.
        dataset: Pictures and phrases, drawn in their order.
        columns: Pictures in a row.

    Raises:
        ValueError: the data set is empty.
    """
    tiles = list(_tiles(model, dataset))
    if not tiles:
        raise ValueError("the data set has no pictures to draw")
    return _grid(tiles, columns)


def _tiles(model: PhraseModel, dataset: Dataset) -> Iterable[Image.Image]:
    for sample, *_ in samples_by_image(dataset):
        shrunk = ImageOps.contain(Image.fromarray(sample.image), (TILE_PX, TILE_PX))
        [referent] = model.predict(model.embed(sample.image), [sample.phrase])
        mask = Image.fromarray(referent.mask).resize(shrunk.size, Image.Resampling.NEAREST)
        small = replace(referent, mask=np.asarray(mask, dtype=np.bool_))
        right = SegmentationMetrics().update(referent.mask, sample.mask) >= RIGHT_IOU
        tile = draw_referents(np.asarray(shrunk, dtype=np.uint8), [small])
        yield ImageOps.expand(tile, BORDER_PX, RIGHT if right else WRONG)


def _grid(tiles: Sequence[Image.Image], columns: int) -> Image.Image:
    width = max(tile.width for tile in tiles)
    rows = [tiles[start : start + columns] for start in range(0, len(tiles), columns)]
    heights = [max(tile.height for tile in row) for row in rows]
    sheet = Image.new("RGB", (width * min(columns, len(tiles)), sum(heights)), PAPER)
    top = 0
    for row, height in zip(rows, heights, strict=True):
        for column, tile in enumerate(row):
            left = column * width + (width - tile.width) // 2
            sheet.paste(tile, (left, top + (height - tile.height) // 2))
        top += height
    return sheet
