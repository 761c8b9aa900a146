"""Bool mask -> COCO polygons, pixel for pixel.

Polygons run along the edges of pixels, so that pycocotools gives back exactly the mask that they came from.
Format: https://cocodataset.org/#format-data - each polygon is [x, y, x, y, ...], and several are joined. A
polygon cannot have a hole: the outline goes to the hole and back on the same line, which encloses nothing.
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from sspsam.images.masks import BoolMask, MaskFormatError

_Ints = npt.NDArray[np.int64]
_STEPS = np.array(
    [(1, 0), (0, 1), (-1, 0), (0, -1)]
)  # right, down, left, up; the mask is on the right-hand side
_MASK_PIXEL = np.array([(0, 0), (-1, 0), (-1, -1), (0, -1)])  # of an edge, relative to its start
_TURNS = (1, 0, 3)  # right first: pixels that touch only at a corner are separate parts


def mask_to_polygons(mask: npt.NDArray[Any]) -> list[list[float]]:
    """Traces a mask.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.

    Returns:
        One polygon per part, including its holes; none for an empty mask.

    Raises:
        MaskFormatError: not two-dimensional, or without pixels.
    """
    return [_joined(loops) for loops in mask_to_outlines(mask)]


def mask_to_outlines(mask: npt.NDArray[Any]) -> list[list[_Ints]]:
    """Traces a mask along the edges of its pixels.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.

    Returns:
        For each part its outline and its holes, each the (N, 2) x, y of corners in pixels; parts that touch
        only at a corner are separate. None for an empty mask.

    Raises:
        MaskFormatError: not two-dimensional, or without pixels.
    """
    traced = _trace(mask)
    return [traced.loops_of(part) for part in range(traced.part_count)]


def largest_outlines(
    mask: npt.NDArray[Any], most_parts: int, most_holes: int, smallest: float
) -> list[list[_Ints]]:
    """The outlines of a mask's largest parts, the largest first, each with its largest holes.

    Masks can have a part or a hole for every second pixel: only those that are wanted are made.

    Args:
        mask: As for `mask_to_outlines`.
        most_parts: Number of parts.
        most_holes: Number of holes of each part.
        smallest: Smaller shares of these parts together are no parts, and of a part no holes.

    Raises:
        MaskFormatError: as `mask_to_outlines`.
    """
    traced = _trace(mask)
    if not traced.part_count:
        return []
    sizes = traced.areas[traced.firsts[:-1]]
    order = np.argsort(-sizes, kind="stable")[:most_parts]
    wanted = order[sizes[order] >= smallest * sizes[order].sum()]
    return [traced.loops_of(int(part), most_holes, smallest) for part in wanted]


@dataclass(frozen=True)
class _Traced:
    """The loops of a mask, ordered by part: its outline, then its holes, the smallest first."""

    corners: _Ints
    """(N, 2) x, y of all loops."""
    bounds: _Ints
    """Where each loop begins in `corners`, and their end."""
    areas: _Ints
    """Of each loop, twice its area in px; negative for holes."""
    firsts: _Ints
    """Where each part begins in the loops, and their end."""

    @property
    def part_count(self) -> int:
        return self.firsts.size - 1

    def loops_of(self, part: int, most_holes: int | None = None, smallest: float = 0.0) -> list[_Ints]:
        """The outline of a part and its holes, with these bounds as in `largest_outlines`."""
        first, end = int(self.firsts[part]), int(self.firsts[part + 1])
        holes: Sequence[int] = range(first + 1, end)
        if most_holes is not None:
            least = smallest * self.areas[first]
            holes = [hole for hole in holes[::-1][:most_holes] if -self.areas[hole] >= least]
        return [self.corners[self.bounds[loop] : self.bounds[loop + 1]] for loop in (first, *holes)]


def _trace(mask: npt.NDArray[Any]) -> _Traced:
    """Traces a mask. All loops are handled together: there can be millions."""
    if mask.ndim != 2 or mask.size == 0:
        raise MaskFormatError(f"a mask is (H, W) with pixels in it, not {mask.shape}")
    filled = np.asarray(mask, dtype=np.bool_)
    rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
    if rows.size == 0:
        nothing = np.zeros(0, np.int64)
        return _Traced(nothing.reshape(0, 2), np.zeros(1, np.int64), nothing, np.zeros(1, np.int64))
    corner = np.array([columns[0], rows[0]])
    filled = filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    directions, starts = _edges(filled)
    edges, begins = _loops(_next_edges(directions, starts, filled.shape))
    _, parts = cv2.connectedComponents(filled.astype(np.uint8), connectivity=4)
    pixels = (starts + _MASK_PIXEL[directions])[edges[begins[:-1]]]
    part_of = parts[pixels[:, 1], pixels[:, 0]]
    turned = directions[edges]
    is_corner = turned != turned[_previous(begins)]
    corners = starts[edges][is_corner] + corner
    bounds = np.concatenate(([0], np.cumsum(np.add.reduceat(is_corner.astype(np.int64), begins[:-1]))))
    x, y = corners.T
    before = _previous(bounds)
    areas = np.add.reduceat(x[before] * y - x * y[before], bounds[:-1])
    order = np.lexsort((-areas, part_of))
    lengths = np.diff(bounds)[order]
    ordered = np.concatenate(([0], np.cumsum(lengths)))
    places = np.repeat(bounds[:-1][order] - ordered[:-1], lengths) + np.arange(len(corners))
    firsts = np.flatnonzero(np.diff(part_of[order], prepend=-1))
    return _Traced(corners[places], ordered, areas[order], np.concatenate((firsts, [order.size])))


def _previous(bounds: _Ints) -> _Ints:
    """For each element of consecutive rings, the place of the one before it in its ring."""
    before: _Ints = np.arange(bounds[-1]) - 1
    before[bounds[:-1]] = bounds[1:] - 1
    return before


def _edges(filled: BoolMask) -> tuple[_Ints, _Ints]:
    """Edges between mask and background.

    Returns:
        Direction of each, (N,), and x, y of its start corner, (N, 2).
    """
    padded = np.pad(filled, 1)
    inside = padded[1:-1, 1:-1]
    beside = (padded[:-2, 1:-1], padded[1:-1, 2:], padded[2:, 1:-1], padded[1:-1, :-2])
    directions, starts = [], []
    for direction, neighbour in enumerate(beside):
        rows, columns = np.nonzero(inside & ~neighbour)
        starts.append(np.stack([columns, rows], axis=1) - _MASK_PIXEL[direction])
        directions.append(np.full(rows.size, direction))
    return np.concatenate(directions), np.concatenate(starts)


def _next_edges(directions: _Ints, starts: _Ints, hw: tuple[int, ...]) -> _Ints:
    """For each edge, the next one along the outline."""
    height, width = hw[0] + 1, hw[1] + 1

    def keys(directions: _Ints, corners: _Ints) -> _Ints:
        found: _Ints = (directions * height + corners[:, 1]) * width + corners[:, 0]
        return found

    own = keys(directions, starts)
    order = np.argsort(own)
    ordered = own[order]
    ends = starts + _STEPS[directions]
    following: _Ints = np.full(own.size, -1)
    for turn in reversed(_TURNS):  # candidates tried later take precedence
        wanted = keys((directions + turn) % 4, ends)
        place = np.minimum(np.searchsorted(ordered, wanted), own.size - 1)
        following = np.where(ordered[place] == wanted, order[place], following)
    return following


def _loops(following: _Ints) -> tuple[_Ints, _Ints]:
    """Follows edges until each loop is closed.

    Returns:
        The edges of one loop after the other, and where each begins, and their end.
    """
    successor, seen = following.tolist(), bytearray(following.size)
    edges, begins = array("q"), array("q", [0])
    for first in range(len(successor)):
        at = first
        while not seen[at]:
            seen[at] = 1
            edges.append(at)
            at = successor[at]
        if len(edges) > begins[-1]:
            begins.append(len(edges))
    return np.frombuffer(edges, np.int64), np.frombuffer(begins, np.int64)


def _joined(loops: list[_Ints]) -> list[float]:
    """The outline of a part, connected to each hole by a line that is traversed both ways."""
    outer, *holes = loops
    corners = [outer]
    for hole in holes:
        corners += [outer[:1], hole, hole[:1]]
    corners += [outer[:1]] if holes else []
    return [float(value) for value in np.concatenate(corners).ravel()]
