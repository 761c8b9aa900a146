"""Images to embeddings: prepared by any thread, encoded together by one."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor, nn

from sspsam.images import frames
from sspsam.images.frames import ClipFrame, UInt8Image
from sspsam.images.views import Window, view_to_sam
from sspsam.modeling.model import SSPSAM
from sspsam.presets import IMAGE_ENCODERS
from sspsam.results import ImageEmbedding
from sspsam.runtime.bfloat16 import Precision, check_precision, computing_in
from sspsam.runtime.cores import Cores
from sspsam.runtime.out_of_memory import in_halves

VIEWS_TOGETHER = 4
"""Number of views of an image that are encoded at a time."""

Answer = TypeVar("Answer")


@dataclass(frozen=True)
class PreparedImage:
    """An image as the encoders take it, in page-locked memory for a GPU."""

    clip_image: Tensor
    """(3, S, S), CLIP's."""
    sam_image: Tensor
    """(3, S, S), SAM's."""
    clip_frame: ClipFrame


class ImageEncoding:
    """Runs the image encoders of a model. Not thread-safe, but for `prepare`.

    Args:
        model: Its CLIP tower is used.
        image_encoder: SAM's.
        device: Of both.
        cores: For encoders on the CPU.
        precision: Of SAM's encoder; embeddings are float32 in any case.
    """

    def __init__(
        self,
        model: SSPSAM,
        image_encoder: nn.Module,
        device: torch.device,
        cores: Cores,
        precision: Precision,
    ) -> None:
        check_precision(precision)
        self._model, self._image_encoder = model, image_encoder
        self._device, self._cores, self._precision = device, cores, precision
        self._sam_side = IMAGE_ENCODERS[model.preset.image_encoder].image_size

    def prepare(self, image: UInt8Image) -> PreparedImage:
        """Resizes, normalises and pads an image. Thread-safe.

        Args:
            image: (H, W, 3) uint8, RGB, upright.

        Raises:
            ValueError: wrong shape or dtype.
        """
        if image.ndim != 3 or image.shape[2] != 3 or image.dtype != np.uint8 or 0 in image.shape:
            raise ValueError(f"expected an (H, W, 3) uint8 image, got {image.shape} {image.dtype}")
        clip = self._model.preset.clip
        clip_image, clip_frame = frames.image_to_clip(image, clip.image_size, clip.centred)
        sam_image = frames.image_to_sam(image, self._sam_side)
        return PreparedImage(self._pinned(clip_image), self._pinned(sam_image), clip_frame)

    def encode(self, images: Sequence[PreparedImage]) -> list[ImageEmbedding]:
        """Embeddings of images, in one pass; in several if the device has too little memory for that.

        Raises:
            torch.OutOfMemoryError: one image alone is too much.
        """
        return in_halves(self._encode, images) if images else []

    def encode_views(self, image: UInt8Image, windows: Sequence[Window]) -> list[ImageEmbedding]:
        """Encodes views of an image by SAM alone, in their own frames; see `Predictor.embed_views`."""
        found: list[ImageEmbedding] = []
        for first in range(0, len(windows), VIEWS_TOGETHER):
            found += in_halves(partial(self._encode_views, image), windows[first : first + VIEWS_TOGETHER])
        return found

    def _encode(self, images: Sequence[PreparedImage]) -> list[ImageEmbedding]:
        clip_images = torch.stack([image.clip_image for image in images])
        sam_images = torch.stack([image.sam_image for image in images])
        embeddings, features = self._on_all_cores(partial(self._run, clip_images, sam_images))
        return [
            ImageEmbedding(image.clip_frame.original_hw, embedding, patches, image.clip_frame)
            for image, embedding, patches in zip(images, _rows(embeddings), _rows(features), strict=True)
        ]

    def _encode_views(self, image: UInt8Image, windows: Sequence[Window]) -> list[ImageEmbedding]:
        views = torch.stack([view_to_sam(image, window, self._sam_side) for window in windows])
        embeddings = self._on_all_cores(partial(self._run_sam, views))
        return list(map(self._view, windows, _rows(embeddings)))

    def _view(self, window: Window, image_embedding: Tensor) -> ImageEmbedding:
        side, width = self._model.preset.clip.image_size, self._model.preset.clip.embed_dim
        frame = ClipFrame(window.hw, (side, side), 0, 0, side)
        no_features = torch.zeros(1, 0, width, device=self._device)
        return ImageEmbedding(window.hw, image_embedding, no_features, frame)

    @torch.inference_mode()
    def _run(self, clip_images: Tensor, sam_images: Tensor) -> tuple[Tensor, Tensor]:
        """SAM's image embeddings, (B, C, h, w), and CLIP's patch features, (B, G*G, D)."""
        clip_images = clip_images.to(self._device, non_blocking=True)
        return self._run_sam(sam_images), self._model.encode_image(clip_images)

    @torch.inference_mode()
    def _run_sam(self, sam_images: Tensor) -> Tensor:
        """SAM's image embeddings, (B, C, h, w)."""
        with computing_in(self._precision, self._device):
            image_embeddings: Tensor = self._image_encoder(sam_images.to(self._device, non_blocking=True))
        return image_embeddings.float()

    def _on_all_cores(self, work: Callable[[], Answer]) -> Answer:
        return work() if self._device.type != "cpu" else self._cores.run(work)

    def _pinned(self, tensor: Tensor) -> Tensor:
        """In page-locked memory, from which a GPU copies without holding up the thread."""
        return tensor.pin_memory() if self._device.type == "cuda" else tensor


def _rows(batch: Tensor) -> list[Tensor]:
    """(1, ...) rows of a batch, each in memory of its own: one that is kept would keep them all."""
    return [batch] if len(batch) == 1 else [row.clone() for row in torch.split(batch, 1)]
