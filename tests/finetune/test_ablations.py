"""Ablations train from scratch, by the preset's name alone."""

from __future__ import annotations

from pathlib import Path

import pytest

from finetune.config import make_config
from finetune.train import train
from sspsam import build_model
from sspsam.checkpoints import load_trainable, read_tensors
from sspsam.presets import ABLATIONS


@pytest.mark.parametrize("part", ABLATIONS)
def test_training_an_ablation(part: str, tmp_path: Path) -> None:
    preset = f"ssp-sam-test-without-{part}"
    config = make_config({
        "preset": preset, "output_dir": tmp_path, "data": "stickers/train?count=4&nouns=first&families=noun",
        "steps": 2, "batch_size": 4, "window": 16, "target_size": 64, "from_scratch": True, "device": "cpu",
    })  # fmt: skip
    result = train(config)
    assert ("l1" in result.metrics) == (part != "rec-head")
    load_trainable(build_model(preset), read_tensors(result.weights))
