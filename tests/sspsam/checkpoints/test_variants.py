"""Models that share frozen parts: each has its own answers, which no other model changes."""

from __future__ import annotations

import gc
import weakref
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch

from sspsam import Predictor
from sspsam.checkpoints.load import CheckpointError, is_trainable, read_tensors, write_tensors
from sspsam.modeling.model import SSPSAM
from sspsam.results import Decoded, Question

PRESET = "ssp-sam-test"
PHRASES = ("the dog", "a boat on the left", "the red car")


@pytest.fixture(scope="module")
def predictor() -> Predictor:
    return Predictor.from_preset(PRESET, "cpu")


def state_of(predictor: Predictor, seed: int) -> dict[str, torch.Tensor]:
    """Trainable tensors near the predictor's own."""
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in predictor.trainable_state().items()
    }


def questions(predictor: Predictor, seed: int = 0) -> list[Question]:
    image = np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    embedding = predictor.embed(image)
    return [Question(embedding, phrase) for phrase in PHRASES]


def by_itself(state: dict[str, torch.Tensor], asked: list[Question]) -> list[Decoded]:
    """Answers of a predictor that has no other weights."""
    alone = Predictor.from_preset(PRESET, "cpu")
    alone.load_trainable(state)
    return alone.decode(asked)


def assert_same(found: list[Decoded], expected: list[Decoded]) -> None:
    """Bit for bit."""
    for one, other in zip(found, expected, strict=True):
        assert one.score == other.score
        assert torch.equal(one.mask_logits, other.mask_logits)
        assert one.box_cxcywh is not None
        assert other.box_cxcywh is not None
        assert torch.equal(one.box_cxcywh, other.box_cxcywh)


def test_only_trainable_tensors_are_its_own(predictor: Predictor) -> None:
    variant = predictor.variant(state_of(predictor, 1))
    ours = dict(predictor.model.named_parameters())

    for name, tensor in variant.named_parameters():
        assert (tensor is ours[name]) != is_trainable(name), name
    assert variant.clip is predictor.model.clip


def test_a_variant_answers_as_a_predictor_with_its_weights(predictor: Predictor) -> None:
    asked, states = questions(predictor), [state_of(predictor, seed) for seed in (1, 2)]
    for state in states:
        variant = predictor.variant(state)
        assert_same(predictor.decode(asked, [variant] * len(asked)), by_itself(state, asked))


def test_questions_to_several_models_share_a_call(predictor: Predictor) -> None:
    asked = questions(predictor) * 3
    states = [state_of(predictor, seed) for seed in (1, 2)]
    models = [predictor.model, *(predictor.variant(state) for state in states)]
    asked_of = [models[(place // 2) % 3] for place in range(len(asked))]

    found = predictor.decode(asked, asked_of)

    for model, state in zip(models, [predictor.trainable_state(), *states], strict=True):
        places = [place for place, one in enumerate(asked_of) if one is model]
        for place, expected in zip(places, by_itself(state, [asked[p] for p in places]), strict=True):
            assert found[place].question.phrase == asked[place].phrase
            torch.testing.assert_close(found[place].mask_logits, expected.mask_logits, atol=1e-3, rtol=1e-4)


@pytest.mark.slow
def test_answers_stay_the_same_while_other_models_come_and_go(predictor: Predictor) -> None:
    asked = questions(predictor)
    kept = predictor.variant(state_of(predictor, 1))
    before = predictor.decode(asked, [kept] * 3)

    def come_and_go() -> None:
        for seed in range(2, 12):
            predictor.variant(state_of(predictor, seed))

    with ThreadPoolExecutor(1) as pool:
        others = pool.submit(come_and_go)
        while not others.done():
            assert_same(predictor.decode(asked, [kept] * 3), before)
        others.result()
    assert_same(predictor.decode(asked, [kept] * 3), before)


def test_it_needs_its_file_no_longer(predictor: Predictor, tmp_path: Path) -> None:
    path, state, asked = tmp_path / "weights.safetensors", state_of(predictor, 1), questions(predictor)
    write_tensors(path, state)
    variant = predictor.variant(read_tensors(path))
    with path.open("r+b") as file:
        file.write(b"\0" * path.stat().st_size)

    assert_same(predictor.decode(asked, [variant] * 3), by_itself(state, asked))


def test_its_memory_is_freed(predictor: Predictor) -> None:
    asked = questions(predictor)

    def used() -> weakref.ref[SSPSAM]:
        variant = predictor.variant(state_of(predictor, 1))
        predictor.decode(asked, [variant] * 3)
        return weakref.ref(variant)

    gc.disable()
    try:
        assert used()() is None, "no cycle, and no cache, holds it"
    finally:
        gc.enable()


def test_learned_words_are_its_own(predictor: Predictor) -> None:
    width = predictor.model.learned_words.width
    words = {
        "learned_words.tokens": torch.tensor([1929]),  # dog
        "learned_words.offsets": torch.full((1, width), 0.5),
    }
    asked, state = questions(predictor), predictor.trainable_state()
    taught = predictor.variant(state | words)

    dog, boat, _ = predictor.decode(asked, [taught] * 3)
    base_dog, base_boat, _ = predictor.decode(asked)

    assert not torch.equal(dog.mask_logits, base_dog.mask_logits)
    torch.testing.assert_close(boat.mask_logits, base_boat.mask_logits, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("extra", ["clip.towers.logit_scale", "image_encoder.pos_embed"])
def test_frozen_tensors_are_refused(predictor: Predictor, extra: str) -> None:
    """All versions share image embeddings because none can bring frozen weights of its own."""
    with pytest.raises(CheckpointError, match=f"unexpected: {extra}"):
        predictor.variant(state_of(predictor, 1) | {extra: torch.zeros(1)})


def test_learned_words_stay_apart_in_a_shared_pass(predictor: Predictor) -> None:
    width = predictor.model.learned_words.width
    states = [
        predictor.trainable_state()
        | {"learned_words.tokens": torch.tensor([1929]), "learned_words.offsets": torch.full((1, width), by)}
        for by in (0.5, -0.5)
    ]
    asked, models = questions(predictor), [predictor.model, *map(predictor.variant, states)]
    [dog, *_] = asked

    found = predictor.decode([dog] * 3, models)

    for one, state in zip(found, [predictor.trainable_state(), *states], strict=True):
        torch.testing.assert_close(
            one.mask_logits, by_itself(state, [dog])[0].mask_logits, atol=1e-3, rtol=1e-4
        )
