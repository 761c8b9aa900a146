"""Outlines of Label Studio's shapes, in pixels and within the image.

Coordinates are percentages of the image's sides: https://labelstud.io/guide/task_format . Rectangles are
rotated clockwise about their top left corner, ellipses about their centre.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

from backend.labelstudio.regions.shapes import DIGITS, MOST_POINTS
from sspsam.images.masks import BoolMask, MaskFormatError

Points = npt.NDArray[np.float64]
Hw = tuple[int, int]

MAX_STEPS = 2**22
"""Length in pixels of an outline that pycocotools fills: it takes about 40 bytes for each."""
ELLIPSE_TOLERANCE_PX = 0.05
"""Greatest distance between an ellipse and its outline."""
ELLIPSE_POINTS = (16, 2000)
"""Fewest and most points of an outline."""
_FAR_PX = 1e7
"""Beyond any image; keeps the arithmetic finite."""


def polygon_outline(value: Mapping[str, Any], hw: Hw) -> Points:
    """Outline of a polygon's `points`, or of the `vertices` of a closed vector, within the image.

    Raises:
        MaskFormatError: the value is not a polygon.
    """
    points = value.get("points")
    if points is None:
        vertices = value.get("vertices")
        if not isinstance(vertices, list) or not all(isinstance(vertex, Mapping) for vertex in vertices):
            raise MaskFormatError("a polygon without points")
        points = [[vertex.get("x"), vertex.get("y")] for vertex in vertices[: MOST_POINTS + 1]]
    if not isinstance(points, list) or not 3 <= len(points) <= MOST_POINTS:
        count = len(points) if isinstance(points, list) else 0
        raise MaskFormatError(f"a polygon of {count} points; 3 to {MOST_POINTS} are read")
    if not all(isinstance(point, list) and len(point) == 2 for point in points):
        raise MaskFormatError("the points of a polygon are not pairs of numbers")
    return _clipped(np.round(_numbers(points), DIGITS) * _scale(hw), hw)


def rectangle_outline(value: Mapping[str, Any], hw: Hw) -> Points:
    """Corners of a rectangle within the image.

    Raises:
        MaskFormatError: the value is not a rectangle.
    """
    corner = _numbers([value.get("x"), value.get("y")]) * _scale(hw)
    width, height = _numbers([value.get("width"), value.get("height")]) * _scale(hw)
    across, down = _axes(value)
    corners = np.array([(0, 0), (1, 0), (1, 1), (0, 1)], dtype=np.float64)
    return _clipped(corner + corners[:, :1] * width * across + corners[:, 1:] * height * down, hw)


def ellipse_outline(value: Mapping[str, Any], hw: Hw) -> Points:
    """Outline of an ellipse within the image.

    Raises:
        MaskFormatError: the value is not an ellipse.
    """
    centre = _numbers([value.get("x"), value.get("y")]) * _scale(hw)
    radii = np.abs(_numbers([value.get("radiusX"), value.get("radiusY")]) * _scale(hw))
    radius = min(max(float(radii.max()), 1.0), _FAR_PX)
    fewest, most = ELLIPSE_POINTS
    count = min(max(math.ceil(math.pi / math.acos(1 - ELLIPSE_TOLERANCE_PX / radius)), fewest), most)
    angles = np.arange(count)[:, None] * (2 * math.pi / count)
    across, down = _axes(value)
    return _clipped(
        centre + np.cos(angles) * radii[0] * across + np.sin(angles) * radii[1] * down,
        hw,
    )


def is_upright(value: Mapping[str, Any]) -> bool:
    """Whether a rectangle's sides are parallel to those of the image."""
    return float(_numbers([value.get("rotation") or 0])[0]) % 360 == 0


def have_pixels(outlines: Sequence[Points], mask: BoolMask) -> bool:
    """Whether pycocotools fills outlines together to these pixels: its rule for the edges is its own."""
    if not outlines or min(map(len, outlines)) < 3 or sum(map(_steps, outlines)) > MAX_STEPS:
        return False
    rles = coco_mask.frPyObjects([outline.ravel().tolist() for outline in outlines], *mask.shape)
    return bool((coco_mask.decode(coco_mask.merge(rles)).view(np.bool_) == mask).all())


def _steps(outline: Points) -> float:
    """Length of an outline in pixels."""
    return float(np.abs(outline - np.roll(outline, -1, axis=0)).max(axis=1).sum())


def _scale(hw: Hw) -> Points:
    """Pixels of a percent, in x and y."""
    return np.array([hw[1], hw[0]], dtype=np.float64) / 100


def _axes(value: Mapping[str, Any]) -> tuple[Points, Points]:
    """Directions of a shape's sides, turned clockwise as y runs down."""
    angle = math.radians(float(_numbers([value.get("rotation") or 0])[0]) % 360)
    cosine, sine = math.cos(angle), math.sin(angle)
    return np.array([cosine, sine]), np.array([-sine, cosine])


def _numbers(values: list[Any]) -> Points:
    try:
        numbers = np.array(values, dtype=np.float64)
    except (TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError("the coordinates of a shape are not numbers") from error
    if not np.isfinite(numbers).all():
        raise MaskFormatError("the coordinates of a shape are not finite")
    return np.clip(numbers, -_FAR_PX, _FAR_PX)


def _clipped(outline: Points, hw: Hw) -> Points:
    """The part of an outline within the image (Sutherland-Hodgman); empty outside of it."""
    outline = np.clip(outline, -_FAR_PX, _FAR_PX)
    for axis, limit in ((0, float(hw[1])), (1, float(hw[0]))):
        for sign, bound in ((1.0, limit), (-1.0, 0.0)):
            outline = _clipped_at(outline, axis, sign, bound)
    return outline


def _clipped_at(outline: Points, axis: int, sign: float, bound: float) -> Points:
    """The part of an outline where `sign * (coordinate - bound)` is at most 0."""
    beyond = sign * (outline[:, axis] - bound)
    inside = beyond <= 0
    if inside.all():
        return outline
    following, beyond_next = np.roll(outline, -1, axis=0), np.roll(beyond, -1)
    crosses = inside != np.roll(inside, -1)
    share = np.divide(beyond, beyond - beyond_next, out=np.zeros_like(beyond), where=crosses)
    crossings = outline + share[:, None] * (following - outline)
    crossings[:, axis] = bound
    both = np.stack([outline, crossings], axis=1).reshape(-1, 2)
    clipped: Points = both[np.stack([inside, crosses], axis=1).ravel()]
    return clipped
