"""Notes beside weights."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.data.stickers.wording.known import known_words
from sspsam import CheckpointError
from sspsam.checkpoints.bundles import packaged_weights
from sspsam.checkpoints.convert import card_path, verify_bundle
from sspsam.checkpoints.notes import (
    NO_NOTES,
    Calibration,
    WeightsNotes,
    fit_calibration,
    notes_path,
    read_notes,
    write_notes,
)
from sspsam.files import sha256_of_file


def test_notes_are_read_as_they_were_written(tmp_path: Path) -> None:
    notes = WeightsNotes(("dog", "hot dog"), ("the",), Calibration((0.0, 1.0), (0.1, 0.9)))
    write_notes(tmp_path / "weights.safetensors", notes)
    assert read_notes(tmp_path / "weights.safetensors") == notes
    assert read_notes(tmp_path / "other.safetensors") == NO_NOTES


@pytest.mark.parametrize(
    "content", ["", "[]", '{"names": 3}', '{"certainty_of_mask": {"raw": [1, 0], "iou": [0, 1]}}']
)
def test_damaged_notes_are_refused(tmp_path: Path, content: str) -> None:
    weights = tmp_path / "weights.safetensors"
    notes_path(weights).write_text(content)
    with pytest.raises(CheckpointError, match=r"weights\.json does not contain notes"):
        read_notes(weights)


def test_a_calibration_follows_the_data_and_never_decreases() -> None:
    raw = np.linspace(0, 1, 2000)
    iou = np.clip(raw**2 + np.random.default_rng(0).normal(0, 0.1, 2000), 0, 1)
    calibration = fit_calibration(raw.tolist(), iou.tolist())
    found = [calibration(value) for value in (0.1, 0.5, 0.9)]
    np.testing.assert_allclose(found, [0.04, 0.25, 0.81], atol=0.05)
    assert fit_calibration([0.1, 0.2, 0.3], [0.9, 0.5, 0.1], knots=3)(0.2) == pytest.approx(0.5)


def test_the_packaged_notes_list_the_words_of_the_training() -> None:
    path = packaged_weights("ssp-sam-demo")
    assert path is not None
    notes = read_notes(path)
    assert (notes.names, notes.words) in [known_words(wordings=False), known_words(wordings=True)]
    assert not {"koala", "pizza", "crown"} & set(notes.names)


def test_a_converted_files_card_stays_beside_its_notes(tmp_path: Path) -> None:
    weights = tmp_path / "a.safetensors"
    weights.write_bytes(b"weights")
    card = {"preset": "ssp-sam-224", "sha256": sha256_of_file(weights), "sources": []}
    card_path(weights).write_text(json.dumps({**card, "names": ["left over"]}))
    write_notes(weights, WeightsNotes(certainty_of_mask=Calibration((0.0, 1.0), (0.2, 0.9))))
    assert verify_bundle(weights) == "good"
    assert json.loads(card_path(weights).read_text())["preset"] == "ssp-sam-224"
    assert read_notes(weights) == WeightsNotes(certainty_of_mask=Calibration((0.0, 1.0), (0.2, 0.9)))
