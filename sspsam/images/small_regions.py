"""Removal of small parts and holes from masks."""

from __future__ import annotations

import cv2
import numpy as np
import numpy.typing as npt

from sspsam.images.frames import BoolMask

FloatGrid = npt.NDArray[np.float32]


def without_small_regions(mask_logits: FloatGrid, threshold: float, min_cells: float) -> FloatGrid:
    """Removes small regions from a mask on SAM's grid, which has fewer cells than the image has pixels.

    Cells that touch at a corner are connected. Parts are removed first, then holes are filled.

    Args:
        mask_logits: (h, w).
        threshold: Logits above it are mask.
        min_cells: Parts and holes with fewer cells are removed.

    Returns:
        (h, w); the logits of removed regions are mirrored at the threshold, so that adjacent edges stay in
        place. A mask of small parts only is unchanged.
    """
    before: BoolMask = mask_logits > threshold
    kept = before & ~_small_parts(before, min_cells, connectivity=8)
    if not kept.any():
        return mask_logits
    after = kept | _small_parts(~kept, min_cells, connectivity=4)
    return np.where(after == before, mask_logits, np.float32(2 * threshold) - mask_logits)


def _small_parts(is_part: BoolMask, min_cells: float, connectivity: int) -> BoolMask:
    _, labels, statistics, _ = cv2.connectedComponentsWithStats(
        is_part.astype(np.uint8), connectivity=connectivity
    )
    small = statistics[:, cv2.CC_STAT_AREA] < min_cells
    small[0] = False  # the background
    found: BoolMask = small[labels]
    return found
