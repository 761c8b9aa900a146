"""Training in several processes: the same result as in one, and no process left after a failure."""

from __future__ import annotations

from pathlib import Path

import psutil
import pytest
import torch

from finetune.training.launch import TrainingProcessError, train_together
from finetune.training.train import train
from sspsam.checkpoints.load import read_tensors
from tests.finetune.training.test_stopping import validated

pytestmark = pytest.mark.slow


def test_two_processes_learn_and_stop_as_one_does(tmp_path: Path) -> None:
    settings = {"steps": 22, "patience": 20, "validate_every": 4, "learning_rate": 1e-4}
    alone = train(validated(tmp_path / "one", decoder_learning_rate=1e-4, **settings))
    told: list[int] = []
    config = validated(tmp_path / "two", decoder_learning_rate=1e-4, **settings)
    together = train_together(config, 2, lambda step, _means: told.append(step))
    assert together.weights == tmp_path / "two" / alone.weights.name
    assert (together.steps, together.best_step) == (alone.steps, alone.best_step)
    assert together.metrics == pytest.approx(alone.metrics, rel=1e-2)
    assert told[-1] == 22
    one, two = read_tensors(alone.weights), read_tensors(together.weights)
    assert one.keys() == two.keys()
    changes = torch.cat([(one[name] - two[name]).abs().flatten() for name in one])
    assert float(changes.mean()) < 1e-4


def test_two_processes_learn_new_words_as_one_does(tmp_path: Path) -> None:
    """Where a batch's share of one of them may hold none of these words."""
    words = {
        "data": "stickers/train?count=2&nouns=koala&families=noun",
        "replay": "stickers/train?count=4&nouns=first&families=noun",
        "word_learning_rate": 1e-2, "batch_size": 4, "replay_fraction": 0.75, "steps": 4,
    }  # fmt: skip
    alone = read_tensors(train(validated(tmp_path / "one", **words)).weights)
    together = read_tensors(train_together(validated(tmp_path / "two", **words), 2).weights)
    assert torch.equal(alone["learned_words.tokens"], together["learned_words.tokens"])
    offsets = [state["learned_words.offsets"] for state in (alone, together)]
    assert float(offsets[0].abs().max()) > 1e-3
    assert float((offsets[0] - offsets[1]).abs().mean()) < 1e-4


def test_when_one_fails_all_end_and_it_is_said(tmp_path: Path) -> None:
    before = {child.pid for child in psutil.Process().children(recursive=True)}
    config = validated(tmp_path, data="stickers/train?count=4&nouns=nothing-of-that-name")
    with pytest.raises(TrainingProcessError, match=r"process \d of 2 of the training ended with status 1"):
        train_together(config, 2)
    assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
