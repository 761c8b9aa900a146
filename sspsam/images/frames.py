"""The three coordinate frames of an image; the only module that resizes, pads and thresholds.

original: the image as displayed. sam: longest side resized, padded right and bottom to a square.
clip: longest side resized, padded to a square, with the image centred, or anywhere during training.
Sizes are (H, W) in px.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import cv2
import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

SAM_PIXEL_MEAN = (123.675, 116.28, 103.53)
SAM_PIXEL_STD = (58.395, 57.12, 57.375)
CLIP_MEAN = (0.48145466, 0.4578275, 0.40821073)
CLIP_STD = (0.26862954, 0.26130258, 0.27577711)
"""As in open_clip, whose import takes longer than that of torch."""

PAPER_CANVAS = 1024
"""Side of the padded square to which the paper's code resizes masks, px."""
PAPER_SIDE = 512
"""Side of the square on which it compares them."""

LARGE_PX = 6_000_000
"""Masks with more pixels are thresholded a few rows at a time: twice as fast, and slower for small ones."""

Hw = tuple[int, int]
UInt8Image = npt.NDArray[np.uint8]
BoolMask = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class ClipFrame:
    """Position of an image in its padded CLIP input."""

    original_hw: Hw
    resized_hw: Hw
    top: int
    left: int
    side: int

    def box_to_original(self, box_cxcywh: Tensor) -> tuple[float, float, float, float]:
        """A (4,) box in 0..1 of the CLIP input as xyxy px of the original frame, clipped to the image."""
        cx, cy, w, h = (box_cxcywh.double() * self.side).tolist()
        scale_y = self.original_hw[0] / self.resized_hw[0]
        scale_x = self.original_hw[1] / self.resized_hw[1]
        x0, x1 = ((x - self.left) * scale_x for x in (cx - w / 2, cx + w / 2))
        y0, y1 = ((y - self.top) * scale_y for y in (cy - h / 2, cy + h / 2))
        height, width = self.original_hw
        return (_clip(x0, width), _clip(y0, height), _clip(x1, width), _clip(y1, height))

    def mask_to_canvas(self, mask: BoolMask) -> Tensor:
        """A (H, W) mask of the original frame in the CLIP input: (side, side) float32 in 0..1."""
        canvas = torch.zeros(self.side, self.side)
        height, width = self.resized_hw
        canvas[self.top : self.top + height, self.left : self.left + width] = _resize_mask(
            mask, self.resized_hw
        )
        return canvas

    def to_tensor(self) -> Tensor:
        """All fields as a (7,) int64 tensor."""
        return torch.tensor([*self.original_hw, *self.resized_hw, self.top, self.left, self.side])

    @classmethod
    def from_tensor(cls, numbers: Tensor) -> ClipFrame:
        """The inverse of `to_tensor`."""
        height, width, resized_height, resized_width, top, left, side = numbers.tolist()
        return cls((height, width), (resized_height, resized_width), top, left, side)

    def box_from_original(self, box_xyxy: tuple[float, float, float, float]) -> Tensor:
        """The inverse: xyxy px of the original frame as a (4,) cxcywh box in 0..1 of the CLIP input."""
        scale_y = self.resized_hw[0] / self.original_hw[0]
        scale_x = self.resized_hw[1] / self.original_hw[1]
        x0, x1 = (x * scale_x + self.left for x in box_xyxy[::2])
        y0, y1 = (y * scale_y + self.top for y in box_xyxy[1::2])
        return torch.tensor([(x0 + x1) / 2, (y0 + y1) / 2, x1 - x0, y1 - y0]) / self.side


def resized_hw(original_hw: Hw, side: int) -> Hw:
    """Size with longest side `side`, rounded as in SAM."""
    scale = side / max(original_hw)
    height, width = (max(1, int(length * scale + 0.5)) for length in original_hw)
    return height, width


def image_to_sam(image: UInt8Image, side: int) -> Tensor:
    """SAM's preprocessing: (H, W, 3) uint8 to (3, side, side) float32."""
    pixels = _resize(image, resized_hw(_hw(image), side))
    normalised = (pixels - torch.tensor(SAM_PIXEL_MEAN)) / torch.tensor(SAM_PIXEL_STD)
    return _place(normalised, side, top=0, left=0)


def image_to_clip(
    image: UInt8Image, side: int, centred: bool = True, generator: torch.Generator | None = None
) -> tuple[Tensor, ClipFrame]:
    """CLIP's preprocessing as in SSP-SAM: resize, normalise, then pad with zeros.

    Args:
        image: (H, W, 3) uint8.
        side: of the padded input, px.
        centred: place the image in the middle; otherwise at the top left.
        generator: places the image at random, as in training.

    Returns:
        (3, side, side) float32, and the image's position.
    """
    original_hw = _hw(image)
    height, width = resized_hw(original_hw, side)
    top, left = 0, 0
    if generator is not None:
        top, left = (_random_offset(side - length, generator) for length in (height, width))
    elif centred:
        top, left = round((side - height) / 2 - 0.1), round((side - width) / 2 - 0.1)
    mean, std = torch.tensor(CLIP_MEAN), torch.tensor(CLIP_STD)
    normalised = (_resize(image, (height, width)) / 255 - mean) / std
    frame = ClipFrame(original_hw, (height, width), top, left, side)
    return _place(normalised, side, top, left), frame


def sam_logits_to_original(mask_logits: Tensor, original_hw: Hw) -> Tensor:
    """Resizes mask logits to the image, as SAM does.

    Args:
        mask_logits: (B, 1, h, h) over the padded square.
        original_hw: size of the image.

    Returns:
        (B, H, W) logits.
    """
    (rows, columns), full_hw = _crop(original_hw, mask_logits.shape[-1])
    cropped = mask_logits[..., :rows, :columns].float()
    resized = F.interpolate(cropped, size=full_hw, mode="bilinear", align_corners=False)
    return resized[:, 0, : original_hw[0], : original_hw[1]]


def sam_logits_to_mask(mask_logits: npt.NDArray[np.float32], original_hw: Hw, threshold: float) -> BoolMask:
    """The same for one mask on the CPU, thresholded; several times as fast with OpenCV.

    Args:
        mask_logits: (h, h) over the padded square.
        original_hw: size of the image.
        threshold: logits above it are mask.

    Returns:
        (H, W) bool.
    """
    if original_hw[0] * original_hw[1] > LARGE_PX:
        return _large_mask(mask_logits, original_hw, threshold)
    mask: BoolMask = sam_logits_to_pixels(mask_logits, original_hw) > threshold
    return mask


def _large_mask(mask_logits: npt.NDArray[np.float32], original_hw: Hw, threshold: float) -> BoolMask:
    """The same mask without the logits of all pixels, so that time and memory stay linear in the pixels.

    They take 192 MB for 48 megapixels: more than a process keeps of freed memory, so that the system clears
    every page again. Columns are resized at once, then the rows between two rows of logits in the cache.
    """
    (rows, columns), (full_height, full_width) = _crop(original_hw, mask_logits.shape[-1])
    cropped = np.ascontiguousarray(mask_logits[:rows, :columns])
    wide = cv2.resize(cropped, (full_width, rows), interpolation=cv2.INTER_LINEAR)[:, : original_hw[1]]
    places = np.clip((np.arange(original_hw[0]) + 0.5) * rows / full_height - 0.5, 0, rows - 1)
    upper = np.minimum(places.astype(np.int64), max(rows - 2, 0))
    parts = (places - upper).astype(np.float32)[:, None]
    mask = np.empty(original_hw, np.bool_)
    ends = np.searchsorted(upper, np.arange(rows + 1))
    for row, (first, end) in enumerate(pairwise(ends)):
        if first < end:
            below = wide[min(row + 1, rows - 1)]
            logits = np.multiply(parts[first:end], below - wide[row])
            logits += wide[row]
            np.greater(logits, threshold, out=mask[first:end])
    return mask


def sam_logits_to_pixels(mask_logits: npt.NDArray[np.float32], original_hw: Hw) -> npt.NDArray[np.float32]:
    """The same without a threshold: (H, W) logits."""
    (rows, columns), (full_height, full_width) = _crop(original_hw, mask_logits.shape[-1])
    cropped = np.ascontiguousarray(mask_logits[:rows, :columns])
    resized = cv2.resize(cropped, (full_width, full_height), interpolation=cv2.INTER_LINEAR)
    return np.asarray(resized[: original_hw[0], : original_hw[1]], np.float32)


def lowest_sam_logit(
    mask_logits: npt.NDArray[np.float32], original_hw: Hw, xy: npt.NDArray[np.float32]
) -> float:
    """The lowest logit at some pixels of the image, as `sam_logits_to_mask` interpolates it.

    Args:
        mask_logits: (h, h) over the padded square.
        original_hw: size of the image.
        xy: (N, 2) px, at least one.
    """
    cells_hw, full_hw = _crop(original_hw, mask_logits.shape[-1])
    pixels = np.clip(np.floor(xy), 0, np.array(original_hw[::-1]) - 1)
    last = np.array(cells_hw[::-1]) - 1
    places = np.clip((pixels + 0.5) * (last + 1) / full_hw[::-1] - 0.5, 0, last)
    low = np.minimum(places.astype(np.int64), np.maximum(last - 1, 0))
    high = np.minimum(low + 1, last)
    (x, y), (x0, y0), (x1, y1) = (places - low).T, low.T, high.T
    upper = mask_logits[y0, x0] * (1 - x) + mask_logits[y0, x1] * x
    lower = mask_logits[y1, x0] * (1 - x) + mask_logits[y1, x1] * x
    return float((upper * (1 - y) + lower * y).min())


def cells(original_hw: Hw, mask_logits: npt.NDArray[np.float32]) -> float:
    """Number of cells of (h, h) logits covered by the image."""
    height, width = original_hw
    scale: float = mask_logits.shape[-1] / max(original_hw)
    return scale**2 * height * width


def _crop(original_hw: Hw, side: int) -> tuple[Hw, Hw]:
    """The (h, h) cells covered by the image, and the px to which they are resized.

    Cropping before the bilinear resize makes the cost proportional to the image; the crop is extended to
    whole cells, and the part beyond the image is cut off after resizing.
    """
    scale = max(original_hw) / side
    rows, columns = (min(side, int(np.ceil(length / scale)) + 1) for length in original_hw)
    return (rows, columns), (round(rows * scale), round(columns * scale))


def mask_to_sam(mask: BoolMask, side: int) -> Tensor:
    """A (H, W) mask of the original frame in the padded sam frame: (side, side) float32 in 0..1."""
    target = torch.zeros(side, side)
    hw = resized_hw(_hw(mask), side)
    target[: hw[0], : hw[1]] = _resize_mask(mask, hw)
    return target


def mask_to_paper_square(mask: BoolMask) -> BoolMask:
    """A (H, W) mask of the original frame as compared by the paper's code: (512, 512).

    Resized to a longest side of 1024 with everything above 0 kept, padded, then every other pixel taken.

    Source: WayneTomas/SSP-SAM:datasets/transforms.py (SAMMaskResize), datasets/dataset.py.
    """
    height, width = resized_hw(_hw(mask), PAPER_CANVAS)
    picture = Image.fromarray(mask.astype(np.float32))
    resized = np.array(picture.resize((width, height), Image.Resampling.BILINEAR)) > 0
    canvas = np.zeros((PAPER_CANVAS, PAPER_CANVAS), dtype=bool)
    canvas[:height, :width] = resized
    step = PAPER_CANVAS // PAPER_SIDE
    return canvas[::step, ::step]


def sam_logits_to_paper_square(mask_logits: Tensor) -> Tensor:
    """(B, 1, h, h) logits over the padded square as compared by the paper's code: (B, 512, 512)."""
    canvas = F.interpolate(mask_logits.float(), size=(PAPER_CANVAS, PAPER_CANVAS), mode="bilinear")
    return F.interpolate(canvas, size=(PAPER_SIDE, PAPER_SIDE), mode="bilinear")[:, 0]


def points_to_sam(points: npt.ArrayLike, original_hw: Hw, side: int) -> Tensor:
    """(N, 2) x, y px of the original frame in px of the sam frame."""
    height, width = resized_hw(original_hw, side)
    scale = torch.tensor([width / original_hw[1], height / original_hw[0]])
    return torch.as_tensor(np.asarray(points, np.float32)) * scale


def _hw(array: UInt8Image | BoolMask) -> Hw:
    return array.shape[0], array.shape[1]


def _resize_mask(mask: BoolMask, hw: Hw) -> Tensor:
    picture = Image.fromarray(mask.astype(np.uint8) * 255)
    resized = picture.resize((hw[1], hw[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized, np.float32)) / 255


def _resize(image: UInt8Image, hw: Hw) -> Tensor:
    resized = Image.fromarray(image).resize((hw[1], hw[0]), Image.Resampling.BILINEAR)
    return torch.from_numpy(np.array(resized, np.float32))  # (h, w, 3)


def _place(pixels: Tensor, side: int, top: int, left: int) -> Tensor:
    canvas = torch.zeros(3, side, side)
    height, width = pixels.shape[:2]
    canvas[:, top : top + height, left : left + width] = pixels.permute(2, 0, 1)
    return canvas


def _random_offset(room: int, generator: torch.Generator) -> int:
    return int(torch.randint(room + 1, (), generator=generator))


def _clip(value: float, limit: int) -> float:
    return min(max(value, 0.0), float(limit))
