"""Masks: bool arrays, runs, COCO RLE and boxes.

A mask here is a two-dimensional bool array (H, W) in the original frame. Anything that is not a
mask, or does not decode to one, raises `MaskFormatError`.

COCO RLE: https://github.com/cocodataset/cocoapi/blob/master/common/maskApi.h
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask

BoolMask = npt.NDArray[np.bool_]
Ints = npt.NDArray[np.int64]

MAX_PIXELS = 2**28  # limit for decoding; 16 Ki x 16 Ki

_MAX_UNITS = 7  # characters per count of COCO RLE: 35 bits


class MaskFormatError(ValueError):
    """The bytes are not a mask of the stated size, or the array is not a mask."""


@dataclass(frozen=True)
class MaskRuns:
    """A mask as runs of equal pixels, row by row: its size in memory is that of its RLE, not of its image."""

    height: int
    width: int
    filled: BoolMask
    """Of each run."""
    lengths: Ints
    """Of each run, in pixels; some are 0."""

    @property
    def is_empty(self) -> bool:
        return not self.lengths[self.filled].any()

    def to_mask(self) -> BoolMask:
        """Returns (H, W) bool."""
        mask: BoolMask = np.repeat(self.filled, self.lengths)
        return mask.reshape(self.height, self.width)


def union_of_runs(masks: Sequence[MaskRuns]) -> MaskRuns:
    """Union of masks of one size, at least one; in memory, it takes two of them."""
    union = masks[0].to_mask()
    for mask in masks[1:]:
        union |= mask.to_mask()
    return mask_to_runs(union)


def mask_to_runs(mask: npt.NDArray[Any]) -> MaskRuns:
    """Runs of a mask, row by row.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.

    Raises:
        MaskFormatError: not two-dimensional, or without pixels.
    """
    flat = as_mask(mask).ravel()
    bounds = np.concatenate(([0], np.flatnonzero(flat[1:] != flat[:-1]) + 1, [flat.size]))
    return MaskRuns(mask.shape[0], mask.shape[1], flat[bounds[:-1]], np.diff(bounds))


def mask_to_coco_rle(mask: npt.NDArray[Any]) -> dict[str, Any]:
    """Encodes a mask as compressed COCO RLE.

    Args:
        mask: (H, W) bool, or any number type in which non-zero is mask.

    Returns:
        {"size": [H, W], "counts": str}, ready for JSON and pycocotools.

    Raises:
        MaskFormatError: Not two-dimensional, or without pixels.
    """
    by_columns = cv2.transpose(as_mask(mask).view(np.uint8)).T  # pycocotools' order; numpy takes longer
    encoded = coco_mask.encode(by_columns)
    return {"size": [int(side) for side in encoded["size"]], "counts": encoded["counts"].decode("ascii")}


def coco_rle_to_mask(rle: Mapping[str, Any]) -> BoolMask:
    """Decodes COCO RLE, compressed (counts is a string) or not (counts is a list).

    Returns:
        (H, W) bool.

    Raises:
        MaskFormatError: A field is missing, or the counts do not add up to the size.
    """
    try:
        return np.asarray(coco_mask.decode(_encoded(rle)), dtype=np.bool_)
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError(f"not a COCO RLE: {error}") from error


def coco_rle_iou(one: Mapping[str, Any], other: Mapping[str, Any]) -> float:
    """Intersection over union of two masks, 0..1, without decoding them; 0 if their sizes differ.

    Raises:
        MaskFormatError: one is not a COCO RLE.
    """
    try:
        if list(one["size"]) != list(other["size"]):
            return 0.0
        return float(coco_mask.iou([_encoded(one)], [_encoded(other)], [0])[0, 0])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError(f"not a COCO RLE: {error}") from error


def merge_coco_rles(rles: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Union of masks of one size, at least one, as `mask_to_coco_rle` encodes it.

    Raises:
        MaskFormatError: one is not a COCO RLE, or their sizes differ.
    """
    try:
        if len({tuple(rle["size"]) for rle in rles}) != 1:
            raise ValueError("the masks have different sizes")
        merged = coco_mask.merge([_encoded(rle) for rle in rles])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MaskFormatError(f"not COCO RLEs of one size: {error}") from error
    return {"size": [int(side) for side in merged["size"]], "counts": merged["counts"].decode("ascii")}


def mask_to_box_xyxy(mask: npt.NDArray[Any]) -> tuple[float, float, float, float]:
    """Returns the tight box (x0, y0, x1, y1) in pixels, right and bottom exclusive; all zero when empty."""
    filled = as_mask(mask)
    rows = np.flatnonzero(filled.any(axis=1))
    columns = np.flatnonzero(filled.any(axis=0))
    if rows.size == 0:
        return (0.0, 0.0, 0.0, 0.0)
    return (float(columns[0]), float(rows[0]), float(columns[-1] + 1), float(rows[-1] + 1))


def _encoded(rle: Mapping[str, Any]) -> Any:
    """Compressed COCO RLE for pycocotools, which would leave pixels without a count uninitialised."""
    height, width = (int(side) for side in rle["size"])
    if min(height, width) < 0 or height * width > MAX_PIXELS:
        raise ValueError(f"a mask of {height} x {width} pixels; at most {MAX_PIXELS} are read")
    listed = isinstance(rle["counts"], list)
    counts = np.array(rle["counts"], dtype=np.int64) if listed else _counts(rle["counts"])
    if counts.ndim != 1 or (counts < 0).any() or (counts > MAX_PIXELS).any():
        raise ValueError("its counts are not a list of numbers of pixels")
    if counts.sum() != height * width:
        raise ValueError(f"its counts are of {counts.sum()} pixels, its size of {height * width}")
    encoded = {"size": [height, width], "counts": rle["counts"]}
    return coco_mask.frPyObjects(encoded, height, width) if listed else encoded


def _counts(text: str | bytes) -> Ints:
    """Run lengths in compressed counts: five bits per character, differences from the third on."""
    data = text if isinstance(text, bytes) else str(text).encode("ascii")
    units = np.frombuffer(data, dtype=np.uint8).astype(np.int64) - 48
    if units.size == 0:
        return units
    last = np.flatnonzero(units & 0x20 == 0)
    if (units < 0).any() or (units > 0x3F).any() or last.size == 0 or last[-1] != units.size - 1:
        raise ValueError("its counts hold other characters, or are cut")
    starts = np.concatenate(([0], last[:-1] + 1))
    lengths = last - starts + 1
    if lengths.max() > _MAX_UNITS:
        raise ValueError("its counts are too large")
    # pycocotools trusts its input: a count beyond the size would write outside the mask, and missing counts
    # leave memory uninitialised. So the sums are checked first, without expanding anything.
    places = np.arange(units.size) - np.repeat(starts, lengths)
    counts = np.add.reduceat((units & 0x1F) << (5 * places), starts)
    # Bit 4 of the last character is the sign of a difference.
    counts -= np.where(units[last] & 0x10, 1 << (5 * lengths), 0)
    counts[1::2], counts[2::2] = np.cumsum(counts[1::2]), np.cumsum(counts[2::2])
    return np.asarray(counts, dtype=np.int64)


def as_mask(mask: npt.NDArray[Any]) -> BoolMask:
    """Returns (H, W) bool, in rows.

    Raises:
        MaskFormatError: Not two-dimensional, or without pixels.
    """
    if mask.ndim != 2 or mask.size == 0:
        raise MaskFormatError(f"a mask is (H, W) with pixels in it, not {mask.shape}")
    return np.ascontiguousarray(mask, dtype=np.bool_)
