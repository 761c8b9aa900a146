"""Ablations train from scratch by preset name, on converted CLIP and SAM."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.training.config import make_config
from finetune.training.train import train
from sspsam import build_model
from sspsam.checkpoints.convert import convert
from sspsam.checkpoints.load import load_trainable, read_tensors
from sspsam.presets import ABLATIONS
from tests.sspsam.published_files import clip_towers, golden_bundle, sam_state


@pytest.fixture(scope="module")
def frozen(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What `sspsam weights convert --for-training` writes."""
    folder, bundle = tmp_path_factory.mktemp("frozen"), golden_bundle()
    torch.save(clip_towers(bundle).state_dict(), folder / "clip.pt")
    torch.save(sam_state(bundle), folder / "sam.pth")
    out = folder / "frozen.safetensors"
    convert([folder / "clip.pt", folder / "sam.pth"], "ssp-sam-test", out, for_training=True)
    return out


@pytest.mark.slow
@pytest.mark.parametrize("part", ABLATIONS)
def test_training_an_ablation(part: str, frozen: Path, tmp_path: Path) -> None:
    preset = f"ssp-sam-test-without-{part}"
    config = make_config({
        "preset": preset, "output_dir": tmp_path, "data": "stickers/train?count=4&nouns=first&families=noun",
        "weights": (frozen,), "steps": 2, "batch_size": 4, "window": 16, "target_size": 64,
        "from_scratch": True, "device": "cpu",
    })  # fmt: skip
    result = train(config)
    assert ("l1" in result.metrics) == (part != "rec-head")
    load_trainable(build_model(preset), read_tensors(result.weights))
