"""Masks as displayed to annotators, proposed or corrected by clicks: assigns gestures to masks and combines
the gestures on a mask. Pure functions without I/O.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from types import MappingProxyType
from typing import Any

import numpy as np

from backend.labelstudio.interactions import Interaction
from backend.serving.shared_model import Clicks
from sspsam import coco_rle_to_mask
from sspsam.images.masks import BoolMask

NEAR = 0.1
"""A click outside all masks belongs to the nearest one up to this distance, in fractions of the image's
longer side. Beyond it a positive click starts a new mask; a negative one has no maximum distance.
"""
OVERLAP = 0.25
"""A box belongs to the mask with the largest overlap, if that is at least this share of the smaller one."""
_SAMPLES = 256
"""Distances are measured on a mask subsampled to at most this many rows and columns."""


@dataclass(frozen=True)
class DisplayedMask:
    """A mask displayed to an annotator of a task."""

    region_id: str
    phrase: str
    """Empty for clicks without a phrase."""
    rle: Mapping[str, Any]
    """COCO RLE in the original frame, as last displayed."""
    label: str | None = None
    """None: chosen by the phrase."""
    settled: tuple[Interaction, ...] = ()
    """Gestures of earlier requests."""
    current: tuple[Interaction, ...] = ()
    """Gestures of the last request: with Auto-Accept off, the next request repeats them."""
    annotator: str = ""
    """Label Studio's user ID of the annotator; empty if unknown."""

    @cached_property
    def mask(self) -> BoolMask:
        """(H, W) in the original frame."""
        return coco_rle_to_mask(self.rle)

    def joined(self, interactions: Sequence[Interaction]) -> DisplayedMask:
        """Adds the gestures of a request, without repeating those of the last request."""
        if self.continues(interactions):
            return replace(self, current=tuple(interactions))
        return replace(self, settled=self.settled + self.current, current=tuple(interactions))

    def continues(self, interactions: Sequence[Interaction]) -> bool:
        """Whether a request repeats gestures of the last one on this mask."""
        return bool(
            {interaction.gesture_id for interaction in interactions}
            & {interaction.gesture_id for interaction in self.current}
        )

    def clicks(self) -> Clicks:
        """All gestures combined: every click, and the last box."""
        interactions = (*self.settled, *self.current)
        boxes = [interaction.xyxy for interaction in interactions if interaction.kind == "box"]
        points = [
            (*interaction.xy, interaction.positive)
            for interaction in interactions
            if interaction.kind == "click"
        ]
        return Clicks(tuple(points), boxes[-1] if boxes else None)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DisplayedMask:
        settled, current = (
            tuple(Interaction(**{**saved, "xyxy": tuple(saved["xyxy"])}) for saved in values[name])
            for name in ("settled", "current")
        )
        label, annotator = values.get("label"), values.get("annotator", "")
        return cls(values["region_id"], values["phrase"], values["rle"], label, settled, current, annotator)


def new_mask(
    project: str, task: str, interactions: Sequence[Interaction], label: str | None
) -> DisplayedMask:
    """A new mask for gestures on no displayed mask; the first gesture's ID becomes the region's."""
    key = f"{project}/{task}/{interactions[0].gesture_id}"
    region_id = hashlib.sha256(f"pointed at/{key}".encode()).hexdigest()[:12]
    return DisplayedMask(region_id, "", {}, label)


def seen_by(
    annotator: str, shown: Sequence[DisplayedMask], owners: Mapping[str, str] = MappingProxyType({})
) -> list[DisplayedMask]:
    """Removes masks displayed to other annotators.

    Args:
        annotator: Requesting annotator; empty if unknown, which keeps all masks.
        shown: Displayed masks of the task. Two annotators who type the same phrase have one mask each, with
            the same region ID.
        owners: Region ID -> annotator, from saved annotations.

    Returns:
        One mask per region: the annotator's own, else one without a known owner.
    """
    found: dict[str, DisplayedMask] = {}
    for mask in sorted(shown, key=lambda mask: bool(mask.annotator)):
        owner = mask.annotator or owners.get(mask.region_id, "")
        if not annotator or not owner or owner == annotator:
            found[mask.region_id] = mask
    return list(found.values())


def target_of(interactions: Sequence[Interaction], shown: Sequence[DisplayedMask]) -> DisplayedMask | None:
    """Finds the mask that gestures apply to.

    Continued gestures apply to the mask that they started with. Otherwise the first gesture decides: a click
    applies to the smallest mask under it, else to the nearest one; a box to the one with the largest overlap.

    Returns:
        None if they apply to no displayed mask.
    """
    begun = next((mask for mask in shown if mask.continues(interactions)), None)
    if begun is not None:
        return begun
    visible = [mask for mask in shown if mask.rle and mask.mask.any()]
    first = interactions[0]
    return _boxed(first, visible) if first.kind == "box" else _clicked(first, visible)


def _clicked(click: Interaction, shown: Sequence[DisplayedMask]) -> DisplayedMask | None:
    under = [mask for mask in shown if _is_on(click, mask.mask)]
    if under:
        return min(under, key=lambda mask: int(mask.mask.sum()))
    nearest = min(shown, key=lambda mask: _distance(click, mask.mask), default=None)
    if nearest is not None and click.positive and _distance(click, nearest.mask) > NEAR:
        return None
    return nearest


def _boxed(box: Interaction, shown: Sequence[DisplayedMask]) -> DisplayedMask | None:
    best = max(shown, key=lambda mask: _share(box, mask.mask), default=None)
    return best if best is not None and _share(box, best.mask) >= OVERLAP else None


def _is_on(click: Interaction, mask: BoolMask) -> bool:
    height, width = mask.shape
    x, y = click.xy
    return bool(mask[min(int(y * height), height - 1), min(int(x * width), width - 1)])


def _distance(click: Interaction, mask: BoolMask) -> float:
    """Distance from a click to the nearest pixel of a mask, in fractions of the image's longer side."""
    height, width = mask.shape
    step = max(1, max(mask.shape) // _SAMPLES)
    rows, columns = np.nonzero(mask[::step, ::step])
    if not rows.size:
        step, (rows, columns) = 1, np.nonzero(mask)
    x, y = click.xy
    distances_px = np.hypot(columns * step + 0.5 - x * width, rows * step + 0.5 - y * height)
    longer_side_px: int = max(mask.shape)
    return float(distances_px.min()) / longer_side_px


def _share(box: Interaction, mask: BoolMask) -> float:
    """Intersection of a box and a mask, as a fraction of the smaller one."""
    height, width = mask.shape
    x0, y0, x1, y1 = box.xyxy
    inside = mask[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
    smaller = min(inside.size, int(mask.sum()))
    return float(inside.sum()) / smaller if smaller else 0.0
