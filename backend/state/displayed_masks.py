"""Masks of an annotation, and the gestures that apply to each. Pure functions without I/O."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from backend.labelstudio.interactions import Interaction
from backend.labelstudio.prompt_text import phrase_key
from backend.labelstudio.regions.parts import group_parts
from sspsam import coco_rle_to_mask
from sspsam.images.masks import BoolMask

NEAR = 0.1
"""A click belongs to a mask of its series up to this distance, in fractions of the image's longer side."""
OVERLAP = 0.25
"""A box belongs to the mask with the largest overlap, if that is at least this share of the smaller one."""
_SAMPLES = 256
"""Distances are measured on a mask subsampled to at most this many rows and columns."""


@dataclass(frozen=True)
class PackedMask:
    """A mask in little memory, for tests of single points."""

    hw: tuple[int, int]
    top_left: tuple[int, int]
    """Row and column of the bounding box."""
    box_hw: tuple[int, int]
    bits: npt.NDArray[np.uint8]
    """Pixels of the bounding box, eight per byte."""
    area_px: int

    @classmethod
    def pack(cls, mask: BoolMask) -> PackedMask:
        height, width = mask.shape
        rows, columns = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
        if not rows.size:
            return cls((height, width), (0, 0), (0, 0), np.zeros(0, np.uint8), 0)
        top, left = int(rows[0]), int(columns[0])
        box = mask[top : rows[-1] + 1, left : columns[-1] + 1]
        area_px = int(np.count_nonzero(box))
        return cls((height, width), (top, left), (box.shape[0], box.shape[1]), np.packbits(box), area_px)

    @classmethod
    def union(cls, parts: Sequence[PackedMask]) -> PackedMask:
        """Union of masks of one image, at least one; most of the image is not looked at."""
        boxes = [(*part.top_left, *np.add(part.top_left, part.box_hw)) for part in parts if part.area_px]
        if len(boxes) < 2:
            return next((part for part in parts if part.area_px), parts[0])
        top, left = (min(box[axis] for box in boxes) for axis in (0, 1))
        bottom, right = (int(max(box[axis] for box in boxes)) for axis in (2, 3))
        joined = np.zeros((bottom - top, right - left), np.bool_)
        for part in parts:
            row, column = part.top_left[0] - top, part.top_left[1] - left
            height, width = part.box_hw
            joined[row : row + height, column : column + width] |= part._box()
        area_px = int(np.count_nonzero(joined))
        return cls(parts[0].hw, (top, left), (bottom - top, right - left), np.packbits(joined), area_px)

    def _box(self) -> BoolMask:
        height, width = self.box_hw
        bits: BoolMask = np.unpackbits(self.bits, count=height * width).reshape(self.box_hw).view(np.bool_)
        return bits

    @property
    def size_bytes(self) -> int:
        return self.bits.nbytes + 200

    def unpack(self) -> BoolMask:
        """(H, W) in the original frame."""
        mask = np.zeros(self.hw, np.bool_)
        (top, left), (height, width) = self.top_left, self.box_hw
        mask[top : top + height, left : left + width] = self._box()
        return mask

    def is_at(self, xy: tuple[float, float]) -> bool:
        """Whether a point, in fractions of the image, is on the mask."""
        row, column = pixel_at(xy, self.hw)
        row, column = row - self.top_left[0], column - self.top_left[1]
        height, width = self.box_hw
        if not (0 <= row < height and 0 <= column < width):
            return False
        place = row * width + column
        return bool(self.bits[place // 8] >> (7 - place % 8) & 1)

    def meets(self, xyxy: tuple[float, float, float, float]) -> bool:
        """Whether the bounding box intersects a box, in fractions of the image."""
        height, width = self.hw
        (top, left), (box_height, box_width) = self.top_left, self.box_hw
        x0, y0, x1, y1 = xyxy
        return (
            x0 * width < left + box_width
            and left < x1 * width
            and y0 * height < top + box_height
            and top < y1 * height
        )


@dataclass(frozen=True)
class VisibleMask:
    """A mask that the annotator sees."""

    region_id: str
    phrase: str
    """Empty for clicks without a phrase."""
    label: str | None
    pixels: PackedMask
    control: str = ""
    """Name of its region control; empty if unknown."""


def join_parts(masks: Sequence[VisibleMask]) -> list[VisibleMask]:
    """One mask per object, in the order of their first parts: a polygon is only one part of an object."""
    meanings = [(phrase_key(mask.phrase), mask.label, mask.pixels.hw) for mask in masks]
    joined = []
    for object_id, places in group_parts([mask.region_id for mask in masks], meanings):
        pixels = PackedMask.union([masks[place].pixels for place in places])
        joined.append(replace(masks[places[0]], region_id=object_id, pixels=pixels))
    return joined


@dataclass(frozen=True)
class DisplayedMask:
    """A mask as last proposed to an annotator of a task, or corrected by clicks."""

    region_id: str
    phrase: str
    """Empty for clicks without a phrase."""
    rle: Mapping[str, Any]
    """COCO RLE in the original frame, as last displayed."""
    label: str | None = None
    """None: chosen by the phrase."""
    settled: tuple[Interaction, ...] = ()
    """Gestures of earlier series."""
    current: tuple[Interaction, ...] = ()
    """Gestures of the last request: with Auto-Accept off, the next request repeats them."""
    before: Mapping[str, Any] = field(default_factory=dict)
    """COCO RLE before the gestures of `current`; empty for a new mask."""
    from_clicks: bool = False
    """The mask is what SAM made of its clicks and boxes alone."""
    annotator: str = ""
    """Label Studio's user ID of the annotator; empty if unknown."""
    draft: str = ""
    """`Task.draft_version` when the mask was displayed; empty if there was none."""
    shown_s: float = 0.0
    """When it was displayed, in seconds since 1970."""
    colour: int | None = None
    """Number of its colour in the form; None: by its ID."""
    control: str = ""
    """Name of its region control in the annotation; empty: chosen by label or phrase."""

    @cached_property
    def mask(self) -> BoolMask:
        """(H, W) in the original frame."""
        return coco_rle_to_mask(self.rle)

    def visible(self) -> VisibleMask:
        pixels = PackedMask.pack(self.mask)
        return VisibleMask(self.region_id, self.phrase, self.label, pixels, self.control)

    def has_gesture_of(self, interactions: Iterable[Interaction]) -> bool:
        """Whether a request repeats gestures of the last one on this mask."""
        current = {interaction.gesture_id for interaction in self.current}
        return any(interaction.gesture_id in current for interaction in interactions)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DisplayedMask:
        mask = cls(**{name: values[name] for name in cls.__dataclass_fields__ if name in values})
        settled, current = (
            tuple(Interaction(**{**saved, "xyxy": tuple(saved["xyxy"])}) for saved in values[name])
            for name in ("settled", "current")
        )
        return replace(mask, settled=settled, current=current)


def new_region_id(project: str, task: str, first: Interaction) -> str:
    """ID of a region that a gesture creates: another gesture creates another region."""
    key = f"{project}/{task}/{first.gesture_id}"
    return hashlib.sha256(f"pointed at/{key}".encode()).hexdigest()[:12]


def mask_under(gesture: Interaction, visible: Sequence[VisibleMask]) -> VisibleMask | None:
    """Finds the mask that a gesture applies to.

    Returns:
        For a click the smallest mask that it is on; for a box the one with the largest overlap. None if
        there is none: the gesture is about a new object.
    """
    if gesture.kind == "click":
        under = [mask for mask in visible if mask.pixels.is_at(gesture.xy)]
        return min(under, key=lambda mask: mask.pixels.area_px, default=None)
    met = [mask for mask in visible if mask.pixels.meets(gesture.xyxy)]
    shares = [overlap_share(gesture, mask.pixels.unpack()) for mask in met]
    best = max(range(len(met)), key=shares.__getitem__, default=None)
    return met[best] if best is not None and shares[best] >= OVERLAP else None


def pixel_at(xy: tuple[float, float], hw: tuple[int, int]) -> tuple[int, int]:
    """Row and column of a point given in fractions of the image."""
    height, width = hw
    return min(int(xy[1] * height), height - 1), min(int(xy[0] * width), width - 1)


def distance(click: Interaction, mask: BoolMask) -> float:
    """Distance from a click to the nearest pixel of a mask, in fractions of the image's longer side."""
    height, width = mask.shape
    step = max(1, max(mask.shape) // _SAMPLES)
    rows, columns = np.nonzero(mask[::step, ::step])
    if not rows.size:
        step, (rows, columns) = 1, np.nonzero(mask)
    if not rows.size:
        return float("inf")
    x, y = click.xy
    distances_px = np.hypot(columns * step + 0.5 - x * width, rows * step + 0.5 - y * height)
    longer_side_px: int = max(mask.shape)
    return float(distances_px.min()) / longer_side_px


def overlap_share(box: Interaction, mask: BoolMask) -> float:
    """Intersection of a box and a mask, as a fraction of the smaller one."""
    height, width = mask.shape
    x0, y0, x1, y1 = box.xyxy
    inside = mask[round(y0 * height) : round(y1 * height), round(x0 * width) : round(x1 * width)]
    smaller = min(inside.size, int(np.count_nonzero(mask)))
    return float(np.count_nonzero(inside)) / smaller if smaller else 0.0
