"""A gallery image of answers side by side, uncurated."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
from PIL import Image, ImageOps

from finetune.data.sample import Dataset, DatasetError, samples_by_image
from finetune.evaluation.protocols import PhraseModel
from finetune.evaluation.tiles import shrink_mask, shrink_to
from finetune.metrics import SegmentationMetrics
from sspsam.drawing import Rgb, draw_outline, draw_referents

TILE_PX = 320
"""Side of the square into which an image is scaled, before its legend."""
BORDER_PX = 6
RIGHT_IOU = 0.5
RIGHT: Rgb = (40, 170, 90)
WRONG: Rgb = (220, 50, 50)
TRUTH: Rgb = (255, 255, 255)
PAPER: Rgb = (255, 255, 255)


def draw_gallery(
    model: PhraseModel, dataset: Dataset, columns: int = 6, failures: int | None = None
) -> Image.Image:
    """Draws the answers to the first phrase of each image.

    A green frame marks an IoU of at least RIGHT_IOU (or both masks empty), a red one anything else; a white
    line then shows the ground truth.

    Args:
        model: The model.
        dataset: Images and phrases, drawn in their order.
        columns: Images per row.
        failures: Draw this number of first wrong answers, and no right ones.

    Raises:
        DatasetError: there is nothing to draw.
    """
    tiles = _tiles(model, dataset)
    if failures is not None:
        tiles = islice((tile for tile in tiles if not tile[1]), failures)
    drawn = [tile for tile, _ in tiles]
    if not drawn:
        what = "pictures" if failures is None else "wrong answers"
        raise DatasetError(f"there are no {what} to draw")
    return _grid(drawn, columns)


def _tiles(model: PhraseModel, dataset: Dataset) -> Iterator[tuple[Image.Image, bool]]:
    """Drawn answers, and whether each is right."""
    for sample, *_ in samples_by_image(dataset):
        shrunk = shrink_to(sample.image, TILE_PX)
        hw = (shrunk.shape[0], shrunk.shape[1])
        [referent] = model.predict(model.embed(sample.image), [sample.phrase])
        right = SegmentationMetrics().update(referent.mask, sample.mask) >= RIGHT_IOU
        small = replace(referent, mask=shrink_mask(referent.mask, hw))
        tile = np.array(draw_referents(shrunk, [small]))
        if not right:
            shown = tile[: hw[0]]
            shown[:] = draw_outline(shown, shrink_mask(sample.mask, hw), TRUTH)
        yield ImageOps.expand(Image.fromarray(tile), BORDER_PX, RIGHT if right else WRONG), right


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
