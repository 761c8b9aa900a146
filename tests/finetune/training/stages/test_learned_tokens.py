"""New words: which embeddings are trained, and which stay unchanged."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch

from finetune.data.sample import Sample
from finetune.data.stickers.dataset import StickerDataset
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.stages.ssp import SSPStage
from finetune.training.train import train
from sspsam import Predictor
from sspsam.checkpoints.load import read_tensors
from sspsam.phrases import token_ids, tokenize


def config_in(folder: Path) -> TrainConfig:
    return TrainConfig(
        preset="ssp-sam-test", output_dir=folder,
        data="stickers/train?count=3&nouns=koala,guitar&families=noun",
        replay="stickers/train?count=6&nouns=first&families=noun", word_learning_rate=1e-2,
        steps=6, batch_size=4, target_size=64, learning_rate=1e-4, warmup_steps=2, checkpoint_every=3,
        device="cpu",
    )  # fmt: skip


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return config_in(tmp_path / "run")


@pytest.fixture(scope="module")
def learned(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of the training that the configuration describes."""
    return train(config_in(tmp_path_factory.mktemp("learned"))).weights


@pytest.mark.slow
def test_words_that_replay_does_not_say_learn(learned: Path) -> None:
    state = read_tensors(learned)
    tokens = state["learned_words.tokens"].tolist()
    assert set(token_ids("koala") + token_ids("guitar")) & set(tokens)
    assert not set(tokens) & {0, *token_ids("the"), *token_ids("dog"), *token_ids(".")}
    assert (state["learned_words.offsets"].abs().sum(dim=1) > 0).all()


class Listed(list[Sample]):
    """Samples that know their phrases."""

    def phrases(self) -> list[str]:
        return [sample.phrase for sample in self]


def test_words_after_the_first_window_are_learned_or_known(config: TrainConfig) -> None:
    sample = StickerDataset("train", count=1, families=["noun"], phrases_per_scene=1)[0]
    data, replay = (
        Listed(dataclasses.replace(sample, phrase=phrase) for phrase in ("dog", "dog", "dog", *words))
        for words in (["koala", "guitar"], ["umbrella", "guitar"])
    )
    config = dataclasses.replace(config, window=2, batch_size=2)
    stage = SSPStage(Predictor.from_preset("ssp-sam-test", "cpu"), config, data, replay)
    learned = set(stage.model.learned_words.tokens.tolist())
    assert learned == set(token_ids("koala")) - set(token_ids("umbrella guitar dog"))


@pytest.mark.slow
def test_phrases_of_known_words_mean_what_they_meant(learned: Path) -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    known, new = tokenize(["the dog on the left"]), tokenize(["the koala"])
    before = [predictor.model.encode_text(tokens).sentence for tokens in (known, new)]
    predictor.load_trainable(read_tensors(learned))
    after = [predictor.model.encode_text(tokens).sentence for tokens in (known, new)]
    assert torch.equal(after[0], before[0])
    assert not torch.equal(after[1], before[1])


@pytest.mark.slow
def test_without_a_rate_no_word_learns(config: TrainConfig) -> None:
    state = read_tensors(train(dataclasses.replace(config, word_learning_rate=0.0, steps=1)).weights)
    assert not [name for name in state if name.startswith("learned_words.")]


@pytest.mark.slow
def test_a_next_training_keeps_the_words_of_the_one_before(config: TrainConfig, learned: Path) -> None:
    before = read_tensors(learned)
    again = dataclasses.replace(
        config,
        init=learned,
        data="stickers/train?count=3&nouns=umbrella&families=noun",
    )
    after = read_tensors(train(again).weights)
    offsets = dict(zip(after["learned_words.tokens"].tolist(), after["learned_words.offsets"], strict=True))
    assert set(token_ids("umbrella")) <= offsets.keys()
    for token, offset in zip(
        before["learned_words.tokens"].tolist(), before["learned_words.offsets"], strict=True
    ):
        assert torch.equal(offsets[token], offset)


@pytest.mark.slow
def test_a_stopped_training_ends_as_an_unbroken_one(config: TrainConfig, tmp_path: Path) -> None:
    """Also where the best weights so far are kept."""
    config = dataclasses.replace(config, validation=config.data, validate_every=2)
    broken = dataclasses.replace(config, output_dir=tmp_path / "broken")

    class Killed(Exception):
        pass

    def kill(step: int, means: dict[str, float]) -> None:
        if step == 5:
            raise Killed

    with pytest.raises(Killed):
        train(broken, kill)
    expected, actual = read_tensors(train(config).weights), read_tensors(train(broken).weights)
    assert expected.keys() == actual.keys()
    assert "learned_words.offsets" in expected
    assert all(torch.equal(expected[name], actual[name]) for name in expected)


@pytest.mark.parametrize("changes", [{"replay": None}, {"stage": "rec"}, {"stream": True}])
def test_words_need_to_know_what_is_known(config: TrainConfig, changes: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match="word_learning_rate needs"):
        dataclasses.replace(config, **changes)
