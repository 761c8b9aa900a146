"""Learned tokens: their effect, the unchanged rest, and refused words."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

import sspsam
from sspsam.checkpoints.load import (
    CheckpointError,
    learned_words,
    load_trainable,
    read_tensors,
    trainable_state,
    write_tensors,
)
from sspsam.phrases import token_ids, tokenize

PRESET = "ssp-sam-test"
CPU = torch.device("cpu")


@pytest.fixture
def model() -> sspsam.SSPSAM:
    torch.manual_seed(0)
    return sspsam.build_model(PRESET)


def teach(model: sspsam.SSPSAM, *words: str) -> None:
    """Gives words some offsets."""
    model.learned_words.add([token for word in words for token in token_ids(word)], CPU)
    assert model.learned_words.offsets is not None
    torch.nn.init.normal_(model.learned_words.offsets)


@torch.no_grad()
def test_only_phrases_with_a_learned_word_change(model: sspsam.SSPSAM) -> None:
    tokens = tokenize(["the dog on the left", "the koala on the left"])
    before = model.encode_text(tokens)
    teach(model, "koala")
    after = model.encode_text(tokens)
    assert torch.equal(after.words[0], before.words[0])
    assert torch.equal(after.sentence[0], before.sentence[0])
    assert not torch.allclose(after.sentence[1], before.sentence[1])
    place = tokens[1].tolist().index(token_ids("koala")[0])
    assert torch.equal(after.words[1, :place], before.words[1, :place])  # the tower reads from the left


@torch.no_grad()
def test_a_new_word_means_what_it_meant_until_it_learns(model: sspsam.SSPSAM) -> None:
    tokens = tokenize(["the koala"])
    before = model.encode_text(tokens)
    model.learned_words.add(token_ids("koala"), CPU)
    assert torch.equal(model.encode_text(tokens).words, before.words)


def test_a_version_tells_its_words(model: sspsam.SSPSAM) -> None:
    assert learned_words(trainable_state(model)) == []
    teach(model, "koala", "guitar")
    assert sorted(learned_words(trainable_state(model))) == ["guitar", "koala"]


def test_more_words_leave_the_others_as_they_are(model: sspsam.SSPSAM) -> None:
    teach(model, "koala")
    before = model.learned_words(tokenize(["the koala"]))
    model.learned_words.add([*token_ids("koala"), *token_ids("guitar")], CPU)
    assert model.learned_words.tokens is not None
    assert model.learned_words.tokens.tolist() == sorted(token_ids("koala") + token_ids("guitar"))
    assert torch.equal(model.learned_words(tokenize(["the koala"])), before)


def test_words_travel_with_the_weights_and_leave_with_them(model: sspsam.SSPSAM, tmp_path: Path) -> None:
    """As when a version is promoted, and rolled back."""
    base = {name: value.clone() for name, value in trainable_state(model).items()}
    teach(model, "koala", "guitar")
    path = tmp_path / "weights.safetensors"
    write_tensors(path, trainable_state(model))
    other = sspsam.build_model(PRESET)
    load_trainable(other, read_tensors(path))
    tokens = tokenize(["the koala and the guitar"])
    assert torch.equal(other.learned_words(tokens), model.learned_words(tokens))
    load_trainable(other, base)
    assert other.learned_words(tokens) is None
    assert trainable_state(other).keys() == base.keys()


def test_the_predictor_answers_with_them_at_once() -> None:
    """Phrases that it has encoded before are not kept."""
    predictor = sspsam.Predictor.from_preset(PRESET, "cpu")
    picture = torch.randint(256, (40, 60, 3), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    embedding, base = predictor.embed(picture.numpy()), predictor.trainable_state()
    before = predictor.predict(embedding, ["the koala", "the dog"])
    words = {
        "learned_words.tokens": torch.tensor(token_ids("koala")),
        "learned_words.offsets": torch.full((1, predictor.model.learned_words.width), 3.0)
        * torch.linspace(-1, 1, predictor.model.learned_words.width),
    }
    predictor.load_trainable(base | words)
    after = predictor.predict(embedding, ["the koala", "the dog"])
    assert after[0].box_xyxy != before[0].box_xyxy
    assert after[1].box_xyxy == pytest.approx(before[1].box_xyxy)


WIDTH = sspsam.PRESETS[PRESET].clip.text_width
ROWS = torch.zeros(2, WIDTH)


@pytest.mark.parametrize(
    ("words", "reason"),
    [
        ({"tokens": torch.tensor([1, 2])}, "offsets"),
        ({"offsets": ROWS}, "tokens"),
        ({"tokens": torch.tensor([1, 2]), "offsets": ROWS, "more": ROWS}, "more"),
        ({"tokens": torch.tensor([2, 1]), "offsets": ROWS}, "49408"),
        ({"tokens": torch.tensor([2, 2]), "offsets": ROWS}, "49408"),
        ({"tokens": torch.tensor([-1, 2]), "offsets": ROWS}, "49408"),
        ({"tokens": torch.tensor([2, 49408]), "offsets": ROWS}, "49408"),
        ({"tokens": torch.tensor([1.0, 2.0]), "offsets": ROWS}, "49408"),
        ({"tokens": torch.tensor([[1, 2]]), "offsets": ROWS}, "49408"),
        ({"tokens": torch.zeros(0, dtype=torch.int64), "offsets": ROWS[:0]}, "49408"),
        ({"tokens": torch.tensor([1, 2]), "offsets": ROWS[:1]}, f"expected \\(2, {WIDTH}\\) torch.float32"),
        ({"tokens": torch.tensor([1, 2]), "offsets": ROWS.half()}, "expected .* torch.float32"),
        ({"tokens": torch.tensor([1, 2]), "offsets": ROWS / 0}, "not finite: learned_words.offsets"),
    ],
)
def test_words_that_make_no_sense_are_refused_and_change_nothing(
    model: sspsam.SSPSAM, words: dict[str, Tensor], reason: str
) -> None:
    teach(model, "koala")
    before = {name: value.clone() for name, value in trainable_state(model).items()}
    base = {name: value * 2 for name, value in before.items() if not name.startswith("learned_words.")}
    with pytest.raises(CheckpointError, match=reason):
        load_trainable(model, base | {f"learned_words.{name}": value for name, value in words.items()})
    after = trainable_state(model)
    assert after.keys() == before.keys()
    assert all(torch.equal(after[name], value) for name, value in before.items())
