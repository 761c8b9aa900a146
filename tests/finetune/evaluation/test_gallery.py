"""The gallery: the model's answers, framed by correctness."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest

from finetune.data.sample import DatasetError
from finetune.data.stickers.dataset import StickerDataset
from finetune.evaluation.changes import draw_changes
from finetune.evaluation.gallery import BORDER_PX, RIGHT, TILE_PX, TRUTH, WRONG, draw_gallery
from sspsam import ImageEmbedding, Predictor, Referent

DATA = StickerDataset("val", count=3, families=["noun"], phrases_per_scene=2)


class Oracle:
    """Knows the truth about every other picture, and takes everything for the target in the others."""

    def __init__(self) -> None:
        self.predictor = Predictor.from_preset("ssp-sam-test", "cpu")
        self.asked = 0

    def embed(self, image: npt.NDArray[np.uint8]) -> ImageEmbedding:
        return self.predictor.embed(image)

    def predict(self, embedding: ImageEmbedding, phrases: Sequence[str]) -> list[Referent]:
        sample = DATA[self.asked * DATA.phrases_per_scene]
        mask = sample.mask if self.asked % 2 == 0 else np.ones_like(sample.mask)
        self.asked += 1
        return [Referent(phrases[0], mask, 0.9, (0, 0, 1, 1), no_target=False)]


def test_frames_say_what_is_right() -> None:
    oracle = Oracle()
    sheet = np.asarray(draw_gallery(oracle, DATA, columns=3))
    assert oracle.asked == 3
    middle = sheet.shape[0] // 2
    row = [tuple(int(value) for value in pixel) for pixel in sheet[middle]]
    runs = [colour for colour, before in zip(row, [None, *row], strict=False) if colour != before]
    frames = [colour for colour in runs if colour in (RIGHT, WRONG)]
    assert [frames[0], frames[-1]] == [RIGHT, RIGHT]
    assert WRONG in frames
    assert TILE_PX < sheet.shape[1] <= 3 * (TILE_PX + 2 * BORDER_PX)


def test_failures_alone_are_drawn_with_the_truth() -> None:
    oracle = Oracle()
    sheet = np.asarray(draw_gallery(oracle, DATA, columns=3, failures=1))
    assert oracle.asked == 2, "asks no further than it has to"
    assert tuple(sheet[sheet.shape[0] // 2, 0]) == WRONG
    assert sheet.shape[1] <= TILE_PX + 2 * BORDER_PX
    inside = sheet[BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX]
    colours, counts = np.unique(inside.reshape(-1, 3), axis=0, return_counts=True)
    white = int(counts[(colours == TRUTH).all(1)].sum())
    assert white > 100, "the truth is outlined"


@pytest.mark.parametrize("hw", [(1, 900), (900, 1)])
def test_a_picture_of_a_single_line_is_drawn(hw: tuple[int, int]) -> None:
    sample = replace(DATA[0], image=np.zeros((*hw, 3), np.uint8), mask=np.ones(hw, bool), all_objects=None)
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    assert TILE_PX <= max(draw_gallery(predictor, [sample]).size) <= 2 * TILE_PX
    state = predictor.trainable_state()
    [pair] = draw_changes(predictor, state, state, [sample], [sample.sample_id]).values()
    assert min(pair.size) >= 1


def test_nothing_to_draw_is_an_error() -> None:
    with pytest.raises(DatasetError, match="no pictures"):
        draw_gallery(Oracle(), StickerDataset("val", count=0))
    with pytest.raises(DatasetError, match="no wrong answers"):
        draw_gallery(
            Oracle(), StickerDataset("val", count=1, families=["noun"], phrases_per_scene=2), failures=3
        )
