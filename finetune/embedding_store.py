"""SAM's image embeddings for training: computed once, and kept on disk as the backend keeps its own."""

from __future__ import annotations

import hashlib
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sspsam import frames
from sspsam.embedding_files import EmbeddingFiles, digest_of_modules

NAME = "image_embedding"


class EmbeddingStore:
    """Looks embeddings up, or makes and keeps them.

    One embedding of ViT-H takes 2 MiB; a mirrored picture is another picture.
    """

    def __init__(
        self, folder: Path | None, image_encoder: nn.Module, side: int, device: torch.device
    ) -> None:
        """Opens a store.

        Args:
            folder: Where embeddings are kept, in a folder of their encoder's own; None keeps nothing.
            image_encoder: SAM's, (B, 3, S, S) to (B, C, h, w).
            side: S, px.
            device: Of the encoder.
        """
        self.encoder = image_encoder
        self.side = side
        self.device = device
        self.files = None if folder is None else EmbeddingFiles(folder, digest_of_modules(image_encoder))

    def get(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """The embedding of an (H, W, 3) RGB picture: (C, h, w) float16 on the CPU."""
        kept = None if self.files is None else find_embedding(self.files, image)
        return self.make(image) if kept is None else kept

    @torch.no_grad()
    def make(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """Encodes a picture, and keeps what comes out."""
        pixels = frames.image_to_sam(image, self.side)[None].to(self.device)
        embedding: Tensor = self.encoder(pixels)[0].half().cpu()
        if self.files is not None:
            self.files.keep(digest_of_image(image), {NAME: embedding})
        return embedding


def find_embedding(files: EmbeddingFiles, image: npt.NDArray[np.uint8]) -> Tensor | None:
    """What is kept for an (H, W, 3) RGB picture: (C, h, w) float16; None where nothing readable is."""
    tensors = files.find(digest_of_image(image))
    return None if tensors is None else tensors.get(NAME)


def digest_of_image(image: npt.NDArray[np.uint8]) -> str:
    """Hex sha256 of a picture's pixels and size."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()
