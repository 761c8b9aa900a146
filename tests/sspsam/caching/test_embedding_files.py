"""Embeddings on disk: found by any process, bounded by use, never read damaged or for other encoders."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

import sspsam
from sspsam.caching.embedding_files import EmbeddingFiles, digest_of_modules

ENCODERS = "ab" * 32
KEY = "0c" * 32


def tensors(size: int = 100) -> dict[str, torch.Tensor]:
    return {"image_embedding": torch.arange(size).half(), "frame": torch.tensor([3, 4])}


def files_in(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_what_one_process_keeps_another_finds(tmp_path: Path) -> None:
    EmbeddingFiles(tmp_path, ENCODERS).keep(KEY, tensors())

    found = EmbeddingFiles(tmp_path, ENCODERS).find(KEY)

    assert found is not None
    assert found.keys() == tensors().keys()
    assert all(torch.equal(found[name], value) for name, value in tensors().items())
    assert len(files_in(tmp_path)) == 1, "nothing half-written is left"


def test_other_pictures_and_other_encoders_are_others(tmp_path: Path) -> None:
    EmbeddingFiles(tmp_path, ENCODERS).keep(KEY, tensors())

    assert EmbeddingFiles(tmp_path, ENCODERS).find("0d" * 32) is None
    assert EmbeddingFiles(tmp_path, "cd" * 32).find(KEY) is None


def _flip_a_bit(data: bytes) -> bytes:
    return data[:-1] + bytes([data[-1] ^ 1])


@pytest.mark.parametrize(
    "damage",
    [lambda data: b"", lambda data: data[:-1], lambda data: b"no embedding at all", _flip_a_bit],
    ids=["empty", "cut", "something else", "one bit"],
)
def test_a_damaged_file_is_removed(tmp_path: Path, damage: object) -> None:
    files = EmbeddingFiles(tmp_path, ENCODERS)
    files.keep(KEY, tensors())
    path = files.path(KEY)
    path.write_bytes(damage(path.read_bytes()))

    assert files.find(KEY) is None
    assert not path.exists()
    files.keep(KEY, tensors())
    assert files.find(KEY) is not None


def test_a_file_under_anothers_name_is_not_taken_for_it(tmp_path: Path) -> None:
    files = EmbeddingFiles(tmp_path, ENCODERS)
    files.keep(KEY, tensors())
    os.replace(files.path(KEY), files.path(KEY).with_name(f"0c{'1' * 62}.safetensors"))

    assert files.find(f"0c{'1' * 62}") is None


def test_what_was_used_longest_ago_goes_first(tmp_path: Path) -> None:
    files = EmbeddingFiles(tmp_path, ENCODERS)
    files.keep(f"{0:064x}", tensors())
    size = files.path(f"{0:064x}").stat().st_size
    bounded = EmbeddingFiles(tmp_path, "cd" * 32, max_bytes=10 * size)
    for number in range(9):
        bounded.keep(f"{number:064x}", tensors())
        os.utime(bounded.path(f"{number:064x}"), (number + 1, number + 1))
    assert bounded.find(f"{0:064x}") is not None  # used: the newest from now on
    os.utime(files.path(f"{0:064x}"), (0, 0))

    bounded.keep(f"{9:064x}", tensors())

    left = {number for number in range(10) if bounded.path(f"{number:064x}").exists()}
    assert not files.path(f"{0:064x}").exists(), "what other encoders left counts, too"
    assert 0 in left
    assert 9 in left
    assert 1 not in left
    assert sum(path.stat().st_size for path in files_in(tmp_path)) <= 10 * size


def test_a_folder_that_cannot_be_written_only_keeps_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    files = EmbeddingFiles(tmp_path / "file", ENCODERS)

    files.keep(KEY, tensors())

    assert files.find(KEY) is None


def test_any_weight_of_a_module_is_in_its_digest() -> None:
    layer = nn.Linear(3, 4)
    before = digest_of_modules(layer)
    assert digest_of_modules(layer, also="224") != before
    with torch.no_grad():
        layer.bias[2] += 1e-6

    assert digest_of_modules(layer) != before


def test_a_picture_asked_from_disk_has_the_same_answers(tmp_path: Path) -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    embedding = predictor.embed(image)
    files = EmbeddingFiles(tmp_path, predictor.encoders_digest)
    files.keep(KEY, embedding.to_tensors())

    kept = files.find(KEY)
    assert kept is not None
    again = predictor.from_tensors(kept)

    assert again.clip_frame == embedding.clip_frame
    torch.testing.assert_close(again.image_embedding, embedding.image_embedding, atol=2e-3, rtol=2e-3)
    [one], [other] = (predictor.predict(which, ["the dog"]) for which in (embedding, again))
    assert (one.mask == other.mask).mean() > 0.99
    assert one.box_xyxy == pytest.approx(other.box_xyxy, abs=0.1)


def test_encoders_count_and_fine_tuned_weights_do_not() -> None:
    predictor = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    before = predictor.encoders_digest

    def digest() -> str:
        del predictor.encoders_digest
        return predictor.encoders_digest

    predictor.load_trainable({key: value * 2 for key, value in predictor.trainable_state().items()})
    assert digest() == before
    with torch.no_grad():
        next(predictor.model.clip.towers.visual.parameters()).add_(1e-4)
    assert (changed := digest()) != before
    with torch.no_grad():
        next(predictor.image_encoder.parameters()).add_(1e-4)
    assert digest() not in (before, changed)
