"""Inputs of the CLIP stage, in addition to test_train."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from finetune.data.stickers.dataset import StickerDataset
from finetune.training.config import TrainConfig
from finetune.training.stages.pretrain_clip import CROP_SHARE, CLIPStage
from sspsam.modeling.model import build_model

STEPS = 10
FIRST_OF_SCENES = int(STEPS * CROP_SHARE)


@pytest.fixture
def stage(tmp_path: Path) -> CLIPStage:
    torch.manual_seed(0)
    config = TrainConfig(
        preset="ssp-sam-test", stage="clip", output_dir=tmp_path, steps=STEPS, batch_size=48, device="cpu"
    )
    return CLIPStage(build_model("ssp-sam-test").clip, config, StickerDataset("train", 1))


def test_crops_come_first_and_have_no_colours(stage: CLIPStage) -> None:
    crops, scenes = stage.loss(FIRST_OF_SCENES - 1), stage.loss(FIRST_OF_SCENES)
    assert crops.keys() - scenes.keys() == {"image"}
    assert scenes.keys() - crops.keys() == {"colour"}


@pytest.mark.slow
def test_colours_are_learned_from_what_patches_show(stage: CLIPStage) -> None:
    """The same scene over and over: its colours are soon known, by heart."""
    optimizer = torch.optim.Adam(stage.parameters(), lr=1e-2)
    losses = []
    for _ in range(12):
        optimizer.zero_grad()
        term = stage.loss(FIRST_OF_SCENES)["colour"]
        term.backward()
        optimizer.step()
        losses.append(term.item())
    assert losses[-1] < 0.8 * losses[0]
