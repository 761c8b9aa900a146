"""Tiles of large pictures: where they are, which phrases are asked of them, and which answer wins."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import pytest
import torch

from sspsam.images.frames import BoolMask, ClipFrame
from sspsam.images.views import Window
from sspsam.looks.second_look import LookRules
from sspsam.looks.tiles import (
    FOUND,
    LARGE_PX,
    MOST_TILES,
    SURE,
    is_about_several,
    is_about_the_whole,
    needs_tiles,
    search_tiles,
    tiles_of,
)
from sspsam.results import Decoded, ImageEmbedding, Question, Referent

HW = (1500, 2000)
CELLS = 32
PICTURE = ImageEmbedding(HW, torch.zeros(1, 4, 8, 8), torch.zeros(1, 4, 4), ClipFrame(HW, HW, 0, 0, 2000))
RULES = LookRules(min_presence=0.65)


@pytest.mark.parametrize("hw", [(3000, 4000), (4000, 3000), (4000, 4000), (2000, 9000), (2001, 1999)])
def test_tiles_cover_the_picture_within_the_budget(hw: tuple[int, int]) -> None:
    tiles = tiles_of(hw)
    assert 1 <= len(tiles) <= MOST_TILES
    covered = np.zeros((hw[0] // 10, hw[1] // 10), bool)
    for tile in tiles:
        assert tile.left >= 0
        assert tile.top >= 0
        assert tile.left + tile.side <= hw[1]
        assert tile.top + tile.side <= hw[0]
        rows, columns = (slice(-(-start // 10), (start + tile.side) // 10) for start in (tile.top, tile.left))
        covered[rows, columns] = True
    assert covered.mean() > 0.97
    assert len(tiles_of((3000, 4000))) == 26
    assert tiles_of((40, 9000)) == [], "a strip would need too many"


@pytest.mark.parametrize(
    ("phrase", "whole"),
    [
        ("the dog", False),
        ("red car", False),
        ("the cat next to the pizza", False),
        ("the cat above the bus", False),
        ("leftmost dog", True),
        ("right-most dog", True),
        ("The dog on the LEFT", True),
        ("second car from the right", True),
        ("the 2nd car", True),
        ("the biggest star", True),
        ("small fish", True),
        ("the last one", True),
        ("the dog in the top left corner", True),
        ("bright star", False),
        ("the lefthanded glove", False),
    ],
)
def test_tiles_are_not_asked_about_places_order_and_size(phrase: str, whole: bool) -> None:
    assert is_about_the_whole(phrase) == whole


@pytest.mark.parametrize(
    ("phrase", "several"),
    [
        *((phrase, True) for phrase in ("all dogs", "both cats", "three apples", "the dog and the cat")),
        *((phrase, True) for phrase in ("every star", "the elephants")),
        *((phrase, False) for phrase in ("dog", "the bus", "an octopus", "dress")),
    ],
)
def test_phrases_for_several_objects(phrase: str, several: bool) -> None:
    assert is_about_several(phrase) == several


def logits_of(*discs: tuple[float, float, float]) -> torch.Tensor:
    """Mask logits of discs: x, y, radius in cells."""
    rows, columns = np.ogrid[:CELLS, :CELLS]
    distances = [radius - np.hypot(columns + 0.5 - x, rows + 0.5 - y) for x, y, radius in discs]
    return torch.from_numpy(np.maximum.reduce([*distances, np.full((CELLS, CELLS), -9.0)]).astype(np.float32))


def first_look(phrase: str, presence: float | None, score: float, found: bool) -> tuple[Referent, Decoded]:
    mask = np.zeros(HW, bool)
    mask[700:720, 900:930] = found
    decoded = Decoded(Question(PICTURE, phrase), logits_of(), score, None, presence)
    return Referent(phrase, mask, score, (0, 0, 0, 0), no_target=not found), decoded


class TileAnswers:
    """Answers for some tiles, by their number; in all others there is nothing."""

    def __init__(self, answers: Mapping[int, tuple[torch.Tensor, float, float | None]]) -> None:
        self.answers = answers
        self.late: set[int] = set()

    def embed_tiles(self, windows: Sequence[Window]) -> list[ImageEmbedding | None]:
        return [
            None if number in self.late else replace(PICTURE, original_hw=(number, number))
            for number in range(len(windows))
        ]

    def embed_views(self, windows: Sequence[Window]) -> list[ImageEmbedding | None]:
        raise AssertionError("tiles are searched before the second look")

    def decode(self, questions: Sequence[Question]) -> list[Decoded]:
        nothing = (logits_of(), 0.9, 0.1)
        return [
            Decoded(question, logits, score, None, presence)
            for question in questions
            for logits, score, presence in [self.answers.get(question.embedding.original_hw[0], nothing)]
        ]


def in_tile(number: int, *discs: tuple[float, float, float]) -> BoolMask:
    """The mask of discs of a tile, in the picture."""
    window = tiles_of(HW)[number]
    mask = np.zeros(HW, bool)
    cell = window.side / CELLS
    rows, columns = np.ogrid[: HW[0], : HW[1]]
    for x, y, radius in discs:
        centre = window.left + x * cell, window.top + y * cell
        mask |= np.hypot(columns - centre[0], rows - centre[1]) < radius * cell
    return mask


def iou(one: BoolMask, other: BoolMask) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_the_surest_tile_wins() -> None:
    disc = (12.0, 18.0, 4.0)
    viewer = TileAnswers({3: (logits_of((9, 9, 3)), 0.8, 0.9), 20: (logits_of(disc), 0.95, 0.98)})
    found = search_tiles(*first_look("the dog", 0.7, 0.5, found=True), viewer, RULES)
    assert iou(found.mask, in_tile(20, disc)) > 0.95
    assert found.score == 0.95
    assert not found.no_target


def test_an_object_that_a_tile_cuts_counts_less() -> None:
    whole = (12.0, 18.0, 4.0)
    viewer = TileAnswers({6: (logits_of((31, 9, 3)), 0.95, 0.99), 8: (logits_of(whole), 0.9, 0.95)})
    found = search_tiles(*first_look("the dog", 0.7, 0.5, found=False), viewer, RULES)
    assert iou(found.mask, in_tile(8, whole)) > 0.95


def test_the_edge_of_the_picture_cuts_nothing() -> None:
    number = next(
        n for n, tile in enumerate(tiles_of(HW)) if tile.side == 500 and (tile.left, tile.top) == (0, 0)
    )
    at_edge = (1.0, 9.0, 3.0)
    viewer = TileAnswers({number: (logits_of(at_edge), 0.9, 0.95), 8: (logits_of((9, 9, 3)), 0.85, 0.95)})
    found = search_tiles(*first_look("the dog", 0.7, 0.5, found=False), viewer, RULES)
    assert iou(found.mask, in_tile(number, at_edge)) > 0.9


def test_several_objects_are_those_of_all_sure_tiles() -> None:
    one, other, doubtful = (12.0, 18.0, 4.0), (20.0, 9.0, 4.0), (16.0, 16.0, 3.0)
    answers = {
        7: (logits_of(one), 0.95, 0.98),
        20: (logits_of(other), 0.93, 0.97),
        14: (logits_of(doubtful), 0.6, 0.8),
    }
    found = search_tiles(*first_look("all dogs", 0.7, 0.5, found=False), TileAnswers(answers), RULES)
    assert iou(found.mask, in_tile(7, one) | in_tile(20, other)) > 0.95
    alone = search_tiles(*first_look("the dog", 0.7, 0.5, found=False), TileAnswers(answers), RULES)
    assert iou(alone.mask, in_tile(7, one)) > 0.95


@pytest.mark.parametrize(
    ("score", "presence"), [(0.9, 0.5), (FOUND - 0.1, 1.0), (0.3, None)], ids=["absent", "unsure", "no head"]
)
def test_an_unsure_tile_changes_nothing(score: float, presence: float | None) -> None:
    first, decoded = first_look("the dog", 0.3, 0.5, found=False)
    viewer = TileAnswers({7: (logits_of((12, 18, 4)), score, presence)})
    assert search_tiles(first, decoded, viewer, RULES) is first


def test_a_surer_answer_about_the_whole_picture_stays() -> None:
    first, decoded = first_look("the dog", 0.99, 0.78, found=True)
    assert search_tiles(first, decoded, TileAnswers({7: (logits_of((12, 18, 4)), 0.75, 1.0)}), RULES) is first


def test_tiles_that_are_not_ready_are_left_out() -> None:
    viewer = TileAnswers({7: (logits_of((12, 18, 4)), 0.95, 0.98)})
    viewer.late = set(range(MOST_TILES))
    first, decoded = first_look("the dog", 0.3, 0.5, found=False)
    assert search_tiles(first, decoded, viewer, RULES) is first


def test_when_tiles_are_asked() -> None:
    assert needs_tiles(*first_look("the dog", 0.2, 0.9, found=False))
    assert needs_tiles(*first_look("the dog", 0.9, SURE - 0.1, found=True))
    assert not needs_tiles(*first_look("the dog", 1.0, SURE + 0.05, found=True))
    assert not needs_tiles(*first_look("leftmost dog", 0.2, 0.9, found=False))
    referent, decoded = first_look("the dog", 0.2, 0.9, found=False)
    small = replace(referent, mask=np.zeros((900, LARGE_PX - 1), bool))
    assert not needs_tiles(small, decoded)
    clicked = replace(decoded, question=Question(PICTURE, "the dog", points=[[3, 4, 1]]))
    assert not needs_tiles(referent, clicked)
