"""Cache of SAM's image embeddings for training, in the backend's file format."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sspsam.caching.embedding_files import EmbeddingFiles, digest_of_modules
from sspsam.images import frames

NAME = "image_embedding"


class EmbeddingStore:
    """Returns cached embeddings, or computes and stores them.

    An embedding of ViT-H takes 2 MiB; a mirrored image counts as another image.
    """

    def __init__(
        self, folder: Path | None, image_encoder: nn.Module, side: int, device: torch.device
    ) -> None:
        """Opens a store.

        Args:
            folder: Cache folder, with a subfolder per encoder; None disables the cache.
            image_encoder: SAM's, (B, 3, S, S) to (B, C, h, w).
            side: S, px.
            device: Of the encoder.
        """
        self.encoder = image_encoder
        self.side = side
        self.device = device
        self.files = None if folder is None else EmbeddingFiles(folder, digest_of_modules(image_encoder))

    def get(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """The embedding of an (H, W, 3) RGB image: (C, h, w) float16 on the CPU."""
        kept = None if self.files is None else find_embedding(self.files, image)
        return self.make(image) if kept is None else kept

    @torch.no_grad()
    def make(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """Encodes an image and stores the embedding."""
        pixels = frames.image_to_sam(image, self.side)[None].to(self.device)
        embedding: Tensor = self.encoder(pixels)[0].half().cpu()
        if self.files is not None:
            self.files.keep(digest_of_image(image), {NAME: embedding})
        return embedding


def find_embedding(files: EmbeddingFiles, image: npt.NDArray[np.uint8]) -> Tensor | None:
    """The cached embedding of an (H, W, 3) RGB image: (C, h, w) float16; None if missing or unreadable."""
    tensors = files.find(digest_of_image(image))
    return None if tensors is None else tensors.get(NAME)


def digest_of_image(image: npt.NDArray[np.uint8]) -> str:
    """Hex sha256 of an image's pixels and size."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
