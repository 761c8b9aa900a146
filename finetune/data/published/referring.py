"""References to regions of pictures on disk: what the published data sets have in common.

Masks are kept compressed and drawn when a sample is asked for; of the pictures only the last one is in
memory.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw
from pycocotools import mask as coco_mask

from finetune.data.files import read_shown_picture, read_stored_picture
from finetune.data.sample import BoxXyxy, DatasetFileError, Sample

BoolMask = npt.NDArray[np.bool_]
Hw = tuple[int, int]

MIN_POLYGON_NUMBERS = 6
"""Three corners; pycocotools would take four numbers for a box."""


class Region(Protocol):
    """Some pixels of a picture."""

    def draw(self, hw: Hw) -> BoolMask:
        """(H, W) mask on a picture of that size; raises ValueError where it does not belong to one."""


@dataclass(frozen=True, slots=True)
class RleRegion:
    """The union of compressed COCO masks; none of them: nothing."""

    hw: Hw
    counts: tuple[bytes, ...]

    def draw(self, hw: Hw) -> BoolMask:
        if hw != self.hw:
            raise ValueError(f"the picture is {hw} (H, W), its mask was drawn on {self.hw}")
        if not self.counts:
            return np.zeros(hw, dtype=bool)
        parts = [{"size": list(hw), "counts": counts} for counts in self.counts]
        return np.asarray(coco_mask.decode(coco_mask.merge(parts)), dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class PolygonRegion:
    """The union of polygons with whole corners, their outline included."""

    polygons: tuple[npt.NDArray[np.int32], ...]
    """Each (N, 2) x, y."""

    def draw(self, hw: Hw) -> BoolMask:
        canvas = Image.new("L", (hw[1], hw[0]), 0)
        pen = ImageDraw.Draw(canvas)
        for polygon in self.polygons:
            pen.polygon([(int(x), int(y)) for x, y in polygon], outline=1, fill=1)
        return np.asarray(canvas, dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class Reference:
    """One phrase on one picture, before anything was read or drawn."""

    sample_id: str
    image_id: str
    image: Path
    phrase: str
    region: Region
    box_xyxy: BoxXyxy | None
    family: str = ""
    as_shown: bool = False
    """The region was drawn on the picture as people see it, not on its pixels as they are stored."""


class ReferringDataset:
    """References as a data set. Those of one picture follow each other, in the order of its first one."""

    def __init__(self, references: Iterable[Reference]) -> None:
        by_image: dict[str, list[Reference]] = {}
        for reference in references:
            by_image.setdefault(reference.image_id, []).append(reference)
        self.references = [reference for group in by_image.values() for reference in group]
        self._last: tuple[Path, npt.NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.references)

    def __getitem__(self, index: int) -> Sample:
        reference = self.references[index]
        image = self._read(reference)
        try:
            mask = reference.region.draw((image.shape[0], image.shape[1]))
        except ValueError as error:
            raise DatasetFileError(f"{reference.sample_id} on {reference.image}: {error}") from error
        return Sample(
            reference.sample_id,
            reference.image_id,
            image,
            reference.phrase,
            mask,
            reference.family,
            box_xyxy=reference.box_xyxy,
        )

    def without(self, other: ReferringDataset) -> ReferringDataset:
        """The references on pictures that another data set does not have."""
        held_out = {reference.image_id for reference in other.references}
        return ReferringDataset(
            reference for reference in self.references if reference.image_id not in held_out
        )

    def _read(self, reference: Reference) -> npt.NDArray[np.uint8]:
        path = reference.image
        if self._last is None or self._last[0] != path:
            read = read_shown_picture if reference.as_shown else read_stored_picture
            self._last = path, read(path)
        return self._last[1]


def segmentation_to_region(segmentation: Any, hw: Hw) -> RleRegion:
    """Compresses COCO's `segmentation`, in every form that is published.

    Args:
        segmentation: A list of polygons `[x, y, x, y, ...]`, one such polygon, an RLE (its counts text or a
            list), or a list of RLEs. Several parts are one region.
        hw: Size of the picture.

    Raises:
        ValueError: it is none of these, or of another size.
    """
    parts: Sequence[Any] = [segmentation] if isinstance(segmentation, Mapping) else segmentation
    if not isinstance(parts, list) or not parts:
        raise ValueError(f"expected polygons or an RLE, got {segmentation!r:.60}")
    if all(isinstance(part, int | float) for part in parts):
        parts = [parts]
    if all(isinstance(part, Mapping) for part in parts):
        return RleRegion(hw, tuple(_compress_rle(part, hw) for part in parts))
    if not all(isinstance(part, list) for part in parts):
        raise ValueError(f"expected polygons or an RLE, got {segmentation!r:.60}")
    polygons = [part for part in parts if len(part) >= MIN_POLYGON_NUMBERS and len(part) % 2 == 0]
    if not polygons:
        raise ValueError(f"no polygon has three corners: {segmentation!r:.60}")
    return RleRegion(hw, tuple(rle["counts"] for rle in coco_mask.frPyObjects(polygons, *hw)))


def union(regions: Sequence[RleRegion], hw: Hw) -> RleRegion:
    """One region of several on the same picture; nothing, if there are none."""
    return RleRegion(hw, tuple(counts for region in regions for counts in region.counts))


def xywh_to_xyxy(box: Sequence[float]) -> BoxXyxy:
    """COCO's `bbox` as corners, px."""
    x, y, width, height = (float(value) for value in box)
    return (x, y, x + width, y + height)


def enclose(boxes: Sequence[BoxXyxy]) -> BoxXyxy | None:
    """The box around boxes; None around nothing."""
    if not boxes:
        return None
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))


def _compress_rle(rle: Mapping[str, Any], hw: Hw) -> bytes:
    size, counts = rle.get("size"), rle.get("counts")
    if list(size or ()) != list(hw):
        raise ValueError(f"an RLE is of size {size}, the picture {list(hw)}")
    if isinstance(counts, list):
        if sum(counts) != hw[0] * hw[1]:
            raise ValueError(f"the counts of an RLE add up to {sum(counts)}, expected {hw[0] * hw[1]}")
        compressed: bytes = coco_mask.frPyObjects({"size": list(hw), "counts": counts}, *hw)["counts"]
        return compressed
    if isinstance(counts, str):
        return counts.encode("ascii")
    if isinstance(counts, bytes):
        return counts
    raise ValueError(f"the counts of an RLE are {type(counts).__name__}, expected text or a list")
