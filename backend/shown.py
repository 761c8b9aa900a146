"""Masks as annotators see them now: by phrase, and as clicks have changed them. Which one a gesture is meant
for, and what all gestures on it say together. Pure: nothing here asks anybody.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from backend.labelstudio.gestures import Gesture
from backend.sharing import Clicks
from sspsam.masks import BoolMask, coco_rle_to_mask

NEAR = 0.1
"""A click outside all masks belongs to the nearest one up to here, in parts of the picture's longer side.
Further away it means something new; "not this" can only be said of what is there, at any distance."""
OVERLAP = 0.25
"""A box belongs to the mask of which it shares most, if it is at least so much of the smaller of the two."""
_SAMPLES = 256
"""Distances are measured on a mask thinned out to so many rows and columns."""


@dataclass(frozen=True)
class ShownMask:
    """A mask that an annotator of a task was shown."""

    region_id: str
    phrase: str
    """Empty for what was pointed at without one."""
    rle: Mapping[str, Any]
    """COCO RLE in the original frame, as last shown."""
    label: str | None = None
    """None lets the phrase choose."""
    settled: tuple[Gesture, ...] = ()
    """Of earlier requests."""
    current: tuple[Gesture, ...] = ()
    """Of the last request: with Auto-Accept off, the next one brings them again."""
    annotator: str = ""
    """Who was shown it, as Label Studio numbers users; empty when it did not say."""

    @cached_property
    def mask(self) -> BoolMask:
        """(H, W) in the original frame."""
        return coco_rle_to_mask(self.rle)

    def joined(self, gestures: Sequence[Gesture]) -> ShownMask:
        """Adds the gestures of a request; those that it shares with the last request are not doubled."""
        if self.continues(gestures):
            return replace(self, current=tuple(gestures))
        return replace(self, settled=self.settled + self.current, current=tuple(gestures))

    def continues(self, gestures: Sequence[Gesture]) -> bool:
        """Whether a request brings gestures again that the last one about this mask brought."""
        return bool({one.gesture_id for one in gestures} & {one.gesture_id for one in self.current})

    def clicks(self) -> Clicks:
        """All gestures together: every click, and the last box."""
        gestures = (*self.settled, *self.current)
        boxes = [one.xyxy for one in gestures if one.kind == "box"]
        points = [(*one.xy, one.positive) for one in gestures if one.kind == "click"]
        return Clicks(tuple(points), boxes[-1] if boxes else None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ShownMask:
        settled, current = (
            tuple(Gesture(**{**one, "xyxy": tuple(one["xyxy"])}) for one in values[name])
            for name in ("settled", "current")
        )
        label, annotator = values.get("label"), values.get("annotator", "")
        return cls(values["region_id"], values["phrase"], values["rle"], label, settled, current, annotator)


def new_mask(project: str, task: str, gestures: Sequence[Gesture], label: str | None) -> ShownMask:
    """What gestures on nothing that is shown stand for; the first one's id names the region."""
    key = f"{project}/{task}/{gestures[0].gesture_id}"
    region_id = hashlib.sha256(f"pointed at/{key}".encode()).hexdigest()[:12]
    return ShownMask(region_id, "", {}, label)


def seen_by(
    annotator: str, shown: Sequence[ShownMask], owners: Mapping[str, str] = MappingProxyType({})
) -> list[ShownMask]:
    """Leaves out what somebody else was shown.

    Args:
        annotator: Who asks; empty when Label Studio does not say: then everything is taken to be theirs.
        shown: On the task. Two annotators who type the same phrase have a mask each, of one region id.
        owners: Region id -> annotator, from saved annotations.

    Returns:
        One mask for each region: the annotator's own, else one that nobody is known to own.
    """
    found: dict[str, ShownMask] = {}
    for mask in sorted(shown, key=lambda mask: bool(mask.annotator)):
        owner = mask.annotator or owners.get(mask.region_id, "")
        if not annotator or not owner or owner == annotator:
            found[mask.region_id] = mask
    return list(found.values())


def target_of(gestures: Sequence[Gesture], shown: Sequence[ShownMask]) -> ShownMask | None:
    """Finds the mask that gestures are meant for.

    Gestures that go on are for the mask that they began with. Otherwise the first of them decides: a click is
    for the smallest mask that it is on, else for the nearest one; a box for the one that it shares most of.

    Returns:
        None when they mean something that is not shown yet.
    """
    begun = next((mask for mask in shown if mask.continues(gestures)), None)
    if begun is not None:
        return begun
    visible = [mask for mask in shown if mask.rle and mask.mask.any()]
    first = gestures[0]
    return _boxed(first, visible) if first.kind == "box" else _clicked(first, visible)


def _clicked(click: Gesture, shown: Sequence[ShownMask]) -> ShownMask | None:
    under = [mask for mask in shown if _is_on(click, mask.mask)]
    if under:
        return min(under, key=lambda mask: int(mask.mask.sum()))
    nearest = min(shown, key=lambda mask: _distance(click, mask.mask), default=None)
    if nearest is not None and click.positive and _distance(click, nearest.mask) > NEAR:
        return None
    return nearest


def _boxed(box: Gesture, shown: Sequence[ShownMask]) -> ShownMask | None:
    best = max(shown, key=lambda mask: _share(box, mask.mask), default=None)
    return best if best is not None and _share(box, best.mask) >= OVERLAP else None


def _is_on(click: Gesture, mask: BoolMask) -> bool:
    height, width = mask.shape
    x, y = click.xy
    return bool(mask[min(int(y * height), height - 1), min(int(x * width), width - 1)])


def _distance(click: Gesture, mask: BoolMask) -> float:
    """From a click to the nearest pixel of a mask, in parts of the picture's longer side."""
    height, width = mask.shape
    step = max(1, max(mask.shape) // _SAMPLES)
    rows, columns = np.nonzero(mask[::step, ::step])
    if not rows.size:
        step, (rows, columns) = 1, np.nonzero(mask)
    x, y = click.xy
    distances_px = np.hypot(columns * step + 0.5 - x * width, rows * step + 0.5 - y * height)
    longer_side_px: int = max(mask.shape)
    return float(distances_px.min()) / longer_side_px


def _share(box: Gesture, mask: BoolMask) -> float:
    """What a box and a mask have in common, as a part of the smaller of the two."""
    height, width = mask.shape
    x0, y0, x1, y1 = box.xyxy
    inside = mask[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
    smaller = min(inside.size, int(mask.sum()))
    return float(inside.sum()) / smaller if smaller else 0.0
