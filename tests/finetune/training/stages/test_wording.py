"""Distillation of template phrases into wordings."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.data.stickers.dataset import StickerDataset
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.loop import TrainingLoop
from finetune.training.stages.wording import WordingStage
from sspsam import Predictor


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        preset="ssp-sam-test", stage="wording", output_dir=tmp_path, data="stickers/train?count=2",
        steps=12, batch_size=8, learning_rate=3e-3, warmup_steps=1, max_gradient_norm=1.0, device="cpu",
    )  # fmt: skip


def stage_for(config: TrainConfig) -> WordingStage:
    predictor = Predictor.from_preset(config.preset, "cpu")
    return WordingStage(predictor, config, StickerDataset("train", count=2, size_range=(64, 96)))


@pytest.mark.slow
def test_wordings_approach_their_templates_and_the_rest_stays(config: TrainConfig) -> None:
    stage = stage_for(config)
    before = {name: value.clone() for name, value in stage.model.state_dict().items()}
    start = float(stage.loss(99)["total"].detach())
    TrainingLoop(stage, config, stage.device).run()
    assert float(stage.loss(99)["total"].detach()) < start
    changed = {
        name for name, value in stage.model.state_dict().items() if not torch.equal(before[name], value)
    }
    assert changed
    assert changed <= set(stage.state())
    assert all(name.startswith(("clip.towers.", "linguistic_adapter.")) for name in changed)
    assert not any("visual" in name for name in changed)


def test_a_template_phrase_alone_costs_nothing_at_the_start(
    config: TrainConfig, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = stage_for(config)
    monkeypatch.setattr("finetune.training.stages.wording.SAME_SHARE", 1.0)
    assert float(stage.loss(0)["total"].detach()) == pytest.approx(0, abs=1e-5)


def test_a_preset_without_attention_to_words_is_refused(config: TrainConfig) -> None:
    config = replace(config, preset="ssp-sam-test-without-visual-adapter")
    with pytest.raises(ConfigError, match="attends to words"):
        stage_for(config)
