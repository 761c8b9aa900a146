"""The second look: what is looked at again, what SAM is asked, and which answer is believed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import pytest
import torch

from sspsam.images.frames import BoolMask, ClipFrame
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.images.views import Window
from sspsam.looks.second_look import (
    CLOSE_UP_ZOOM,
    MOST_PARTS,
    ZOOM,
    LookRules,
    SecondLook,
    find_parts,
    inner_points,
    look_again,
)
from sspsam.results import Decoded, ImageEmbedding, Question, Referent

HW = (300, 400)
CELLS = 128
PICTURE = ImageEmbedding(HW, torch.zeros(1, 4, 32, 32), torch.zeros(1, 4, 4), ClipFrame(HW, HW, 0, 0, 400))
DEMO = LookRules(shrinks_close_ups=True)


def disc(x: float, y: float, radius: float) -> BoolMask:
    rows, columns = np.ogrid[: HW[0], : HW[1]]
    mask: BoolMask = (columns + 0.5 - x) ** 2 + (rows + 0.5 - y) ** 2 < radius**2
    return mask


def referent(mask: BoolMask, score: float = 0.7, phrase: str = "dog") -> Referent:
    return Referent(phrase, mask, score, mask_to_box_xyxy(mask), no_target=not mask.any())


class OneTruth:
    """A viewer whose SAM answers every question about a view with the same mask of the picture."""

    def __init__(self, truth: Callable[[Window], npt.NDArray[np.float32]], score: float = 0.9) -> None:
        self.truth = truth
        self.score = score
        self.windows: list[Window] = []
        self.batches: list[int] = []
        self.asked: list[Question] = []
        self.in_time = True

    def embed_views(self, windows: Sequence[Window]) -> list[ImageEmbedding | None]:
        self.batches.append(len(windows))
        self.windows += windows
        return [replace(PICTURE, original_hw=window.hw) if self.in_time else None for window in windows]

    def embed_tiles(self, windows: Sequence[Window]) -> list[ImageEmbedding | None]:
        raise AssertionError("the second look asks for no tiles")

    def decode(self, questions: Sequence[Question]) -> list[Decoded]:
        self.asked += questions
        by_side = {window.side: window for window in self.windows}
        return [
            Decoded(
                question,
                torch.from_numpy(self.truth(by_side[question.embedding.original_hw[0]])),
                self.score,
                None,
            )
            for question in questions
        ]


def disc_in_view(x: float, y: float, radius: float) -> Callable[[Window], npt.NDArray[np.float32]]:
    """Mask logits of a disc of the picture, in a view."""

    def logits(window: Window) -> npt.NDArray[np.float32]:
        places = (np.arange(CELLS) + 0.5) * window.side / CELLS
        distances = np.hypot(places[None, :] + window.left - x, places[:, None] + window.top - y)
        return np.asarray(radius - distances, np.float32)

    return logits


def iou(one: BoolMask, other: BoolMask) -> float:
    return float((one & other).sum() / (one | other).sum())


def test_a_coarse_mask_becomes_sharp() -> None:
    viewer = OneTruth(disc_in_view(200, 150, 20))
    first = referent(disc(202, 151, 22))
    [found] = look_again([first], [Question(PICTURE, "dog")], viewer, DEMO)
    assert iou(found.mask, disc(200, 150, 20)) > 0.97
    assert found.score == first.score  # how well it fits the phrase
    assert found.box_xyxy == mask_to_box_xyxy(found.mask)
    [asked] = viewer.asked
    assert asked.phrase == ""
    assert asked.boxes is not None
    points = np.asarray(asked.points)
    assert points[:, 2].tolist() == [1] * len(points)
    [window] = viewer.windows
    assert ZOOM * 44 <= window.side <= 1.2 * ZOOM * 44
    assert first.mask[tuple((points[0, 1::-1] + (window.top, window.left)).astype(int))]


def test_the_box_of_the_box_head_stays() -> None:
    first = replace(referent(disc(202, 151, 22)), box_xyxy=(1.0, 2.0, 3.0, 4.0))
    [found] = look_again([first], [Question(PICTURE, "dog")], OneTruth(disc_in_view(200, 150, 20)), DEMO)
    assert (found.mask != first.mask).any()
    assert found.box_xyxy == (1.0, 2.0, 3.0, 4.0)


@pytest.mark.parametrize(
    ("truth", "score", "why"),
    [
        (disc_in_view(230, 150, 20), 0.9, "another place"),
        (disc_in_view(200, 150, 9), 0.9, "a part of it"),
        (disc_in_view(200, 150, 20), 0.3, "SAM doubts it"),
        (disc_in_view(0, 0, 0), 0.9, "nothing"),
    ],
)
def test_the_first_answer_stays_where_the_second_disagrees(
    truth: Callable[[Window], npt.NDArray[np.float32]], score: float, why: str
) -> None:
    first = referent(disc(200, 150, 22))
    [found] = look_again([first], [Question(PICTURE, "dog")], OneTruth(truth, score), DEMO)
    assert found is first, why


def test_the_first_answer_stays_if_no_view_is_ready_in_time() -> None:
    viewer = OneTruth(disc_in_view(200, 150, 20))
    viewer.in_time = False
    first = referent(disc(202, 151, 22))
    assert look_again([first], [Question(PICTURE, "dog")], viewer, DEMO) == [first]
    assert not viewer.asked


def test_each_part_is_looked_at_in_one_batch_and_small_ones_stay() -> None:
    mask = disc(100, 100, 20) | disc(300, 200, 18) | disc(200, 40, 3)
    viewer = OneTruth(disc_in_view(100, 100, 19))
    other = referent(disc(100, 100, 21), phrase="the same dog")
    found, again = look_again(
        [referent(mask), other], [Question(PICTURE, "dogs"), Question(PICTURE, "the same dog")], viewer, DEMO
    )
    assert viewer.batches == [2]  # the view of the first part is also that of the other phrase
    assert iou(again.mask, disc(100, 100, 19)) > 0.97
    assert iou(found.mask, disc(100, 100, 19) | disc(300, 200, 18) | disc(200, 40, 3)) > 0.97


def test_there_is_a_limit_of_parts() -> None:
    mask = np.zeros(HW, bool)
    for number in range(MOST_PARTS + 4):
        mask |= disc(20 + 30 * number, 100, 9)
    assert len(find_parts(0, referent(mask), Question(PICTURE, "dogs"))) == MOST_PARTS


@pytest.mark.parametrize(
    ("mode", "radius", "looks"),
    [("auto", 35, 1), ("auto", 60, 0), ("auto", 110, 0), ("always", 60, 1), ("off", 20, 0), ("off", 60, 0)],
)
def test_when_a_phrase_is_worth_a_second_look(mode: SecondLook, radius: float, looks: int) -> None:
    """The picture's longer side is 400 px: cells become finer below a fifth of it."""
    viewer = OneTruth(disc_in_view(200, 150, radius))
    look_again(
        [referent(disc(200, 150, radius))], [Question(PICTURE, "dog")], viewer, replace(DEMO, mode=mode)
    )
    assert len(viewer.windows) == looks


def test_a_box_around_a_close_up_is_shrunk_and_asked_twice() -> None:
    box = np.array([90, 40, 310, 260], np.float32)
    fragment = referent(disc(160, 120, 40), score=0.4, phrase="")
    viewer = OneTruth(disc_in_view(200, 150, 110))
    [found] = look_again([fragment], [Question(PICTURE, "", boxes=box)], viewer, DEMO)
    assert iou(found.mask, disc(200, 150, 110)) > 0.97
    assert found.score == 0.9
    first, second = viewer.asked
    assert first.points is None
    assert len(np.asarray(second.points)) >= 1
    assert CLOSE_UP_ZOOM * 220 <= viewer.windows[0].side <= 1.2 * CLOSE_UP_ZOOM * 220


def test_a_close_up_that_sam_expects_to_be_worse_is_not_believed() -> None:
    box = np.array([90, 40, 310, 260], np.float32)
    first = referent(disc(200, 150, 108), score=0.95, phrase="")
    [found] = look_again(
        [first], [Question(PICTURE, "", boxes=box)], OneTruth(disc_in_view(200, 150, 110)), DEMO
    )
    assert found is first


def test_encoders_with_global_attention_see_close_ups_whole() -> None:
    viewer = OneTruth(disc_in_view(200, 150, 110))
    box = np.array([90, 40, 310, 260], np.float32)
    look_again([referent(disc(200, 150, 105))], [Question(PICTURE, "", boxes=box)], viewer, LookRules())
    assert not viewer.windows


def test_a_box_in_which_nothing_was_found_is_looked_at_again() -> None:
    box = np.array([90, 40, 310, 260], np.float32)
    nothing = referent(np.zeros(HW, bool), score=0.2, phrase="")
    [found] = look_again(
        [nothing], [Question(PICTURE, "", boxes=box)], OneTruth(disc_in_view(200, 150, 110)), DEMO
    )
    assert not found.no_target
    assert iou(found.mask, disc(200, 150, 110)) > 0.97


def test_clicks_stay_obeyed() -> None:
    """The click is on the first mask; the second answer, otherwise alike, leaves it out."""
    click = [[200.5, 150.5 + 21, 1]]
    first = referent(disc(200, 150, 23), phrase="")
    viewer = OneTruth(disc_in_view(200, 150, 20))
    assert look_again([first], [Question(PICTURE, "", points=click)], viewer, DEMO) == [first]
    inside = [[200.5, 150.5, 1]]
    [found] = look_again([first], [Question(PICTURE, "", points=inside)], viewer, DEMO)
    assert iou(found.mask, disc(200, 150, 20)) > 0.97
    assert np.asarray(viewer.asked[-1].points).shape == (1, 3)


def test_masks_made_to_include_points_are_left_alone() -> None:
    question = Question(PICTURE, "", points=[[200, 150, 1]], includes_points=True)
    assert find_parts(0, referent(disc(200, 150, 20)), question) == []


def test_inner_points_are_inside_and_apart() -> None:
    mask = disc(100, 100, 20) | disc(130, 100, 12)
    points = inner_points(mask)
    assert 2 <= len(points) <= 3
    assert all(mask[int(y), int(x)] for x, y in points)
    assert np.hypot(*(points[0] - points[1])) > 15
