"""Regions of a saved annotation, of every shape that covers pixels.

The editor saves a region as several results with one ID, each with a copy of its geometry. Which shape it is
follows from the geometry and not from the tag, so that regions stay what they are when the form changes:

    masks (`rle`), bitmasks (`imageDataURL`), polygons (`points`), closed vectors (`vertices`), rectangles and
    ellipses, rotated or not

All others are counted, by kind and reason.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from backend.labelstudio.annotations import (
    MaskBudget,
    is_on,
    original_hw,
    phrase_of,
    phrases_without_mask,
    place_of,
    regions_by_id,
    score_of,
)
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.prompt_text import phrase_key
from backend.labelstudio.regions.controls import Kind
from backend.labelstudio.regions.parts import group_parts
from backend.labelstudio.regions.shapes import size_of, value_to_runs
from sspsam.images.few_points import polygon_to_runs
from sspsam.images.image_io import IMAGE_MAX_PIXELS
from sspsam.images.masks import BoolMask, MaskFormatError, MaskRuns, union_of_runs
from sspsam.images.polygons import mask_to_polygons
from worker.export.categories import FormLabels
from worker.export.shapes import (
    Points,
    ellipse_outline,
    have_pixels,
    is_upright,
    polygon_outline,
    rectangle_outline,
)

Result = Mapping[str, Any]
Hw = tuple[int, int]
BoxXyxy = tuple[float, float, float, float]

MASK, POLYGON, RECTANGLE, ELLIPSE = "mask", "polygon", "rectangle", "ellipse"
_READ_AS: dict[str, Kind] = {"rle": "brush", "bitmask": "bitmask", POLYGON: "polygon"}
"""Geometry -> the kind of region control as which it is read."""
KINDS = {"rle": "masks", "bitmask": "bitmasks", POLYGON: "polygons", RECTANGLE: "rectangles",
         ELLIPSE: "ellipses", "vector": "vectors", "keypoint": "key points"}  # fmt: skip
"""Geometry -> its plural, for messages."""
_PLAIN_BYTES = 2**14
"""Counted for a rectangle, an ellipse or a vector, whose outline has at most some thousand points."""
_ATTRIBUTES = frozenset(
    {"choices", "datetime", "number", "pairwise", "ranker", "rating", "relation", "taxonomy", "textarea"}
)
"""Types of results that describe a region or the image: no regions of their own."""


@dataclass(frozen=True)
class LabelledRegion:
    """One object of an annotation: a region, or the polygons of its parts."""

    region_id: str
    phrase: str | None
    labels: tuple[str, ...]
    """Several if the form lets annotators choose several; none for regions without a label."""
    score: float | None
    """The model's score, if the model proposed the region."""
    shape: str
    """MASK, POLYGON, RECTANGLE or ELLIPSE."""
    runs: MaskRuns
    outlines: tuple[Points, ...] = ()
    """(N, 2) x, y in pixels, of shapes other than masks, as drawn; several for an object in several parts."""
    box_xyxy: BoxXyxy | None = None
    """Of an upright rectangle, as drawn; of others, the box follows from the mask."""

    @property
    def mask(self) -> BoolMask:
        """(H, W) in the original frame; made at each call, so that no two masks need be in memory."""
        return self.runs.to_mask()

    @property
    def hw(self) -> Hw:
        """Size of the mask's image."""
        return self.runs.height, self.runs.width

    def polygons(self, mask: BoolMask) -> list[list[float]]:
        """Polygons that pycocotools fills to the region's pixels: the outlines as drawn, if it does.

        Args:
            mask: The region's mask.
        """
        if have_pixels(self.outlines, mask):
            return [outline.ravel().tolist() for outline in self.outlines]
        return mask_to_polygons(mask)


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
    absent, found_nothing, not_asked = phrases_without_mask(annotation, config, reader.empty)
    unconfirmed = len(found_nothing) + len(not_asked)
    joined = tuple(_join_parts(regions))
    return ExportContent(joined, absent, unconfirmed, reader.left_out, tuple(reader.problems))


def _join_parts(regions: Sequence[LabelledRegion]) -> Iterator[LabelledRegion]:
    """One region per object."""
    meanings = [(phrase_key(each.phrase or ""), each.labels, each.shape, each.hw) for each in regions]
    for object_id, places in group_parts([region.region_id for region in regions], meanings):
        parts = [regions[place] for place in places]
        if len(parts) == 1:
            yield replace(parts[0], region_id=object_id)
            continue
        runs = union_of_runs([part.runs for part in parts])
        outlines = tuple(outline for part in parts for outline in part.outlines)
        yield replace(parts[0], region_id=object_id, runs=runs, outlines=outlines, box_xyxy=None)


class _RegionReader:
    """Reads the regions of one annotation, and counts those that are left out."""

    def __init__(self, config: LabelingConfig, form: FormLabels, budget: MaskBudget) -> None:
        self.left_out: Counter[str] = Counter()
        self.empty: set[str] = set()
        """IDs of regions without pixels."""
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
        if region.runs.is_empty:
            self.left_out[f"{KINDS[kind]} without pixels are left out"] += 1
            self.empty.add(region_id)
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
        value, (height, width) = result["value"], self._size_of(result)
        read_as = _READ_AS.get(kind)
        self._budget.spend(height, width, size_of(value, read_as, height, width) if read_as else _PLAIN_BYTES)
        outline = _OUTLINES[kind](value, (height, width)) if kind in _OUTLINES else None
        upright = kind == RECTANGLE and outline is not None and len(outline) > 0 and is_upright(value)
        box = _box_of(outline) if upright and outline is not None else None
        if read_as is None and outline is not None:
            runs = polygon_to_runs(outline, height, width, self._budget.max_pixels)
        else:
            runs = value_to_runs(value, read_as or "brush", height, width, self._budget.max_pixels)
        runs = self._budget.keep(runs)
        return LabelledRegion(
            region_id,
            phrase_of(region_id, group, self._config),
            _labels_of(group, result),
            _finite(score_of(result)),
            {"rle": MASK, "bitmask": MASK, "vector": POLYGON}.get(kind, kind),
            runs,
            () if outline is None else (outline,),
            box,
        )

    def _size_of(self, result: Result) -> Hw:
        height, width = original_hw(result)
        if not 0 < height * width <= self._budget.max_pixels or height < 0:
            raise MaskFormatError(
                f"its image has {height} x {width} pixels; 1 to {self._budget.max_pixels} are read"
            )
        return height, width


_OUTLINES: dict[str, Callable[[Result, Hw], Points]] = {
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


def _labels_of(group: Iterable[Result], drawn: Result) -> tuple[str, ...]:
    """Distinct labels of a region, in their order.

    The labels of another tag take precedence over those of the tag that drew it: the editor adds them if they
    were selected in the browser.
    """
    own: dict[str, None] = {}
    selected: dict[str, None] = {}
    for result in group:
        kind, value = str(result.get("type", "")), result.get("value")
        listed = value.get(kind) if kind.endswith("labels") and isinstance(value, Mapping) else None
        if isinstance(listed, list):
            found = own if result.get("from_name") == drawn.get("from_name") else selected
            found |= {str(label): None for label in listed if label}
    return tuple(selected or own)


def _box_of(outline: Points) -> BoxXyxy:
    (x0, y0), (x1, y1) = outline.min(axis=0).tolist(), outline.max(axis=0).tolist()
    return x0, y0, x1, y1
