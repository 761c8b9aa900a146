"""Features cached between questions: computed once, bounded, and never from other weights."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sspsam
from sspsam.caching.feature_cache import Encode, FeatureCache, ModelPhrase
from sspsam.images.frames import UInt8Image
from sspsam.modeling.model import EncodedPhrase
from sspsam.presets import ABLATIONS


@pytest.fixture
def predictor() -> sspsam.Predictor:
    return sspsam.Predictor.from_preset("ssp-sam-test", "cpu")


def picture(seed: int = 0) -> UInt8Image:
    return np.random.default_rng(seed).integers(0, 256, (90, 120, 3), dtype=np.uint8)


@contextmanager
def calls(module: nn.Module) -> Iterator[list[int]]:
    """How many rows each call of a module had."""
    rows: list[int] = []
    hook = module.register_forward_pre_hook(lambda _, inputs: rows.append(len(inputs[0])))
    try:
        yield rows
    finally:
        hook.remove()


def test_a_phrase_is_encoded_once(predictor: sspsam.Predictor) -> None:
    pictures = [predictor.embed(picture()), predictor.embed(picture(1))]
    model = predictor.model
    adapter = model.linguistic_adapter
    with calls(model.clip.towers.ln_final) as text, calls(adapter.word_projection) as adapted:
        first = predictor.predict(pictures[0], ["the dog", "a tree", "The  DOG"])
        again = predictor.predict(pictures[0], ["a tree", "the dog"])
        predictor.predict(pictures[1], ["the dog", "a red car"])

    assert sum(text) == sum(adapted) == 3, "two phrases, however they are divided, then the one that is new"
    assert [one.score for one in again] == pytest.approx([first[1].score, first[0].score], abs=1e-6)


def test_a_picture_is_projected_once(predictor: sspsam.Predictor) -> None:
    pictures = [predictor.embed(picture()), predictor.embed(picture(1))]
    first_block, second_block = predictor.model.sam.mask_decoder.transformer.layers
    with (
        calls(first_block.cross_attn_token_to_image.k_proj) as first,
        calls(second_block.cross_attn_token_to_image.k_proj) as second,
    ):
        predictor.predict(pictures[0], ["the dog", "a tree"])
        predictor.predict(pictures[0], ["the dog"], points=[[1, 1, 1]])
        predictor.segment(pictures[0], points=[[1, 1, 1]])
        assert (sum(first), sum(second)) == (1, 4)
        predictor.predict(pictures[1], ["the dog"])
    assert (sum(first), sum(second)) == (2, 5)


@pytest.mark.parametrize("how", ["swapped", "trained in place"])
def test_other_weights_answer_anew(predictor: sspsam.Predictor, how: str) -> None:
    embedding = predictor.embed(picture())
    before = predictor.predict(embedding, ["the dog"])[0]
    generator = torch.Generator().manual_seed(1)
    other = {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in predictor.trainable_state().items()
    }
    if how == "swapped":
        predictor.load_trainable(other)
    else:
        predictor.model.load_state_dict(other, strict=False)
    fresh = sspsam.Predictor.from_preset("ssp-sam-test", "cpu")
    fresh.load_trainable(other)

    found, expected = (one.predict(embedding, ["the dog"])[0] for one in (predictor, fresh))

    assert found.score == expected.score
    assert found.box_xyxy == expected.box_xyxy != before.box_xyxy
    assert (found.mask == expected.mask).all()


@pytest.mark.parametrize("ablation", ["", *(f"-without-{name}" for name in ABLATIONS)])
def test_rows_are_stacked_as_they_were(ablation: str) -> None:
    model = sspsam.build_model(f"ssp-sam-test{ablation}")
    phrases = ["the dog", "two cats on the left", "a tree"]
    with torch.inference_mode():
        tokens = sspsam.phrases.tokenize(phrases)
        together = model.encode_phrase(tokens)
        lengths = (tokens != 0).sum(dim=1).tolist()
        rows = [together.row(number, length) for number, length in enumerate(lengths)]
        stacked = EncodedPhrase.stack(rows)
        image = model.encode_image(torch.randn(1, 3, 32, 32)).expand(3, -1, -1)
        prompts = [model.make_prompts(image, encoded).prompt_tokens for encoded in (stacked, together)]

    assert sum(row.nbytes for row in rows) < together.nbytes / 2
    for found, expected in zip(tensors(stacked), tensors(together), strict=True):
        kept = expected[:, : max(lengths)] if 77 in expected.shape else expected
        behind = stacked.phrase.padding if found.dim() > 1 and found.shape[1] == max(lengths) else None
        if behind is not None and found.dtype != torch.bool:
            found, kept = found[~behind], kept[~behind]
        assert torch.equal(found, kept)
    torch.testing.assert_close(*prompts, rtol=1e-4, atol=1e-5)


def tensors(encoded: EncodedPhrase) -> list[Tensor]:
    return [encoded.sentence_feature, *(one for one in encoded.phrase if one is not None)]


def at_once(encode: Encode, asked: Sequence[ModelPhrase]) -> list[EncodedPhrase]:
    return list(encode(asked))


def variants(predictor: sspsam.Predictor, count: int) -> list[sspsam.SSPSAM]:
    """Models whose trainable tensors are the predictor's, scaled."""
    state = predictor.trainable_state()
    return [
        predictor.variant({key: value * (1 + number / 8) for key, value in state.items()})
        for number in range(1, count + 1)
    ]


def test_features_follow_their_model(predictor: sspsam.Predictor) -> None:
    embedding = predictor.embed(picture()).image_embedding
    one, other = variants(predictor, 2)
    reuse = FeatureCache(at_once)
    with torch.inference_mode():
        first = reuse.project(one, embedding), *reuse.encode_phrases([(one, "the dog")])
        second = reuse.project(other, embedding), *reuse.encode_phrases([(other, "the dog")])
        again = reuse.project(one, embedding), *reuse.encode_phrases([(one, "the dog")])

    assert all(found is expected for found, expected in zip(again, first, strict=True))
    assert not torch.equal(first[0].keys, second[0].keys)
    assert not torch.equal(first[1].phrase.phrase, second[1].phrase.phrase)


def test_features_of_a_model_that_is_gone_are_removed(predictor: sspsam.Predictor) -> None:
    embedding = predictor.embed(picture()).image_embedding
    kept, gone, new = variants(predictor, 3)
    reuse = FeatureCache(at_once)
    with torch.inference_mode():
        for model in (kept, gone):
            reuse.project(model, embedding)
            reuse.encode_phrases([(model, "the dog")])
        del gone, model
        reuse.project(new, embedding)

    assert (len(reuse.images), len(reuse.phrases)) == (2, 1)


def test_only_so_much_is_kept(predictor: sspsam.Predictor) -> None:
    embeddings = [predictor.embed(picture(number)).image_embedding for number in range(3)]
    with torch.inference_mode():
        one = embeddings[0].nbytes + predictor.model.sam.project(embeddings[0]).nbytes
        reuse = FeatureCache(at_once, image_bytes=2 * one, phrase_bytes=0)
        for embedding in embeddings:
            reuse.project(predictor.model, embedding)
        reuse.encode_phrases([(predictor.model, "the dog")])

    assert len(reuse.images) == 2
    assert reuse.images.currsize == 2 * one
    assert all(embedding is not embeddings[0] for _, embedding in reuse.images)
    assert len(reuse.phrases) == 0
