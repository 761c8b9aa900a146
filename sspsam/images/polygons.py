"""Bool mask -> COCO polygons, pixel for pixel.

Polygons run along the edges of pixels, so that pycocotools gives back exactly the mask that they came from.
Format: https://cocodataset.org/#format-data - each polygon is [x, y, x, y, ...], and several are joined. A
polygon cannot have a hole: the outline goes to the hole and back on the same line, which encloses nothing.
"""

from __future__ import annotations

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
    if mask.ndim != 2 or mask.size == 0:
        raise MaskFormatError(f"a mask is (H, W) with pixels in it, not {mask.shape}")
    filled = np.asarray(mask, dtype=np.bool_)
    rows, columns = np.flatnonzero(filled.any(axis=1)), np.flatnonzero(filled.any(axis=0))
    if rows.size == 0:
        return []
    corner = np.array([columns[0], rows[0]])
    filled = filled[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    directions, starts = _edges(filled)
    _, parts = cv2.connectedComponents(filled.astype(np.uint8), connectivity=4)
    pixels = starts + _MASK_PIXEL[directions]
    part_of = parts[pixels[:, 1], pixels[:, 0]]
    outlines: dict[int, list[_Ints]] = {}
    for loop in _loops(_next_edges(directions, starts, filled.shape)):
        corners = loop[directions[loop] != directions[np.roll(loop, 1)]]
        outlines.setdefault(int(part_of[loop[0]]), []).append(starts[corners] + corner)
    return [sorted(loops, key=_area, reverse=True) for _, loops in sorted(outlines.items())]


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


def _loops(following: _Ints) -> list[_Ints]:
    """Follows edges until each loop is closed."""
    successor, seen = following.tolist(), bytearray(following.size)
    loops = []
    for first in range(len(successor)):
        if seen[first]:
            continue
        loop, at = [], first
        while not seen[at]:
            seen[at] = 1
            loop.append(at)
            at = successor[at]
        loops.append(np.array(loop))
    return loops


def _joined(loops: list[_Ints]) -> list[float]:
    """The outline of a part, connected to each hole by a line that is traversed both ways."""
    outer, *holes = loops
    corners = [outer]
    for hole in holes:
        corners += [outer[:1], hole, hole[:1]]
    corners += [outer[:1]] if holes else []
    return [float(value) for value in np.concatenate(corners).ravel()]


def _area(corners: _Ints) -> int:
    """Signed, px: positive for outlines, negative for holes."""
    x, y = corners.T
    return int((x * np.roll(y, -1) - np.roll(x, -1) * y).sum()) // 2
