"""The paper's recipes: they parse, all names exist, and the values are the paper's."""

from __future__ import annotations

import math
import re
from dataclasses import fields
from pathlib import Path

import pytest

from finetune.data.dataset import JOINT, PUBLISHED
from finetune.training.config import RECIPES_FOLDER, ConfigError, TrainConfig, read_config
from finetune.training.losses import LossWeights

RECIPES = sorted(RECIPES_FOLDER.glob("*.toml"))
PUBLISHED_TRAININGS = {"pretrain", "refcoco", "refcoco-plus", "refcocog-umd", "refclef", "grefcoco"}
EPOCHS = {
    "pretrain": 20,
    "refcoco": 80,
    "refcoco-plus": 100,
    "refcocog-umd": 100,
    "refclef": 100,
    "grefcoco": 100,
}
"""The paper's; where it names none, those of its authors' configs."""
PHRASES = {"refcoco": 120_624, "refcoco-plus": 120_191, "refcocog-umd": 80_512, "refclef": 54_127}
SAMPLES = {
    "pretrain": sum(PHRASES.values()),
    "refcoco": 42_404,
    "refcoco-plus": 42_278,
    "refcocog-umd": 42_226,
    "refclef": PHRASES["refclef"],
    "grefcoco": 259_859 - 16_870 - 18_712 - 14_933,
}
"""What an epoch goes through: objects where their number is published, else phrases."""
PROCESSES, BATCH = 8, 8
WARMUP_EPOCHS, FROZEN_EPOCHS = 5, 20


def test_every_published_training_has_its_recipe() -> None:
    assert {path.stem.removesuffix("-224") for path in RECIPES} == PUBLISHED_TRAININGS


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_says_what_the_paper_says(path: Path) -> None:
    config = read_config(path, {})
    assert config.batch_size == 64
    assert (config.learning_rate, config.decoder_learning_rate) == (1e-4, 1e-5)
    assert (config.weight_decay, config.max_gradient_norm, config.final_learning_rate) == (1e-4, 0.1, 1e-6)
    assert config.loss == LossWeights(dice=4, focal=4, l1=5, generalized_box_iou=2)
    assert config.random_placement
    assert config.target_size == 512
    name = path.stem.removesuffix("-224")
    per_epoch = math.ceil(math.ceil(SAMPLES[name] / PROCESSES) / BATCH)  # the last batch is kept
    assert config.steps == EPOCHS[name] * per_epoch
    comment = path.read_text().partition("preset")[0]
    assert f"{per_epoch:,} steps".replace(",", " ") in comment
    assert f"{EPOCHS[name]} epochs" in comment
    assert f"{SAMPLES[name]:,}".replace(",", " ") in comment
    if config.stage == "rec":
        assert config.warmup_steps == 0
        return
    assert config.warmup_steps == WARMUP_EPOCHS * per_epoch
    assert config.decoder_frozen_steps == FROZEN_EPOCHS * per_epoch
    assert config.init == Path("runs/pretrain-224/weights.safetensors")


@pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)
def test_a_recipe_trains_on_training_data_alone(path: Path) -> None:
    config = read_config(path, {})
    for part in config.data.split(JOINT):
        name, _, query = part.partition("?")
        family, _, split = name.strip().partition("/")
        assert family in PUBLISHED
        assert split == "train"
        held_out = query.removeprefix("without=").split(",") if query else []
        assert all(other.partition("/")[2] in ("val", "test", "testA", "testB") for other in held_out)
    if config.stage == "rec":
        assert config.data.count("without=") == 3


def test_a_recipe_opens_by_its_name_and_yields_to_settings() -> None:
    config = read_config(
        Path("refcoco-224"),
        {
            "preset": "ssp-sam-336",
            "weights": "a.safetensors,b.safetensors",
            "loss.dice": "1",
            "stream": "true",
        },
    )
    assert config.preset == "ssp-sam-336"
    assert config.weights == (Path("a.safetensors"), Path("b.safetensors"))
    assert (config.loss.dice, config.loss.focal) == (1.0, 4.0)
    alone = read_config(Path("refcoco-224"), {"init": "", "embeddings": "", "weights": "", "replay": ""})
    assert (alone.init, alone.embeddings, alone.weights, alone.replay) == (None, None, (), None)
    with pytest.raises(ConfigError, match="known recipes: grefcoco-224, pretrain-224"):
        read_config(Path("mnist"), {})
    with pytest.raises(ConfigError, match=r"stream: .*valid boolean.*'maybe'"):
        read_config(Path("refcoco-224"), {"stream": "maybe"})


def test_the_document_names_recipes_and_settings_that_exist() -> None:
    text = (RECIPES_FOLDER.parents[1] / "docs" / "training.md").read_text(encoding="utf-8")
    commands = "".join(re.findall(r"```\n(.*?)```", text, re.DOTALL)).replace("\\\n", " ")
    commands = re.sub(r".*\b(reproduce|calibrate)\b.*", "", commands)  # these name data sets
    assert set(re.findall(r"--config (\S+)", commands)) <= {path.stem for path in RECIPES}
    named = {path.stem for path in RECIPES if f"`{path.stem}`" in text}
    assert named == {path.stem for path in RECIPES}
    settings = set(re.findall(r"\b([a-z_]+)=", commands)) - {"count"}
    assert settings <= {field.name for field in fields(TrainConfig)}
    assert {"init", "weights", "accumulate", "precision"} <= settings
    assert all(f"`{name}" in text for name in PUBLISHED)
