"""Clicks and boxes of the editor's smart tools.

With Auto-Accept off, clicks stay on the image until the suggestion is accepted, and are sent again with the
next one; with it on, each is sent alone. The editor's ID of a gesture distinguishes the two cases.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from backend.labelstudio.annotations import is_of
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.regions.shapes import rotated_box


@dataclass(frozen=True)
class Interaction:
    """A click or a box, in fractions of the image's width and height."""

    gesture_id: str
    kind: Literal["click", "box"]
    xyxy: tuple[float, float, float, float]
    """Both corners are equal for a click."""
    positive: bool = True
    """Part of the object; false for a click with Alt."""
    label: str = ""
    """Label of the smart tool."""

    @property
    def xy(self) -> tuple[float, float]:
        """Position of the click; centre of a box."""
        x0, y0, x1, y1 = self.xyxy
        return (x0 + x1) / 2, (y0 + y1) / 2


def read_interactions(results: Iterable[Mapping[str, Any]], config: LabelingConfig) -> list[Interaction]:
    """Finds clicks and boxes on the image of the masks among the results of a request, oldest first."""
    found = (_interaction(result, kind) for result in results if (kind := _kind(result, config)))
    return [interaction for interaction in found if interaction is not None]


def _kind(result: Mapping[str, Any], config: LabelingConfig) -> Literal["click", "box"] | None:
    if is_of(result, config.click):
        return "click"
    return "box" if is_of(result, config.box) else None


def _interaction(result: Mapping[str, Any], kind: Literal["click", "box"]) -> Interaction | None:
    value = result.get("value")
    if not isinstance(value, Mapping):
        return None
    try:
        x, y = float(value["x"]) / 100, float(value["y"]) / 100
        xyxy = (x, y, x, y) if kind == "click" else _box(result, value, x, y)
    except (KeyError, TypeError, ValueError, ArithmeticError):
        return None
    if not all(math.isfinite(side) for side in xyxy):
        return None
    x0, y0, x1, y1 = (min(max(side, 0.0), 1.0) for side in xyxy)
    labels = value.get(str(result.get("type"))) or value.get("labels")
    label = str(labels[0]) if isinstance(labels, list) and labels else ""
    positive = result.get("is_positive", True) is not False
    return Interaction(str(result.get("id")), kind, (x0, y0, x1, y1), positive, label)


def _box(
    result: Mapping[str, Any], value: Mapping[str, Any], x: float, y: float
) -> tuple[float, float, float, float]:
    """Axis-aligned bounding box of a box rotated about its first corner, clockwise in degrees."""
    width, height = float(value["width"]) / 100, float(value["height"]) / 100
    turn = math.radians(float(value.get("rotation") or 0))
    if not turn:
        return x, y, x + width, y + height
    picture_w, picture_h = float(result["original_width"]), float(result["original_height"])
    x0, y0, x1, y1 = rotated_box(x * picture_w, y * picture_h, width * picture_w, height * picture_h, turn)
    return x0 / picture_w, y0 / picture_h, x1 / picture_w, y1 / picture_h
