"""Mask <-> polygons with few points, as annotators draw and edit them.

A pixel is in a polygon if its centre is (even-odd rule): what is written is read back as the same mask. An
edge is crossed at the same place whichever way it is traversed, so a seam to a hole and back has no area.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sspsam.images.masks import MAX_PIXELS, BoolMask, MaskFormatError, MaskRuns
from sspsam.images.polygons import largest_outlines

MOST_POINTS = 60
"""Of one polygon with its holes."""
FIDELITY = 0.985
"""IoU with the part that a polygon has if MOST_POINTS allow it."""
MOST_PARTS = 20
"""Of one mask, the largest ones."""
SMALLEST_PART = 0.005
"""Parts with a smaller share of the largest ones together are left out."""
MOST_HOLES = 8
"""Of one part, the largest ones; smaller shares of the part than SMALLEST_PART are no holes."""
MOST_CROSSINGS = 2**21
"""Rows that the edges of a polygon cross together: bounds the work on polygons that others have made."""
COMPARED_PX = 384
"""Longer side of the frame in which a polygon is compared with its part."""
_SEAM_CANDIDATES = 64
"""Points of a hole that may be connected with the outline."""
_STEPS = 28
_LARGEST_SHARE = 0.1
"""Tolerances are tried from this share of a part's size downwards, each this much smaller than the last:"""
_STEP = 0.8

Points = npt.NDArray[np.float64]
_Outline = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Part:
    """One part of a mask as a polygon."""

    points: Points
    """(N, 2) x, y in pixels, of pixels' edges."""
    holes: int
    """Holes that the polygon fills although they are in the mask."""


def mask_to_parts(
    mask: npt.NDArray[Any],
    cut_holes: bool = False,
    fidelity: float = FIDELITY,
    most_points: int = MOST_POINTS,
) -> list[Part]:
    """Approximates a mask by polygons, the largest part first.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.
        cut_holes: Whether holes are cut out with a seam; otherwise they are filled.
        fidelity: IoU with its part that a polygon has if the number of points allows it.
        most_points: Of each polygon.

    Raises:
        MaskFormatError: not two-dimensional, or without pixels.
    """
    parts = largest_outlines(mask, MOST_PARTS, MOST_HOLES, SMALLEST_PART)
    return [_part(loops, cut_holes, fidelity, most_points) for loops in parts]


def polygon_to_runs(points: Points, height: int, width: int, max_pixels: int = MAX_PIXELS) -> MaskRuns:
    """Fills a polygon.

    Args:
        points: (N, 2) x, y in pixels; what is outside the image is cut off.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        max_pixels: Larger images are refused.

    Raises:
        MaskFormatError: too many pixels, or too long an outline.
    """
    if min(height, width) <= 0 or height * width > max_pixels:
        raise MaskFormatError(f"a mask of {height} x {width} pixels; at most {max_pixels} are read")
    places = _crossings(points, height, width)
    bounds = np.concatenate(([0], places, [height * width]))
    return MaskRuns(height, width, np.arange(bounds.size - 1) % 2 == 1, np.diff(bounds))


def _crossings(points: Points, height: int, width: int) -> npt.NDArray[np.int64]:
    """Positions at which the image, row by row, enters or leaves the polygon."""
    starts, ends = points, np.roll(points, -1, axis=0)
    upwards = (starts[:, 1] > ends[:, 1])[:, None]
    above, below = np.where(upwards, ends, starts), np.where(upwards, starts, ends)
    first, last = (np.clip(np.ceil(end[:, 1] - 0.5), 0, height).astype(np.int64) for end in (above, below))
    counts = last - first
    total = int(counts.sum())
    if total > MOST_CROSSINGS:
        raise MaskFormatError(f"a polygon whose edges cross {total} rows; at most {MOST_CROSSINGS} are read")
    edge = np.repeat(np.arange(counts.size), counts)
    rows = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts) + first[edge]
    (x0, y0), (x1, y1) = above[edge].T, below[edge].T
    x = x0 + (rows + 0.5 - y0) / (y1 - y0) * (x1 - x0)
    columns = np.clip(np.ceil(x - 0.5), 0, width).astype(np.int64)
    places, times = np.unique(rows * width + columns, return_counts=True)
    crossed: npt.NDArray[np.int64] = places[times % 2 == 1]
    return crossed


def _part(loops: Sequence[_Outline], cut_holes: bool, fidelity: float, most_points: int) -> Part:
    """The polygon with the fewest points that is true enough; without one, the truest with few enough."""
    outer, holes = loops[0], loops[1:]
    reference = [outer, *holes] if cut_holes else [outer]
    low, high = outer.min(axis=0), outer.max(axis=0)
    size = float(max(high - low))
    scale = min(1.0, COMPARED_PX / size)
    frame = _Frame(low, scale, np.ceil((high - low) * scale).astype(int) + 1)
    truth = frame.fill(_joined(reference))
    best, best_iou = None, -1.0
    for step in range(_STEPS):
        points = _joined([_simplified(loop, _LARGEST_SHARE * size * _STEP**step) for loop in reference])
        if len(points) > most_points and best is not None:
            break
        iou = _iou(truth, frame.fill(points))
        if iou > best_iou:
            best, best_iou = points, iou
        if iou >= fidelity or len(points) > most_points:
            break
    assert best is not None
    if len(best) > most_points and len(reference) > 1:  # too many seams: the smallest hole is filled
        smaller = _part(reference[:-1], cut_holes, fidelity, most_points)
        return replace(smaller, holes=smaller.holes + 1)
    return Part(best, len(holes) + 1 - len(reference))


@dataclass(frozen=True)
class _Frame:
    """The surroundings of a part, perhaps reduced in size."""

    origin: _Outline
    scale: float
    size: _Outline
    """Width and height."""

    def fill(self, points: Points) -> BoolMask:
        width, height = (int(side) for side in self.size)
        return polygon_to_runs((points - self.origin) * self.scale, height, width).to_mask()


def _simplified(loop: _Outline, tolerance_px: float) -> Points:
    """Douglas-Peucker; the loop itself where less than a triangle would be left."""
    curve = loop.astype(np.int32).reshape(-1, 1, 2)
    points = cv2.approxPolyDP(curve, tolerance_px, closed=True).reshape(-1, 2).astype(np.float64)
    if len(points) >= 3:
        return points
    low, high = loop.min(axis=0), loop.max(axis=0)
    corners = [(low[0], low[1]), (high[0], low[1]), (high[0], high[1]), (low[0], high[1])]
    return np.array(corners, dtype=np.float64)


def _joined(loops: Sequence[npt.NDArray[Any]]) -> Points:
    """An outline with its holes as one ring: a seam leads to each hole from the nearest point, and back."""
    ring = np.asarray(loops[0], dtype=np.float64)
    for loop in loops[1:]:
        hole = np.asarray(loop, dtype=np.float64)
        step = max(1, len(hole) // _SEAM_CANDIDATES)
        distances = [np.abs(ring - point).sum(axis=1) for point in hole[::step]]
        chosen = int(np.argmin([one.min() for one in distances]))
        at, turned = int(distances[chosen].argmin()), np.roll(hole, -chosen * step, axis=0)
        ring = np.concatenate([ring[: at + 1], turned, turned[:1], ring[at:]])
    return ring


def _iou(one: BoolMask, other: BoolMask) -> float:
    union = int(np.count_nonzero(one | other))
    return int(np.count_nonzero(one & other)) / union if union else 1.0
