"""References to regions of images on disk: the common part of the published data sets.

Masks are kept compressed and rendered when a sample is requested; only the last image is in memory.
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
"""Coordinates of three corners; pycocotools would interpret four numbers as a box."""


class NoRegionError(ValueError):
    """An annotation has no region: no polygon, or none with three corners."""


class Region(Protocol):
    """A region of an image."""

    def draw(self, hw: Hw) -> BoolMask:
        """(H, W) mask for an image of that size; raises ValueError if the size does not match."""


@dataclass(frozen=True, slots=True)
class RleRegion:
    """The union of compressed COCO masks; empty without any."""

    hw: Hw
    counts: tuple[bytes, ...]

    def draw(self, hw: Hw) -> BoolMask:
        if hw != self.hw:
            raise ValueError(f"the image is {hw} (H, W), its mask was drawn on {self.hw}")
        if not self.counts:
            return np.zeros(hw, dtype=bool)
        parts = [{"size": list(hw), "counts": counts} for counts in self.counts]
        return np.asarray(coco_mask.decode(coco_mask.merge(parts)), dtype=np.bool_)


@dataclass(frozen=True, slots=True)
class PolygonRegion:
    """The union of polygons with integer corners, including their outlines."""

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
    """One phrase on one image; nothing is read or rendered yet."""

    sample_id: str
    image_id: str
    """Path in its data set: pictures of different folders may share a file name."""
    image: Path
    phrase: str
    region: Region
    box_xyxy: BoxXyxy | None
    family: str = ""
    as_shown: bool = False
    """The region is in the displayed frame (EXIF orientation applied), not in that of the stored pixels."""


class ReferringDataset:
    """References as a data set, grouped by image in the order of each image's first reference."""

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

    def phrases(self) -> Iterable[str]:
        """The phrase of every sample."""
        return (reference.phrase for reference in self.references)

    def without(self, other: ReferringDataset) -> ReferringDataset:
        """The references on images that are not in the other data sets."""
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
    """Compresses COCO's `segmentation`, in every published form.

    Args:
        segmentation: A list of polygons `[x, y, x, y, ...]`, one such polygon, an RLE (its counts text or a
            list), or a list of RLEs. Several parts are one region.
        hw: Size of the image.

    Raises:
        NoRegionError: it has no polygon with three corners.
        ValueError: it is none of these, or of another size.
    """
    parts: Sequence[Any] = [segmentation] if isinstance(segmentation, Mapping) else segmentation
    if parts == []:
        raise NoRegionError("it has no polygon")
    if not isinstance(parts, list):
        raise ValueError(f"expected polygons or an RLE, got {segmentation!r:.60}")
    if all(isinstance(part, int | float) for part in parts):
        parts = [parts]
    if all(isinstance(part, Mapping) for part in parts):
        return RleRegion(hw, tuple(_compress_rle(part, hw) for part in parts))
    if not all(isinstance(part, list) for part in parts):
        raise ValueError(f"expected polygons or an RLE, got {segmentation!r:.60}")
    polygons = [part for part in parts if len(part) >= MIN_POLYGON_NUMBERS and len(part) % 2 == 0]
    if not polygons:
        raise NoRegionError(f"no polygon has three corners: {segmentation!r:.60}")
    return RleRegion(hw, tuple(rle["counts"] for rle in coco_mask.frPyObjects(polygons, *hw)))


def union(regions: Sequence[RleRegion], hw: Hw) -> RleRegion:
    """The union of regions on the same image; empty without any."""
    return RleRegion(hw, tuple(counts for region in regions for counts in region.counts))


def xywh_to_xyxy(box: Sequence[float]) -> BoxXyxy:
    """COCO's `bbox` as corners, px."""
    x, y, width, height = (float(value) for value in box)
    return (x, y, x + width, y + height)


def enclose(boxes: Sequence[BoxXyxy]) -> BoxXyxy | None:
    """The bounding box of boxes; None without any."""
    if not boxes:
        return None
    x0, y0, x1, y1 = zip(*boxes, strict=True)
    return (min(x0), min(y0), max(x1), max(y1))


def _compress_rle(rle: Mapping[str, Any], hw: Hw) -> bytes:
    size, counts = rle.get("size"), rle.get("counts")
    if list(size or ()) != list(hw):
        raise ValueError(f"an RLE is of size {size}, the image {list(hw)}")
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
