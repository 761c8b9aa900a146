"""Image embeddings on disk: computed once, reused, never mixed up between images or encoders."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from finetune.training.batches.embedding_store import EmbeddingStore, digest_of_image

SIDE = 8
CPU = torch.device("cpu")


class CountingEncoder(nn.Module):
    """Takes the mean of each quarter, and counts how often it is asked."""

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))
        self.asked = 0

    def forward(self, pixels: Tensor) -> Tensor:
        self.asked += 1
        pooled: Tensor = nn.functional.adaptive_avg_pool2d(pixels, 2) * self.scale
        return pooled


def picture(seed: int = 0, height: int = 6, width: int = 8) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def store_in(folder: Path | None, encoder: nn.Module) -> EmbeddingStore:
    return EmbeddingStore(folder, encoder, SIDE, CPU)


def test_each_picture_is_encoded_once_even_by_later_runs(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    first = store_in(tmp_path, encoder).get(picture())
    again = store_in(tmp_path, encoder).get(picture())
    assert encoder.asked == 1
    assert first.dtype == torch.float16
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert first.shape == (3, 2, 2)


def test_other_pictures_and_mirrored_ones_are_others(tmp_path: Path) -> None:
    encoder = CountingEncoder()
    store = store_in(tmp_path, encoder)
    for image in (picture(0), picture(1), picture(0)[:, ::-1], picture(0).reshape(8, 6, 3)):
        store.get(image)
    assert encoder.asked == 4
    assert digest_of_image(picture(0)) == digest_of_image(picture(0).copy())


def test_another_encoder_has_embeddings_of_its_own(tmp_path: Path) -> None:
    one, other = CountingEncoder(), CountingEncoder(scale=2.0)
    kept = store_in(tmp_path, one).get(picture())
    torch.testing.assert_close(store_in(tmp_path, other).get(picture()), 2 * kept, atol=1e-2, rtol=1e-2)
    assert (one.asked, other.asked) == (1, 1)


@pytest.mark.parametrize("content", [b"", b"no array", b"\x08\0\0\0\0\0\0\0{}      "])
def test_a_damaged_file_is_made_again(tmp_path: Path, content: bytes) -> None:
    encoder = CountingEncoder()
    kept = store_in(tmp_path, encoder).get(picture())
    [path] = tmp_path.rglob("*.safetensors")
    path.write_bytes(content)
    torch.testing.assert_close(store_in(tmp_path, encoder).get(picture()), kept, rtol=0, atol=0)
    assert encoder.asked == 2
    assert [file.name for file in tmp_path.rglob("*.safetensors")] == [path.name], (
        "nothing half-written is left"
    )


def test_without_a_folder_nothing_is_kept() -> None:
    encoder = CountingEncoder()
    store = store_in(None, encoder)
    store.get(picture())
    store.get(picture())
    assert encoder.asked == 2
