"""Images that a small model learns quickly."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

UInt8Image = npt.NDArray[np.uint8]


def scene(seed: int) -> tuple[UInt8Image, npt.NDArray[np.bool_]]:
    """A bright square on dark noise, and its mask."""
    rng = np.random.default_rng(seed)
    image = rng.integers(0, 60, (48, 64, 3), dtype=np.uint8)
    top, left = (int(rng.integers(2, side - 26)) for side in (48, 64))
    mask = np.zeros((48, 64), dtype=np.bool_)
    mask[top : top + 24, left : left + 24] = True
    image[mask] = (250, 240, 90)
    return image, mask
