"""Views: square windows of an image that SAM encodes by themselves.

A window may extend beyond the image; the part outside has the median colour of the image's border, so that
the background goes on (SAM makes an object of a frame in another colour). So an object can be displayed
larger than in the whole image, or smaller. Points and boxes of questions about a view are in its own frame:
px of the original image, from the window's corner.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt
import torch
from PIL import Image
from torch import Tensor

from sspsam.images.frames import SAM_PIXEL_MEAN, SAM_PIXEL_STD, BoolMask, Hw, UInt8Image

MIN_SIDE = 32
"""Least side of a window around a box, px."""
STEPS_PER_DOUBLING = 4
"""Number of sides of windows from one to its double."""
STEPS_PER_SIDE = 16
"""Number of places of windows over the length of one."""

BoxXyxy = tuple[float, float, float, float]


@dataclass(frozen=True)
class Window:
    """A square of the original frame, px."""

    left: int
    top: int
    side: int

    @classmethod
    def around(cls, box_xyxy: BoxXyxy, zoom: float) -> Window:
        """The window with a box about its middle; its side is `zoom` times the box's longer side, or a little
        more: sides and places are in steps, so that almost equal boxes have one view.
        """
        x0, y0, x1, y1 = box_xyxy
        longest = max(zoom * max(x1 - x0, y1 - y0), MIN_SIDE)
        side = round(2 ** (math.ceil(math.log2(longest) * STEPS_PER_DOUBLING - 1e-9) / STEPS_PER_DOUBLING))
        step = max(1, side // STEPS_PER_SIDE)
        left, top = (round((low + high - side) / 2 / step) * step for low, high in ((x0, x1), (y0, y1)))
        return cls(left, top, side)

    @property
    def hw(self) -> Hw:
        """The size of the view, px of the original image."""
        return self.side, self.side

    def visible(self, original_hw: Hw) -> tuple[slice, slice]:
        """Rows and columns of the image that it displays."""
        height, width = original_hw
        rows = slice(max(self.top, 0), max(min(self.top + self.side, height), 0))
        columns = slice(max(self.left, 0), max(min(self.left + self.side, width), 0))
        return rows, columns

    def points_in_view(self, points: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """(N, 3) points of the original frame, as in `Question.points`, in the view's."""
        array = np.asarray(points, np.float32).reshape(-1, 3)
        return array - np.array([self.left, self.top, 0], np.float32)

    def box_in_view(self, box_xyxy: npt.ArrayLike) -> npt.NDArray[np.float32]:
        """A (4,) xyxy box of the original frame in the view's."""
        corner = np.array([self.left, self.top] * 2, np.float32)
        return np.asarray(box_xyxy, np.float32).reshape(4) - corner


def view_to_sam(image: UInt8Image, window: Window, side: int) -> Tensor:
    """SAM's preprocessing of a view: (3, side, side) float32.

    Args:
        image: (H, W, 3) uint8.
        window: Overlaps the image.
        side: Of SAM's input, px.
    """
    scale = side / window.side
    rows, columns = ((window.top, image.shape[0]), (window.left, image.shape[1]))
    (y0, y1), (x0, x1) = (_cells_inside(start, length, scale, side) for start, length in (rows, columns))
    # Whole cells of the canvas, and exactly the pixels under them, so that the view is not shifted.
    box = (
        window.left + x0 / scale,
        window.top + y0 / scale,
        window.left + x1 / scale,
        window.top + y1 / scale,
    )
    left, top = max(math.floor(box[0]), 0), max(math.floor(box[1]), 0)
    part = Image.fromarray(image[top : math.ceil(box[3]), left : math.ceil(box[2])])
    inside = (
        max(box[0] - left, 0.0),
        max(box[1] - top, 0.0),
        min(box[2] - left, part.width),
        min(box[3] - top, part.height),
    )
    resized = part.resize((x1 - x0, y1 - y0), Image.Resampling.BILINEAR, box=inside)
    canvas = np.empty((side, side, 3), np.float32)
    if (y1 - y0, x1 - x0) != (side, side):
        canvas[:] = _border_colour(image)
    canvas[y0:y1, x0:x1] = np.array(resized, np.float32)
    normalised = (torch.from_numpy(canvas) - torch.tensor(SAM_PIXEL_MEAN)) / torch.tensor(SAM_PIXEL_STD)
    return normalised.permute(2, 0, 1)


def _border_colour(image: UInt8Image) -> npt.NDArray[np.float64]:
    """(3,) median colour of the pixels along the edges of an image."""
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])
    return np.asarray(np.median(border, axis=0), np.float64)


def _cells_inside(start: int, length: int, scale: float, side: int) -> tuple[int, int]:
    """First and last + 1 cell of the canvas that lie within the image along one axis; at least one."""
    low, high = max(0.0, -start * scale), min(float(side), (length - start) * scale)
    first, last = math.ceil(low - 1e-6), math.floor(high + 1e-6)
    if first < last:
        return first, last
    middle = min(int((low + high) / 2), side - 1)  # an image that is narrower than a cell
    return middle, middle + 1


def view_logits_to_mask(
    mask_logits: npt.NDArray[np.float32], window: Window, original_hw: Hw, threshold: float
) -> BoolMask:
    """The visible part of a view's mask, at the resolution of the image: as `window.visible` cuts it.

    Args:
        mask_logits: (h, h) over the view.
        window: Of the view.
        original_hw: Size of the image.
        threshold: Logits above it are mask.
    """
    rows, columns = window.visible(original_hw)
    scale = mask_logits.shape[-1] / window.side
    shift = [(columns.start - window.left + 0.5) * scale - 0.5, (rows.start - window.top + 0.5) * scale - 0.5]
    to_cells = np.array([[scale, 0, shift[0]], [0, scale, shift[1]]], np.float64)
    resized = cv2.warpAffine(
        np.ascontiguousarray(mask_logits),
        to_cells,
        (columns.stop - columns.start, rows.stop - rows.start),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_REPLICATE,
    )
    mask: BoolMask = resized > threshold
    return mask
