"""Early stopping: the best weights are kept; a resumed run stops at the same step as an uninterrupted one."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from finetune.data.dataset import open_dataset
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.loop import CHECKPOINT_NAME, LOG_NAME, TrainingLoop, read_log
from finetune.training.stages.ssp import SSPStage
from finetune.training.stopping import EarlyStopping
from finetune.training.train import train
from sspsam import Predictor
from sspsam.checkpoints.load import read_tensors
from tests.finetune.training.test_loop import config_for

VALIDATION = "stickers/val?count=3&phrases=2&families=noun,none"


def validated(folder: Path, **settings: Any) -> TrainConfig:
    return config_for(folder, **({"validation": VALIDATION, "validate_every": 2} | settings))


def loop_for(config: TrainConfig) -> TrainingLoop:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    validation = None if config.validation is None else open_dataset(config.validation)
    stage = SSPStage(predictor, config, open_dataset(config.data), validation=validation)
    return TrainingLoop(stage, config, predictor.device)


def validation_losses(folder: Path) -> dict[int, float]:
    return {
        line["step"]: line["validation total"]
        for line in read_log(folder / LOG_NAME)
        if "validation total" in line
    }


def test_the_lowest_loss_is_kept_and_patience_counts_from_it() -> None:
    stopping = EarlyStopping(patience=2)
    for step, loss, over in [(0, 3.0, False), (2, 2.0, False), (4, 2.5, False), (6, 2.0, True)]:
        stopping.note(step, loss, {"w": torch.full((1,), loss)})
        assert stopping.is_over is over
    assert (stopping.step, stopping.loss, stopping.weights) == (2, 2.0, {"w": torch.tensor([2.0])})


def test_the_kept_weights_are_a_copy() -> None:
    stopping, weight = EarlyStopping(patience=0), torch.ones(1)
    stopping.note(0, 1.0, {"w": weight})
    weight += 1
    assert stopping.weights == {"w": torch.ones(1)}


def test_without_patience_it_never_stops_and_a_loss_that_is_not_a_number_is_no_better() -> None:
    stopping = EarlyStopping(patience=0)
    for step, loss in enumerate([1.0, 2.0, math.nan, 3.0]):
        stopping.note(step, loss, {})
    assert not stopping.is_over
    assert (stopping.step, stopping.waited) == (0, 3)


def test_what_is_measured_is_the_loss_of_the_whole_validation_set(tmp_path: Path) -> None:
    """Also where it goes through the model in several batches, some of them without a target."""
    stage = loop_for(validated(tmp_path)).stage
    assert isinstance(stage, SSPStage)
    with torch.no_grad():
        whole = stage.validate(rows=100)
        for rows in (1, 4):
            parts = stage.validate(rows)
            assert parts.keys() == whole.keys()
            for name, term in whole.items():
                torch.testing.assert_close(parts[name], term, rtol=1e-4, atol=1e-5)


@pytest.mark.slow
def test_it_stops_when_nothing_is_better_any_more(tmp_path: Path) -> None:
    """With a rate that spoils the model, that is soon."""
    config = validated(
        tmp_path, learning_rate=0.1, decoder_learning_rate=0.1, warmup_steps=0, steps=30, patience=2,
        checkpoint_every=100,
    )  # fmt: skip
    result = train(config)
    measured = validation_losses(tmp_path)
    assert result.steps < 30
    assert list(measured) == list(range(0, result.steps + 1, 2))
    assert min(measured, key=lambda step: measured[step]) == result.best_step == result.steps - 4
    assert result.metrics["validation total"] == pytest.approx(measured[result.steps])


@pytest.mark.slow
def test_the_weights_left_behind_have_the_lowest_loss(tmp_path: Path) -> None:
    result = train(validated(tmp_path / "run", steps=12, learning_rate=3e-3, decoder_learning_rate=3e-3))
    measured = validation_losses(tmp_path / "run")
    assert result.best_step is not None
    assert result.best_step > 0, "it learns something"
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    predictor.load_trainable(read_tensors(result.weights))
    config = validated(tmp_path / "other")
    stage = SSPStage(predictor, config, open_dataset(config.data), validation=open_dataset(VALIDATION))
    with torch.no_grad():
        loss = float(stage.validate(8)["total"])
    assert loss == pytest.approx(min(measured.values()), abs=1e-4)


@pytest.mark.slow
def test_a_run_that_was_cut_short_stops_where_an_unbroken_one_does(tmp_path: Path) -> None:
    class Killed(Exception):
        pass

    def kill(step: int, _means: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    settings: dict[str, Any] = {
        "steps": 40,
        "patience": 2,
        "learning_rate": 0.03,
        "decoder_learning_rate": 0.03,
    }
    unbroken = train(validated(tmp_path / "unbroken", **settings))
    assert unbroken.steps < 40, "or the test shows nothing"
    with pytest.raises(Killed):
        train(validated(tmp_path / "broken", **settings), kill)
    resumed = train(validated(tmp_path / "broken", **settings))
    assert (resumed.steps, resumed.best_step) == (unbroken.steps, unbroken.best_step)
    one, other = read_tensors(unbroken.weights), read_tensors(resumed.weights)
    assert all(torch.equal(one[name], other[name]) for name in one)
    again = train(validated(tmp_path / "broken", **settings))
    assert (again.steps, again.best_step) == (unbroken.steps, unbroken.best_step)
    assert all(torch.equal(tensor, one[name]) for name, tensor in read_tensors(again.weights).items())


@pytest.mark.slow
def test_measuring_changes_no_step(tmp_path: Path) -> None:
    """The weights of the checkpoint are those of a training without validation."""
    train(validated(tmp_path / "looked"))
    train(config_for(tmp_path / "blind"))
    states = [
        torch.load(tmp_path / name / CHECKPOINT_NAME, weights_only=True)["module"]
        for name in ("looked", "blind")
    ]
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[1])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"patience": 2, "validation": None}, "patience needs a validation set"),
        ({"patience": -1}, "patience at least 0"),
        ({"validate_every": 0}, "validate_every must be at least 1"),
        ({"stage": "rec"}, "stage rec cannot evaluate a validation set"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    tmp_path: Path, settings: dict[str, Any], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        validated(tmp_path, **settings)
