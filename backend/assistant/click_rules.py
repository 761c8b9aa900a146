"""What a click or a box does to a mask.

The rule for clicks: afterwards the point is on the mask, or off it for a negative click; earlier points stay
as they were clicked; and other parts of the mask stay. It is kept by set operations on what SAM finds at the
click. The candidates are, in this order:

    mask made of clicks alone   SAM's mask of all its points
    positive click              the mask and the part at the click of SAM's mask of all its points
    negative click              the mask without the object that SAM finds at the click, except what the
                                model, asked for the phrase with the click, still takes for the referent
    the same, in the middle     the mask without that object; or else, as the phrase has been misunderstood,
                                the model's answer for the phrase with the click
    any                         the mask with, or without, the part of that object within REACH of the click;
                                SAM's threshold is lowered as far as the point requires

A negative click concerns the connected part that it is on. The answer is the first candidate that keeps the
rule, and at least REST of a mask in one part. If there is none, the mask is not changed, and the annotator is
told to use the eraser.

A box has the mask recomputed within it, with the phrase and the earlier points.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Protocol

import cv2
import numpy as np

from backend.errors import MaskSizeError
from backend.labelstudio.interactions import Interaction
from backend.serving.shared_model import Clicks
from backend.state.displayed_masks import pixel_at
from sspsam.images.masks import BoolMask

REST = 0.3
"""Share of a mask in one part that remains at least when it loses the object at a negative click."""
MIDDLE = 0.5
"""Depth of a click that means the whole object, as a share of the mask's greatest depth."""
REACH = 0.02
"""Radius within which a click changes a mask at least, in fractions of the image's longer side."""
_CLEARANCE = 0.7
"""Largest part of the way to a point with the other sign that a click reaches."""


class Segment(Protocol):
    """Runs the model on clicks, with a phrase or, if that is empty, without; the mask may be empty."""

    def __call__(self, phrase: str, clicks: Clicks) -> BoolMask: ...


@dataclass(frozen=True)
class State:
    """A mask before a gesture."""

    mask: BoolMask | None
    """(H, W) in the original frame; None for a new object."""
    earlier: Sequence[Interaction] = ()
    """Gestures on it that the mask still obeys."""
    phrase: str = ""
    """Empty for clicks without a phrase."""
    from_clicks: bool = False
    """The mask is what SAM made of the earlier gestures alone."""


def apply(gesture: Interaction, state: State, segment: Segment) -> BoolMask | None:
    """The mask after a gesture.

    Returns:
        None if the gesture cannot have its effect, or nothing would be left.

    Raises:
        MaskSizeError: the mask is of an image of another size.
    """
    if gesture.kind == "box":
        mask = segment(state.phrase, combined([*state.earlier, gesture]))
        return mask if mask.any() else None
    is_new = state.mask is None
    candidates = _new(gesture, segment) if is_new else _changed(gesture, state, segment)
    points = [*state.earlier, gesture]
    return next((mask for mask in candidates if mask.any() and _obeys(mask, points)), None)


def combined(gestures: Sequence[Interaction]) -> Clicks:
    """Gestures as one prompt: every click, and the last box."""
    boxes = [gesture.xyxy for gesture in gestures if gesture.kind == "box"]
    points = [(*gesture.xy, gesture.positive) for gesture in gestures if gesture.kind == "click"]
    return Clicks(tuple(points), boxes[-1] if boxes else None)


def is_obeyed(gesture: Interaction, mask: BoolMask) -> bool:
    """Whether a mask does at the point what a click asks for; true for boxes."""
    return gesture.kind == "box" or is_on(gesture, mask) == gesture.positive


def is_on(click: Interaction, mask: BoolMask) -> bool:
    """Whether the clicked pixel is mask."""
    return bool(mask[pixel_at(click.xy, _hw(mask))])


def _obeys(mask: BoolMask, gestures: Sequence[Interaction]) -> bool:
    return all(is_obeyed(gesture, mask) for gesture in gestures)


def _new(click: Interaction, segment: Segment) -> Iterator[BoolMask]:
    point = replace(click, positive=True)
    yield segment("", combined([point]))
    yield _within_reach(point, (), segment)


def _changed(click: Interaction, state: State, segment: Segment) -> Iterator[BoolMask]:
    mask, earlier = state.mask, state.earlier
    assert mask is not None
    together = segment("", combined([*earlier, click]))
    if together.shape != mask.shape:
        (height, width), (image_height, image_width) = mask.shape, together.shape
        raise MaskSizeError(
            f"the mask under it is of an image of {width} x {height} pixels, and this one has "
            f"{image_width} x {image_height}: delete the mask, and ask again"
        )
    if state.from_clicks:
        yield together
    if click.positive:
        yield mask | _part_at(click, together)
        yield mask | _within_reach(click, earlier, segment)
        return
    part = _part_at(click, mask)
    others = mask & ~part
    there = _object_under(click, earlier, segment) & part
    kept = segment(state.phrase, combined([*earlier, click])) if state.phrase else np.zeros_like(mask)
    if is_obeyed(click, kept):
        yield from _substantial(part & ~(there & ~kept), part, others)
    if _is_in_the_middle(click, part):
        yield from _substantial(part & ~there, part, others)
        yield (kept & ~part) | others
    yield mask & ~_within_reach(click, earlier, segment)


def _substantial(rest: BoolMask, part: BoolMask, others: BoolMask) -> Iterator[BoolMask]:
    """What is left of a part, with the others, unless most of a mask in one part would go."""
    if others.any() or np.count_nonzero(rest) >= REST * np.count_nonzero(part):
        yield rest | others


def _object_under(click: Interaction, earlier: Sequence[Interaction], segment: Segment) -> BoolMask:
    """What SAM finds at a negative click, apart from the object."""
    others = [replace(gesture, positive=not gesture.positive) for gesture in earlier if gesture.positive]
    point = replace(click, positive=True)
    return _part_at(click, segment("", combined([*others, point])))


def _within_reach(click: Interaction, earlier: Sequence[Interaction], segment: Segment) -> BoolMask:
    """The part of SAM's object around a click, apart from points with the other sign."""
    point = replace(click, positive=True)
    found = segment("", replace(combined([point]), includes_points=True))
    height, width = found.shape
    (row, column), reach = pixel_at(click.xy, (height, width)), REACH * max(height, width)
    for gesture in earlier:
        if gesture.kind == "click" and gesture.positive != click.positive:
            other = pixel_at(gesture.xy, (height, width))
            reach = min(reach, _CLEARANCE * math.dist((row, column), other))
    rows, columns = np.ogrid[:height, :width]
    return _part_at(click, found & ((rows - row) ** 2 + (columns - column) ** 2 <= reach**2))


def _part_at(click: Interaction, mask: BoolMask) -> BoolMask:
    """The connected part of a mask that a click is on; empty if there is none."""
    at = pixel_at(click.xy, _hw(mask))
    if not mask[at]:
        return np.zeros_like(mask)
    _, parts = cv2.connectedComponents(mask.astype(np.uint8), connectivity=8)
    part: BoolMask = parts == parts[at]
    return part


def _is_in_the_middle(click: Interaction, mask: BoolMask) -> bool:
    depths = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    return bool(depths[pixel_at(click.xy, _hw(mask))] >= MIDDLE * depths.max())


def _hw(mask: BoolMask) -> tuple[int, int]:
    height, width = mask.shape
    return height, width
