"""SAM's image embeddings on disk: computed once, float16, named by the picture and by the encoder."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from sspsam import frames

FOLDER_DIGITS = 16
"""Hex digits of the encoder's digest that name its folder."""


class EmbeddingFiles:
    """A folder of embeddings. Processes may share it: files appear whole."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find(self, image: npt.NDArray[np.uint8]) -> Tensor | None:
        """What is kept for an (H, W, 3) RGB picture: (C, h, w) float16; None where nothing readable is."""
        try:
            array = np.load(self._path(image), allow_pickle=False)
        except (OSError, ValueError, EOFError):
            return None
        return torch.from_numpy(array) if array.dtype == np.float16 and array.ndim == 3 else None

    def keep(self, image: npt.NDArray[np.uint8], embedding: Tensor) -> None:
        """Writes the (C, h, w) float16 embedding of a picture: aside first, then moved into place."""
        path = self._path(image)
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = path.with_name(f".{path.stem}.{uuid.uuid4().hex}.npy")
        try:
            np.save(aside, embedding.numpy())
            os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)

    def _path(self, image: npt.NDArray[np.uint8]) -> Path:
        digest = digest_of_image(image)
        return self.folder / digest[:2] / f"{digest}.npy"


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
        self.files = (
            None
            if folder is None
            else EmbeddingFiles(folder / digest_of_module(image_encoder)[:FOLDER_DIGITS])
        )

    def get(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """The embedding of an (H, W, 3) RGB picture: (C, h, w) float16 on the CPU."""
        kept = None if self.files is None else self.files.find(image)
        return self.make(image) if kept is None else kept

    @torch.no_grad()
    def make(self, image: npt.NDArray[np.uint8]) -> Tensor:
        """Encodes a picture, and keeps what comes out."""
        pixels = frames.image_to_sam(image, self.side)[None].to(self.device)
        embedding: Tensor = self.encoder(pixels)[0].half().cpu()
        if self.files is not None:
            self.files.keep(image, embedding)
        return embedding


def digest_of_image(image: npt.NDArray[np.uint8]) -> str:
    """Hex sha256 of a picture's pixels and size."""
    digest = hashlib.sha256(repr(image.shape).encode())
    digest.update(np.ascontiguousarray(image).data)
    return digest.hexdigest()


def digest_of_module(module: nn.Module) -> str:
    """Hex sha256 of a module's tensors and their names."""
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()
