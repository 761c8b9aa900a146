"""Shapes of regions in Label Studio's results, both ways, for each kind of region control.

    brush      {"format": "rle", "rle": [...]}                    pixel for pixel
    bitmask    {"imageDataURL": "data:image/png;base64,..."}      pixel for pixel
    polygon    {"points": [[x, y], ...], "closed": true}          percent of the image; no holes, one part
    rectangle  {"x", "y", "width", "height", "rotation"}          percent of the image, degrees

Polygons and boxes are rounded when they are written and when they are read, so that what comes back unchanged
is equal to what was proposed. A box is no mask: where a mask is needed, it is the filled box.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from backend.labelstudio.regions.controls import SHAPE_FIELD, Kind
from sspsam import mask_to_brush_rle
from sspsam.images.brush_rle import brush_rle_to_runs
from sspsam.images.few_points import MOST_CROSSINGS, Points, mask_to_parts, polygon_to_runs
from sspsam.images.masks import (
    MAX_PIXELS,
    BoolMask,
    MaskFormatError,
    MaskRuns,
    mask_to_box_xyxy,
    mask_to_runs,
)
from sspsam.images.png_masks import mask_to_png_url, png_url_to_runs

DIGITS = 4
"""Of coordinates in percent behind the point: 0.01 px of 10,000."""
MOST_POINTS = 100_000
"""Of a polygon that is read; annotators set tens."""
MOST_PERCENT = 10_000.0
"""Coordinates beyond are no place near the image."""
_BYTES_PER_NUMBER = 8
_BYTES_PER_CROSSING = 4
"""Of a row that a polygon's edge crosses: as a run of brush RLE."""
_PIXELS_PER_BYTE = 100
"""Of a bitmask, whose bytes can stand for any number of pixels: decoding takes as long."""
Value = dict[str, Any]
Box = tuple[float, float, float, float]


@dataclass(frozen=True)
class Shape:
    """A shape as a region of the form holds it."""

    value: Value
    """The part of the result's value."""
    mask: BoolMask
    """(H, W): what this value is read as."""
    filled_holes: int = 0
    """Holes of the mask that the shape cannot have."""


def shapes_of(mask: BoolMask, kind: Kind, cut_holes: bool = False) -> list[Shape]:
    """Writes a mask in a kind of region: one shape, or one for each part if the kind has one part only.

    Args:
        mask: (H, W). An empty one becomes a polygon or a box without area.
        kind: Kind of region.
        cut_holes: Whether the holes of a polygon are cut with a seam; else they are filled.
    """
    if kind == "brush":
        return [Shape({"format": "rle", "rle": mask_to_brush_rle(mask)}, mask)]
    if kind == "bitmask":
        return [Shape({"imageDataURL": mask_to_png_url(mask)}, mask)]
    if kind == "rectangle":
        return [_rectangle(mask)]
    if not mask.any():
        return [Shape({"points": [[0.0, 0.0]] * 3, "closed": True}, mask)]
    height, width = mask.shape
    shapes = []
    for part in mask_to_parts(mask, cut_holes):
        points = np.round(part.points * (100 / width, 100 / height), DIGITS)
        filled = polygon_to_runs(points * (width / 100, height / 100), height, width).to_mask()
        shapes.append(Shape({"points": points.tolist(), "closed": True}, filled, part.holes))
    return shapes


def value_to_runs(
    value: Mapping[str, Any], kind: Kind, height: int, width: int, max_pixels: int = MAX_PIXELS
) -> MaskRuns:
    """Reads the mask of a result; a box as the filled box.

    Args:
        value: Value of the result.
        kind: Kind of its region control.
        height: Height of the image, in pixels.
        width: Width of the image, in pixels.
        max_pixels: Larger images are refused before anything is read.

    Raises:
        MaskFormatError: it is not such a shape, or too large.
    """
    if min(height, width) <= 0 or height * width > max_pixels:
        raise MaskFormatError(f"a mask of {height} x {width} pixels; at most {max_pixels} are read")
    if kind == "brush":
        rle = value.get("rle")
        if not isinstance(rle, list):
            raise MaskFormatError("brush RLE is not a list of numbers 0..255")
        return brush_rle_to_runs(rle, height, width, max_pixels)
    if kind == "bitmask":
        return png_url_to_runs(value.get("imageDataURL"), height, width, max_pixels)
    if kind == "rectangle":
        return mask_to_runs(_filled(value_to_box(value, height, width), height, width))
    return polygon_to_runs(_points(value) * (width / 100, height / 100), height, width, max_pixels)


def value_to_box(value: Mapping[str, Any], height: int, width: int) -> Box:
    """Reads the axis-aligned bounding box (x0, y0, x1, y1), in pixels, of a rectangle's value.

    Raises:
        MaskFormatError: it is no rectangle.
    """
    try:
        x, y, box_w, box_h = (round(float(value[name]), DIGITS) for name in ("x", "y", "width", "height"))
        turn = math.radians(float(value.get("rotation") or 0))
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError("not a rectangle: x, y, width, height are not numbers") from error
    sides = (x * width / 100, y * height / 100, box_w * width / 100, box_h * height / 100)
    if not all(math.isfinite(side) for side in (*sides, turn)):
        raise MaskFormatError("not a rectangle: x, y, width, height are not finite")
    return rotated_box(*sides, turn)


def rotated_box(left: float, top: float, width: float, height: float, turn: float) -> Box:
    """Bounding box of a box that is rotated about its first corner, clockwise in radians."""
    if not turn:
        return left, top, left + width, top + height
    corners = [
        (right * width * math.cos(turn) - down * height * math.sin(turn),
         right * width * math.sin(turn) + down * height * math.cos(turn))
        for right in (0, 1) for down in (0, 1)
    ]  # fmt: skip
    xs, ys = [left + dx for dx, _ in corners], [top + dy for _, dy in corners]
    return min(xs), min(ys), max(xs), max(ys)


def size_of(value: Mapping[str, Any], kind: Kind, height: int, width: int) -> int:
    """Bytes, or what takes as much to read, of a result's shape on an image of this size.

    Raises:
        MaskFormatError: a polygon without points, or one that is too much work.
    """
    if kind == "polygon":
        points = _points(value)
        rows = np.clip(points[:, 1], 0, 100) * (height / 100)
        crossed = float(np.abs(rows - np.roll(rows, 1)).sum())
        if crossed > MOST_CROSSINGS:
            raise MaskFormatError(
                f"a polygon whose edges cross {crossed:.0f} rows; at most {MOST_CROSSINGS} are read"
            )
        return points.size * _BYTES_PER_NUMBER + int(crossed) * _BYTES_PER_CROSSING
    size = _length(value.get(SHAPE_FIELD[kind]))
    return size + height * width // _PIXELS_PER_BYTE if kind == "bitmask" else size


def _length(content: object) -> int:
    return len(content) if isinstance(content, list | str) else 1


def _rectangle(mask: BoolMask) -> Shape:
    """The box around a mask: Acc@0.5 of 83.7 %, where the REC head's boxes have 76.9 % (benchmarks/boxes.py,
    demo weights, sticker validation scenes).
    """
    height, width = mask.shape
    x0, y0, x1, y1 = mask_to_box_xyxy(mask) if mask.any() else (0, 0, 0, 0)
    sides = (100 * x0 / width, 100 * y0 / height, 100 * (x1 - x0) / width, 100 * (y1 - y0) / height)
    value = dict(zip(("x", "y", "width", "height"), (round(side, DIGITS) for side in sides), strict=True))
    return Shape({**value, "rotation": 0}, _filled(value_to_box(value, height, width), height, width))


def _filled(box: Box, height: int, width: int) -> BoolMask:
    """The pixels whose centres are in a box."""
    x0, y0, x1, y1 = box
    mask = np.zeros((height, width), np.bool_)
    top, bottom = (min(max(math.ceil(side - 0.5), 0), height) for side in (y0, y1))
    left, right = (min(max(math.ceil(side - 0.5), 0), width) for side in (x0, x1))
    mask[top:bottom, left:right] = True
    return mask


def _points(value: Mapping[str, Any]) -> Points:
    points = value.get("points")
    if not isinstance(points, list) or not 3 <= len(points) <= MOST_POINTS:
        raise MaskFormatError(f"not a polygon: it needs a list of 3 to {MOST_POINTS} points")
    if not all(isinstance(point, list | tuple) and len(point) == 2 for point in points):
        raise MaskFormatError("not a polygon: its points are not pairs of numbers")
    try:
        numbers = np.array(points, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError("not a polygon: its points are not pairs of numbers") from error
    if numbers.shape != (len(points), 2) or not (np.abs(numbers) <= MOST_PERCENT).all():
        raise MaskFormatError(f"not a polygon: coordinates are not within {MOST_PERCENT:.0f} percent")
    return np.round(numbers, DIGITS)
