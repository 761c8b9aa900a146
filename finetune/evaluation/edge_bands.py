"""Edges of labels: the band in which they are uncertain, and how much of them an annotator drew.

An annotator who repairs a proposed mask leaves most of its edge as the model drew it. There, the label agrees
with that model to the pixel, whatever the truth is.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
import numpy.typing as npt

from sspsam.images.masks import BoolMask

BAND_FRACTION = 3 / 256
"""Width of the band on either side of an edge, as a fraction of the image's longer side: three cells of SAM's
mask grid, which has 256 on that side; 8 px of 640."""
DRAWN_BANDS = 2
"""An edge that is the proposal's over this many widths of the band in both directions was not drawn. One
drawn by hand coincides with the proposal's as well, but over shorter distances."""

Distances = npt.NDArray[np.float32]


def band_px(hw: tuple[int, int]) -> int:
    """Width of the band on either side of an edge in an image of that size (H, W)."""
    return max(1, round(BAND_FRACTION * max(hw)))


def edge_band(mask: BoolMask) -> BoolMask:
    """The pixels on either side of a mask's edge.

    On the inner side the band is narrowed where it would take more than half of the mask, so small and thin
    objects can still be compared. The image's border is not an edge.

    Args:
        mask: (H, W).

    Returns:
        (H, W); all False without an edge.
    """
    band = np.zeros_like(mask)
    if not mask.any() or mask.all():
        return band
    outer = band_px(mask.shape)
    part = _around(mask, outer)
    inside, outside = _distances(mask[part]), _distances(~mask[part])
    inner = min(outer, math.ceil(float(np.median(inside[mask[part]]))) - 1)
    band[part] = np.where(mask[part], inside <= inner, outside <= outer)
    return band


def drawn_fraction(mask: BoolMask, proposal: BoolMask) -> float:
    """The fraction of a mask's edge that an annotator drew, 0..1.

    An edge pixel counts as drawn if the mask differs from the proposal near it: see `DRAWN_BANDS`.

    Args:
        mask: (H, W), the label.
        proposal: (H, W), the mask that the annotator was shown.
    """
    changed, reach = mask != proposal, DRAWN_BANDS * band_px(mask.shape)
    if not changed.any():
        return 0.0
    part = _around(mask | changed, reach)
    edge = mask[part] & (_distances(mask[part]) <= 1)
    if not edge.any():
        return 1.0
    near = _distances(~changed[part]) <= reach
    return float(np.count_nonzero(edge & near) / np.count_nonzero(edge))


def _around(mask: BoolMask, margin_px: int) -> tuple[slice, slice]:
    """The box of a mask with a margin wider than that: distances beyond it do not matter."""
    margin = margin_px + 2
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    first_row, first_column = max(0, rows[0] - margin), max(0, columns[0] - margin)
    return slice(first_row, rows[-1] + margin + 1), slice(first_column, columns[-1] + margin + 1)


def _distances(mask: BoolMask) -> Distances:
    """Distance of each mask pixel to the nearest one outside the mask, px; 0 outside."""
    return np.asarray(cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_5))
