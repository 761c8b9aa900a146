"""The text tower of a model trained from scratch: when it is trained, and which tensors are stored."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from finetune.training.config import ConfigError, TrainConfig
from finetune.training.train import IMAGE_ENCODER_PREFIX, train, write_bundle
from sspsam import Predictor
from sspsam.checkpoints.load import read_tensors, write_tensors
from sspsam.modeling.clip import CLIPTowers
from sspsam.presets import get_preset


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        preset="ssp-sam-test", output_dir=tmp_path / "run", data="stickers/train?count=4&nouns=first",
        text_learning_rate=1e-3, steps=4, batch_size=4, target_size=64, learning_rate=1e-4, warmup_steps=2,
        checkpoint_every=2, device="cpu",
    )  # fmt: skip


def test_the_text_tower_is_all_that_sentences_go_through() -> None:
    names = CLIPTowers(get_preset("ssp-sam-test").clip).text_tower().keys()
    assert {"towers.token_embedding.weight", "towers.positional_embedding", "towers.text_projection"} <= names
    assert not [name for name in names if "visual" in name or "logit_scale" in name]


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["rec", "ssp"])
def test_with_a_rate_the_text_tower_learns(config: TrainConfig, stage: str) -> None:
    config = dataclasses.replace(config, stage=stage)
    later = dataclasses.replace(config, output_dir=config.output_dir / "later", steps=8)
    first, second = read_tensors(train(config).weights), read_tensors(train(later).weights)
    learned = [name for name in first if name.startswith("clip.")]
    assert "clip.towers.ln_final.weight" in learned
    assert not [name for name in learned if "visual" in name]
    changed = [name for name in learned if not torch.equal(first[name], second[name])]
    assert set(learned) - set(changed) <= {"clip.towers.positional_embedding"}


@pytest.mark.slow
def test_without_a_rate_it_stays_and_is_no_part_of_the_result(config: TrainConfig) -> None:
    state = read_tensors(train(dataclasses.replace(config, text_learning_rate=0.0, steps=1)).weights)
    assert not [name for name in state if name.startswith("clip.")]


@pytest.mark.slow
def test_what_it_learned_is_in_the_bundle(config: TrainConfig, tmp_path: Path) -> None:
    rest = Predictor.from_preset("ssp-sam-test", "cpu")
    parts = {"": rest.model, IMAGE_ENCODER_PREFIX: rest.image_encoder}
    everything = {prefix + name: t for prefix, part in parts.items() for name, t in part.state_dict().items()}
    write_tensors(tmp_path / "everything.safetensors", everything)
    learned = train(config).weights
    write_bundle(
        config.preset, [tmp_path / "everything.safetensors", learned], tmp_path / "bundle.safetensors"
    )
    name = "clip.towers.ln_final.weight"
    loaded = Predictor.from_preset(config.preset, "cpu", weights=tmp_path / "bundle.safetensors")
    assert torch.equal(loaded.model.state_dict()[name], read_tensors(learned)[name].half().float())
    assert not torch.equal(loaded.model.state_dict()[name], everything[name].half().float())


@pytest.mark.slow
def test_a_stopped_training_of_it_ends_as_an_unbroken_one(config: TrainConfig, tmp_path: Path) -> None:
    broken = dataclasses.replace(config, output_dir=tmp_path / "broken")

    class Killed(Exception):
        pass

    def kill(step: int, means: dict[str, float]) -> None:
        if step == 3:
            raise Killed

    with pytest.raises(Killed):
        train(broken, kill)
    expected, actual = read_tensors(train(config).weights), read_tensors(train(broken).weights)
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


def test_other_stages_have_their_own_rate(config: TrainConfig) -> None:
    with pytest.raises(ConfigError, match="stage clip cannot train the text tower alone"):
        dataclasses.replace(config, stage="clip")
