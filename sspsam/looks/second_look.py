"""A second look: an object is cut out with its surroundings, encoded by itself, and asked for again.

SAM's masks have 4 cells for each cell of its image embedding, over the whole picture. In a view of the object
alone the cells are finer; and a close-up, of which each part of SAM's encoder sees only a fragment, is shrunk
in a view that extends beyond the picture. The rule:

1. What is looked at: each connected part of a phrase's mask with at least MIN_PART of the largest one's area,
   at most MOST_PARTS; the mask of clicks or of a box as a whole.
2. The view is a square of ZOOM times the longer side of the part's box, of CLOSE_UP_ZOOM times for a
   close-up, or up to a fifth more.
3. `auto` looks again if the cells become finer by GAIN, that is if the part's longer side is below
   1 / (ZOOM * GAIN) of the picture's; and at the mask of clicks or of a box, if its side is above CLOSE_UP
   and SAM's encoder has no global attention. `always` looks at every part.
4. SAM is asked without the phrase: by the part's box and INNER_POINTS points deep inside it, or by the clicks
   and the box of the question, with the box of the mask if there is none. The first mask of a close-up is
   often a fragment: SAM is asked by the clicks or the box alone, and then again with points deep inside that
   answer, and its box.
5. The second answer replaces the first if SAM expects an IoU of at least MIN_SCORE, and both have an IoU of
   at least SAME; that about a close-up, if SAM expects a higher IoU than of the first. Clicks that the first
   obeys have to be obeyed. Otherwise the first stays.

The score of a phrase remains the first look's: it rates how well the mask fits the phrase.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Literal, Protocol

import cv2
import numpy as np
import numpy.typing as npt

from sspsam.images.frames import BoolMask
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.images.views import BoxXyxy, Window, view_logits_to_mask
from sspsam.results import Decoded, ImageEmbedding, Question, Referent

SecondLook = Literal["auto", "off", "always"]
Points = npt.NDArray[np.float32]

ZOOM = 4.0
CLOSE_UP_ZOOM = 3.0
GAIN = 1.25
CLOSE_UP = 0.35
"""Longer side of a close-up, as a fraction of the picture's."""
MIN_PART = 0.1
MOST_PARTS = 8
INNER_POINTS = 3
CLEARANCE = 1.2
"""Distance of a point inside a part from the deeper ones, as a multiple of their depth."""
SAME = 0.6
MIN_SCORE = 0.5


@dataclass(frozen=True)
class LookRules:
    """What further looks depend on."""

    mode: SecondLook = "auto"
    mask_threshold: float = 0.0
    """Logits above it are mask."""
    min_presence: float = 0.5
    """The preset's."""
    shrinks_close_ups: bool = False
    """Whether SAM's encoder has no global attention."""


class Viewer(Protocol):
    """Runs the networks on parts of one picture."""

    def embed_views(self, windows: Sequence[Window]) -> Sequence[ImageEmbedding | None]:
        """As `sspsam.Predictor.embed_views`; None for one that is not available in time."""

    def embed_tiles(self, windows: Sequence[Window]) -> Sequence[ImageEmbedding | None]:
        """Embeddings of windows within the picture, for phrases; None as for views."""

    def decode(self, questions: Sequence[Question]) -> Sequence[Decoded]:
        """As `sspsam.Predictor.decode`."""


@dataclass(frozen=True)
class Part:
    """What is looked at again: a whole mask, or a connected part of one."""

    number: int
    """Of its referent."""
    mask: BoolMask
    """(h, w) within its box."""
    box: tuple[int, int, int, int]
    """xyxy px, of the mask."""
    question: Question
    """The question that it answers."""
    score: float
    may_shrink: bool = False
    """Whether close-ups are shrunk."""

    @property
    def asked_box(self) -> BoxXyxy:
        """The box that SAM is asked for: the annotator's within the picture, if there is one."""
        if self.question.boxes is None:
            return self.box
        limits = self.question.embedding.original_hw[::-1] * 2
        x0, y0, x1, y1 = np.clip(np.asarray(self.question.boxes, np.float32).reshape(4), 0, limits).tolist()
        return x0, y0, x1, y1

    @property
    def clicks(self) -> Points:
        """(N, 3) the annotator's clicks, original frame."""
        given = self.question.points
        return np.zeros((0, 3), np.float32) if given is None else np.asarray(given, np.float32).reshape(-1, 3)

    @property
    def longest(self) -> float:
        """Longer side of the asked box, as a fraction of the picture's."""
        x0, y0, x1, y1 = self.asked_box
        return max(x1 - x0, y1 - y0) / max(self.question.embedding.original_hw)

    @property
    def is_close_up(self) -> bool:
        """Whether clicks or a box are about an object that SAM's encoder sees only fragments of."""
        return self.may_shrink and self.question.has_clicks and self.longest > CLOSE_UP

    @cached_property
    def window(self) -> Window:
        """The view in which it is looked at."""
        return Window.around(self.asked_box, CLOSE_UP_ZOOM if self.is_close_up else ZOOM)

    def ask(self, view: ImageEmbedding) -> Question:
        """The question about the view."""
        points: Points = self.clicks
        box: BoxXyxy | None = self.asked_box
        if not self.is_close_up and not len(points):
            points = _positive(inner_points(self.mask) + np.array(self.box[:2], np.float32))
        elif self.is_close_up and self.question.boxes is None:
            box = None
        return self._question(view, self.window.points_in_view(points), box)

    def ask_again(self, view: ImageEmbedding, answer: Decoded, threshold: float) -> Question | None:
        """The further question about the view of a close-up; None if the answer is empty."""
        cells: BoolMask = answer.mask_logits.numpy() > threshold
        if not cells.any():
            return None
        cell = self.window.side / len(cells)
        inside = _positive(inner_points(cells) * cell)
        points = np.concatenate([self.window.points_in_view(self.clicks), inside])
        box = self.asked_box
        if self.question.boxes is None:
            x0, y0, x1, y1 = (corner * cell for corner in mask_to_box_xyxy(cells))
            left, top = self.window.left, self.window.top
            box = (left + x0, top + y0, left + x1, top + y1)
        return self._question(view, points, box)

    def _question(self, view: ImageEmbedding, points: Points, box: BoxXyxy | None) -> Question:
        """Points are in the view's frame; those outside of it are left out."""
        inside = ((points[:, :2] >= 0) & (points[:, :2] < self.window.side)).all(axis=1)
        kept = points[inside] if inside.any() else None
        if kept is None and box is None:
            box = self.asked_box
        return Question(view, "", kept, None if box is None else self.window.box_in_view(box))

    def is_obeyed_by(self, mask: BoolMask) -> list[bool]:
        """For each of the annotator's clicks whether an (H, W) mask does what it asks for."""
        last = np.array(mask.shape[::-1]) - 1
        columns, rows = np.clip(self.clicks[:, :2].astype(np.int64), 0, last).T
        obeyed: list[bool] = (mask[rows, columns] == (self.clicks[:, 2] > 0)).tolist()
        return obeyed


def look_again(
    referents: Sequence[Referent], questions: Sequence[Question], viewer: Viewer, rules: LookRules
) -> list[Referent]:
    """Sharpens masks by a second look, by the rule above; views of all masks are encoded and asked together.

    Args:
        referents: First answers, about one picture.
        questions: Their questions. One that `includes_points` is not looked at again.
        viewer: Runs the networks.
        rules: `off` returns the first answers.
    """
    parts = [
        part
        for number, (referent, question) in enumerate(zip(referents, questions, strict=True))
        for part in find_parts(number, referent, question, rules.shrinks_close_ups)
        if rules.mode == "always" or (rules.mode == "auto" and is_worth_it(part))
    ]
    windows = list(dict.fromkeys(part.window for part in parts))
    embeddings = dict(zip(windows, viewer.embed_views(windows), strict=True)) if windows else {}
    seen = [(part, view) for part in parts if (view := embeddings[part.window]) is not None]
    found = list(referents)
    for (part, _), answer in zip(seen, _ask(seen, viewer, rules.mask_threshold), strict=True):
        found[part.number] = _improved(found[part.number], part, answer, rules.mask_threshold)
    return found


def _ask(seen: Sequence[tuple[Part, ImageEmbedding]], viewer: Viewer, threshold: float) -> list[Decoded]:
    """The second answers about parts, in order."""
    if not seen:
        return []
    answers = list(viewer.decode([part.ask(view) for part, view in seen]))
    further = {
        place: question
        for place, (part, view) in enumerate(seen)
        if part.is_close_up and (question := part.ask_again(view, answers[place], threshold)) is not None
    }
    if further:
        for place, answer in zip(further, viewer.decode(list(further.values())), strict=True):
            answers[place] = answer
    return answers


def is_worth_it(part: Part) -> bool:
    """Whether `auto` looks at a part again."""
    return part.longest < 1 / (ZOOM * GAIN) or part.is_close_up


def _positive(xy: npt.NDArray[np.float32]) -> Points:
    """(N, 2) points as (N, 3) positive clicks."""
    return np.column_stack([xy, np.ones(len(xy), np.float32)])


def find_parts(number: int, referent: Referent, question: Question, may_shrink: bool = False) -> list[Part]:
    """What of a referent's mask may be looked at again; for a box also an empty mask."""
    if question.includes_points or (referent.no_target and question.boxes is None):
        return []
    x0, y0, x1, y1 = (int(side) for side in mask_to_box_xyxy(referent.mask))
    inside = referent.mask[y0:y1, x0:x1]
    if question.has_clicks:
        return [Part(number, inside, (x0, y0, x1, y1), question, referent.score, may_shrink)]
    count, labels, statistics, _ = cv2.connectedComponentsWithStats(inside.astype(np.uint8), connectivity=8)
    areas = statistics[:, cv2.CC_STAT_AREA]
    largest = sorted(range(1, count), key=lambda label: -int(areas[label]))[:MOST_PARTS]
    found = []
    for label in largest:
        if areas[label] < MIN_PART * areas[largest[0]]:
            break
        left, top, width, height = (int(value) for value in statistics[label, : cv2.CC_STAT_AREA])
        mask = labels[top : top + height, left : left + width] == label
        box = (x0 + left, y0 + top, x0 + left + width, y0 + top + height)
        found.append(Part(number, mask, box, question, referent.score))
    return found


def inner_points(mask: BoolMask) -> npt.NDArray[np.float32]:
    """(N, 2) x, y of at most INNER_POINTS pixels of a mask; the first is farthest from its edge."""
    depths = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    found: list[tuple[float, float]] = []
    while len(found) < INNER_POINTS and depths.any():
        row, column = (int(place) for place in np.unravel_index(int(depths.argmax()), depths.shape))
        found.append((column + 0.5, row + 0.5))
        radius = CLEARANCE * float(depths[row, column])
        depths = np.where((rows - row) ** 2 + (columns - column) ** 2 < radius**2, 0, depths)
    return np.array(found, np.float32).reshape(-1, 2)


def _improved(referent: Referent, part: Part, answer: Decoded, threshold: float) -> Referent:
    """The referent with the second answer in place of a part, if that is to be believed."""
    before = referent.mask
    hw = before.shape[0], before.shape[1]
    where = part.window.visible(hw)
    second = view_logits_to_mask(answer.mask_logits.numpy(), part.window, hw, threshold)
    x0, y0, x1, y1 = part.box
    first = np.zeros_like(before)
    first[y0:y1, x0:x1] = part.mask
    common = int(np.count_nonzero(first[where] & second))
    union = int(np.count_nonzero(part.mask)) + int(np.count_nonzero(second)) - common
    iou = common / max(1, union)
    if not second.any() or not _is_believed(part, answer.score, iou):
        return referent
    mask = before & ~first
    mask[where] |= second
    obeyed = zip(part.is_obeyed_by(before), part.is_obeyed_by(mask), strict=True)
    if any(earlier and not now for earlier, now in obeyed):
        return referent
    has_own_box = referent.box_xyxy != mask_to_box_xyxy(before)
    return replace(
        referent,
        mask=mask,
        box_xyxy=referent.box_xyxy if has_own_box else mask_to_box_xyxy(mask),
        no_target=False,
        score=referent.score if part.question.phrase else answer.score,
    )


def _is_believed(part: Part, score: float, iou: float) -> bool:
    if part.is_close_up:
        return score > part.score
    return iou >= SAME and score >= MIN_SCORE
