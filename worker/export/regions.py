"""Regions of a saved annotation, of every shape that covers pixels.

The editor saves a region as several results with one ID, each with a copy of its geometry. Which shape it is
follows from the geometry and not from the tag, so that regions stay what they are when the form changes:

    masks (`rle`), bitmasks (`imageDataURL`), polygons (`points`), closed vectors (`vertices`), rectangles and
    ellipses, rotated or not

All others are counted, by kind and reason.
"""

from __future__ import annotations

import base64
import binascii
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np
from PIL import Image, UnidentifiedImageError
from pycocotools import mask as coco_mask

from backend.labelstudio.annotations import (
    MaskBudget,
    brush_runs,
    is_on,
    phrase_of,
    phrases_without_mask,
    place_of,
    regions_by_id,
    score_of,
)
from backend.labelstudio.config import LabelingConfig
from sspsam import coco_rle_to_mask, mask_to_coco_rle
from sspsam.images.image_io import IMAGE_MAX_PIXELS
from sspsam.images.masks import ALPHA_THRESHOLD, BoolMask, MaskFormatError, MaskRuns
from worker.export.categories import FormLabels
from worker.export.shapes import (
    ellipse_outline,
    is_upright,
    outline_to_coco_rle,
    polygon_outline,
    rectangle_outline,
)

Result = Mapping[str, Any]
Hw = tuple[int, int]
BoxXyxy = tuple[float, float, float, float]

MASK, POLYGON, RECTANGLE, ELLIPSE = "mask", "polygon", "rectangle", "ellipse"
KINDS = {"rle": "masks", "bitmask": "bitmasks", POLYGON: "polygons", RECTANGLE: "rectangles",
         ELLIPSE: "ellipses", "vector": "vectors", "keypoint": "key points"}  # fmt: skip
"""Geometry -> its plural, for messages."""
_ATTRIBUTES = frozenset(
    {"choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea"}
)
"""Types of results that describe a region or the image: no regions of their own."""
_DATA_URL = "data:image/png;base64,"
_DAMAGED = (UnidentifiedImageError, OSError, ValueError, SyntaxError, TypeError, LookupError, OverflowError)


@dataclass(frozen=True)
class LabelledRegion:
    """One region of an annotation."""

    region_id: str
    phrase: str | None
    labels: tuple[str, ...]
    """Several if the form lets annotators choose several; none for regions without a label."""
    score: float | None
    """The model's score, if the model proposed the region."""
    shape: str
    """MASK, POLYGON, RECTANGLE or ELLIPSE."""
    hw: Hw
    pixels: MaskRuns | Mapping[str, Any]
    """Runs, or COCO RLE: in memory as large as its outline, not as its image."""
    outline: tuple[float, ...] | None = None
    """x, y, x, y ... in pixels, of shapes other than masks; pycocotools rasterises it to these pixels."""
    box_xyxy: BoxXyxy | None = None
    """Of an upright rectangle, as drawn; of others, the box follows from the mask."""

    @property
    def mask(self) -> BoolMask:
        """(H, W) in the original frame; made at each call, so that no two masks need be in memory."""
        runs = self.pixels
        return runs.to_mask() if isinstance(runs, MaskRuns) else coco_rle_to_mask(runs)

    @property
    def is_empty(self) -> bool:
        if isinstance(self.pixels, MaskRuns):
            return self.pixels.is_empty
        return not int(coco_mask.area(self.pixels))


@dataclass(frozen=True)
class ExportContent:
    """Content of an annotation."""

    regions: tuple[LabelledRegion, ...]
    no_target_phrases: tuple[str, ...]
    """Phrases that a person confirmed to be absent from the image."""
    unconfirmed: int
    """Phrases that found nothing or were not asked: not labels."""
    left_out: Counter[str]
    """Kind and reason -> how many regions are not exported."""
    problems: tuple[str, ...]
    """Messages about regions that cannot be read."""


def read_regions(
    annotation: Mapping[str, Any],
    config: LabelingConfig,
    form: FormLabels,
    max_pixels: int = IMAGE_MAX_PIXELS,
) -> ExportContent:
    """Parses an annotation from Label Studio's API.

    Args:
        annotation: A dict with a `result` list.
        config: The project's labeling config.
        form: Its labels and tools.
        max_pixels: Regions on larger images are refused before they are read.
    """
    reader = _RegionReader(config, form, MaskBudget(max_pixels))
    regions = [
        region
        for region_id, group in regions_by_id(annotation).items()
        if (region := reader.read(region_id, group)) is not None
    ]
    absent, found_nothing, not_asked = phrases_without_mask(annotation, config)
    unconfirmed = len(found_nothing) + len(not_asked)
    return ExportContent(tuple(regions), absent, unconfirmed, reader.left_out, tuple(reader.problems))


class _RegionReader:
    """Reads the regions of one annotation, and counts those that are left out."""

    def __init__(self, config: LabelingConfig, form: FormLabels, budget: MaskBudget) -> None:
        self.left_out: Counter[str] = Counter()
        self.problems: list[str] = []
        self._config = config
        self._form = form
        self._budget = budget

    def read(self, region_id: str, group: list[Result]) -> LabelledRegion | None:
        """The region of results that share an ID; None if they are none, or it is left out."""
        # A click on a region is saved under the region's ID, with a copy of its geometry.
        gestures = self._form.tools | self._form.others
        own = [result for result in group if result.get("from_name") not in gestures]
        result = _geometry_result(own) or _geometry_result(group)
        if result is None:
            self._count_unknown(group)
            return None
        kind = _kind_of(result["value"])
        reason = self._refusal(result, kind)
        if reason:
            self.left_out[reason] += 1
            return None
        try:
            region = self._region(region_id, own, result, kind)
        except MaskFormatError as error:
            self.problems.append(f"region {region_id}: {error}")
            return None
        if region.is_empty:
            self.left_out[f"{KINDS[kind]} without pixels are left out"] += 1
            return None
        return region

    def _refusal(self, result: Result, kind: str) -> str:
        """Why a region is left out, with its kind; empty if it is not."""
        many = KINDS[kind]
        if result.get("from_name") in self._form.tools and kind != "keypoint":
            return (
                f"{many} of the tag “{result.get('from_name')}” are left out: they were drawn for the model"
            )
        image = self._config.image
        if image is None or not is_on(result, image.name):
            return f"{many} on the image “{place_of(result)}” are left out"
        if kind == "keypoint":
            return f"{many} are left out: a point has no area"
        if kind == "vector" and not _is_closed_polygon(result["value"]):
            return f"{many} that are open or curved are left out: they have no outline of straight lines"
        return ""

    def _count_unknown(self, group: list[Result]) -> None:
        """Regions of another kind: on texts, sounds, videos."""
        kinds = {kind for result in group if (kind := str(result.get("type", ""))) and _is_region(result)}
        for kind in sorted(kinds)[:1]:
            self.left_out[f"regions of the type “{kind[:40]}” are left out: they have no pixels"] += 1

    def _region(self, region_id: str, group: list[Result], result: Result, kind: str) -> LabelledRegion:
        value, hw = result["value"], self._size_of(result)
        outline, box = None, None
        pixels: MaskRuns | Mapping[str, Any]
        if kind == "rle":
            pixels = brush_runs(result, self._budget)
        elif kind == "bitmask":
            pixels = self._bitmask(value["imageDataURL"], hw)
        else:
            self._budget.spend(hw[0] * hw[1], 0)
            outline = _OUTLINES[kind](value, hw)
            pixels = outline_to_coco_rle(outline, hw)
            if kind == RECTANGLE and len(outline) and is_upright(value):
                (x0, y0), (x1, y1) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
                box = (x0, y0, x1, y1)
        return LabelledRegion(
            region_id,
            phrase_of(region_id, group, self._config),
            _labels_of(group),
            _finite(score_of(result)),
            {"rle": MASK, "bitmask": MASK, "vector": POLYGON}.get(kind, kind),
            hw,
            pixels,
            None if outline is None else tuple(outline.ravel().tolist()),
            box,
        )

    def _size_of(self, result: Result) -> Hw:
        try:
            height, width = int(result["original_height"]), int(result["original_width"])
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MaskFormatError("a region without the size of its image") from error
        if not 0 < height * width <= self._budget.max_pixels or height < 0:
            raise MaskFormatError(
                f"its image has {height} x {width} pixels; 1 to {self._budget.max_pixels} are read"
            )
        return height, width

    def _bitmask(self, url: object, hw: Hw) -> Mapping[str, Any]:
        """COCO RLE of a PNG in a data URL: its alpha, or its brightness if it has none."""
        if not isinstance(url, str) or not url.startswith(_DATA_URL):
            raise MaskFormatError("a bitmask that is not a PNG in a data URL")
        self._budget.spend(hw[0] * hw[1], len(url))
        try:
            data = base64.b64decode(url[len(_DATA_URL) :], validate=True)
            with Image.open(BytesIO(data), formats=("PNG",)) as picture:
                if (picture.height, picture.width) != hw:  # only its header is read so far
                    size = f"{picture.height} x {picture.width}"
                    raise MaskFormatError(f"a bitmask of {size} pixels on an image of {hw[0]} x {hw[1]}")
                transparent = picture.has_transparency_data
                level = picture.convert("RGBA").getchannel("A") if transparent else picture.convert("L")
                return mask_to_coco_rle(np.asarray(level) > ALPHA_THRESHOLD)
        except MaskFormatError:
            raise
        except (binascii.Error, *_DAMAGED) as error:
            raise MaskFormatError(f"a damaged bitmask: {error}") from error


_OUTLINES = {
    POLYGON: polygon_outline,
    "vector": polygon_outline,
    RECTANGLE: rectangle_outline,
    ELLIPSE: ellipse_outline,
}


def _finite(score: float | None) -> float | None:
    return score if score is not None and math.isfinite(score) else None


def _geometry_result(group: list[Result]) -> Result | None:
    """The result that draws the region: attributes of it have copies of its geometry."""
    drawn = [result for result in group if _is_region(result) and _kind_of(result.get("value"))]
    return next((result for result in drawn if result.get("type") != "labels"), drawn[0] if drawn else None)


def _is_region(result: Result) -> bool:
    return str(result.get("type", "")) not in _ATTRIBUTES and isinstance(result.get("value"), Mapping)


def _kind_of(value: Any) -> str:
    """Key of KINDS by the geometry's fields; empty if there is no geometry on an image."""
    if not isinstance(value, Mapping):
        return ""
    for key, kind in (
        ("rle", "rle"),
        ("imageDataURL", "bitmask"),
        ("points", POLYGON),
        ("vertices", "vector"),
        ("radiusX", ELLIPSE),
    ):
        if key in value:
            return kind
    if value.keys() >= {"x", "y", "width", "height"}:
        return RECTANGLE
    return "keypoint" if value.keys() >= {"x", "y"} else ""


def _is_closed_polygon(value: Mapping[str, Any]) -> bool:
    vertices = value.get("vertices")
    straight = isinstance(vertices, list) and not any(
        isinstance(vertex, Mapping) and vertex.get("isBezier") for vertex in vertices
    )
    return bool(value.get("closed")) and straight


def _labels_of(group: Iterable[Result]) -> tuple[str, ...]:
    """Distinct labels of all results of a region, in their order."""
    labels: dict[str, None] = {}
    for result in group:
        kind, value = str(result.get("type", "")), result.get("value")
        if not kind.endswith("labels") or not isinstance(value, Mapping):
            continue
        listed = value.get(kind)
        labels |= {str(label): None for label in listed if label} if isinstance(listed, list) else {}
    return tuple(labels)
