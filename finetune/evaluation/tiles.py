"""Images and masks at the size of a report's tile."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from PIL import Image

from finetune.evaluation.protocols import BoolMask


def shrink_to(image: npt.NDArray[np.uint8], side_px: int) -> npt.NDArray[np.uint8]:
    """Scales an image to a longest side, keeping its proportions; a very narrow one keeps 1 px."""
    height, width = image.shape[:2]
    scale = side_px / max(height, width)
    size = max(1, round(width * scale)), max(1, round(height * scale))
    return np.asarray(Image.fromarray(image).resize(size, Image.Resampling.BICUBIC), np.uint8)


def shrink_mask(mask: BoolMask, hw: tuple[int, int]) -> BoolMask:
    """Scales a mask to a shrunk image's size (H, W)."""
    resized = Image.fromarray(mask).resize((hw[1], hw[0]), Image.Resampling.NEAREST)
    return np.asarray(resized, dtype=np.bool_)
