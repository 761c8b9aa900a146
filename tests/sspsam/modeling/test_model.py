"""The model's numbers: against the reference implementation, and against itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import sspsam
from sspsam.checkpoints.load import is_trainable, load_strictly
from sspsam.phrases import tokenize
from sspsam.presets import get_preset
from tests.sspsam.golden import golden_checkpoint, golden_inputs, golden_record, golden_shapes

TOLERANCE = 2e-4
FULL_STOP = 269
"""CLIP's token of "."."""
UNUSED_BUT_COUNTED = ("img2img_attn.", "norm_text_cond_img.")


class GoldenRun:
    """One pass of a variant over the golden inputs, with what happens inside."""

    def __init__(self, variant: str) -> None:
        self.record = golden_record(variant)
        self.model = sspsam.build_model(variant)
        sspsam.load_checkpoint(self.model, golden_checkpoint(variant))
        self.clip_images, self.image_embeddings, self.tokens = golden_inputs(self.record)
        with torch.inference_mode():
            self.clip_features = self.model.clip.encode_image(self.clip_images)
            self.words = self.model.clip.encode_text(self.tokens).words
            self.patch_features = self.model.encode_image(self.clip_images)
            self.encoded = self.model.encode_phrase(self.tokens)
            self.attended = self._attended(self.patch_features)
            self.fused = self.model.fuse(self.patch_features, self.encoded)
            self.prompts = self.model.prompt_generator(self.fused)
            self.output = self.model(self.clip_images, self.image_embeddings, self.tokens)

    def _attended(self, patch_features: Tensor) -> Tensor:
        from sspsam.modeling.adapters import similarity_map

        adapter = self.model.visual_adapter
        similarity = similarity_map(patch_features, self.encoded.sentence_feature)
        patches = adapter.patch_projection(patch_features * similarity)
        return adapter.attend_words(patches, self.encoded.phrase)


# Each run is made once, in one of the test processes.
VARIANTS = [
    pytest.param("ssp-sam-224", marks=[pytest.mark.slow, pytest.mark.xdist_group("golden-224")]),
    pytest.param("ssp-sam-336", marks=[pytest.mark.slow, pytest.mark.xdist_group("golden-336")]),
]


@pytest.fixture(scope="module", params=VARIANTS)
def run(request: pytest.FixtureRequest) -> GoldenRun:
    return GoldenRun(request.param)


def assert_tap(actual: Tensor, points: dict[str, list[float]]) -> None:
    """Compares (B, token, channel) values at 'token,channel' points."""
    for point, expected in points.items():
        token, channel = map(int, point.split(","))
        torch.testing.assert_close(
            actual[:, token, channel],
            torch.tensor(expected),
            atol=TOLERANCE,
            rtol=0,
            msg=lambda m, p=point: f"{p}: {m}",
        )


def assert_near(actual: Tensor, expected: Any) -> None:
    torch.testing.assert_close(actual, torch.tensor(expected), atol=TOLERANCE, rtol=0)


def test_taps_match_the_reference(run: GoldenRun) -> None:
    taps = run.record["taps"]
    assert_tap(run.clip_features, taps["clip_image_features_b_token_channel"])
    assert_tap(run.words, taps["clip_word_features_b_token_channel"])
    assert_near(run.encoded.phrase.attention[:, :8], taps["phrase_attention_b_first8"])
    assert_tap(run.attended, taps["image_to_text_attention_token_b_channel"])
    assert_tap(run.fused, taps["fused_multimodal_token_b_channel"])
    sequence = torch.cat([run.prompts.box_token[:, None], run.prompts.prompt_tokens], dim=1)
    assert_tap(sequence, taps["prompt_tokens_normed_token_b_channel"])
    assert len(taps) == 6, "a tap is not compared"


def test_outputs_match_the_reference(run: GoldenRun) -> None:
    logits = run.output.mask_logits[:, 0]
    points = torch.tensor(run.record["low_res_points_yx"])
    assert_near(run.output.boxes, run.record["boxes_cxcywh"])
    assert_near(logits[:, points[:, 0], points[:, 1]], run.record["low_res_logits"])
    assert_near(logits.mean(dim=(1, 2)), run.record["low_res_mean"])
    assert_near(logits.std(dim=(1, 2)), run.record["low_res_std"])
    assert_near((logits > 0).float().mean(dim=(1, 2)), run.record["low_res_positive_fraction"])
    assert_near(run.output.iou_predictions, run.record["iou_prediction"])


def test_the_golden_phrases_become_the_golden_tokens(run: GoldenRun) -> None:
    templated = tokenize(run.record["phrases"])  # with the full stop that the record leaves out
    for row, ids in zip(templated.tolist(), run.record["tokens"], strict=True):
        assert row[: len(ids) + 1] == [*ids[:-1], FULL_STOP, ids[-1]]
        assert not any(row[len(ids) + 1 :])


ORDERS = {"ssp-sam-224": ([0], [1], [1, 0], [0, 1, 0]), "ssp-sam-336": ([1],)}


@pytest.mark.slow
def test_batching_images_changes_nothing(run: GoldenRun) -> None:
    for order in ORDERS[run.record["variant"]]:
        with torch.inference_mode():
            output = run.model(run.clip_images[order], run.image_embeddings[order], run.tokens[order])
        for got, expected in zip(output, run.output, strict=True):
            torch.testing.assert_close(got, expected[order], atol=1e-4, rtol=0)


@pytest.mark.slow
def test_batching_phrases_changes_nothing(run: GoldenRun) -> None:
    """Several phrases on one picture, whose features are computed once, as the predictor does it."""
    phrases = tokenize(["the man in red on the left", "zebra", "a dog"])
    patches, embedding = run.patch_features[:1], run.image_embeddings[:1]

    def answer(tokens: Tensor) -> Any:
        count = len(tokens)
        prompts = run.model.make_prompts(patches.expand(count, -1, -1), run.model.encode_phrase(tokens))
        return run.model.decode(embedding.expand(count, -1, -1, -1), prompts)

    with torch.inference_mode():
        together = answer(phrases)
        for number in range(3):
            alone = answer(phrases[number : number + 1])
            for got, expected in zip(together, alone, strict=True):
                torch.testing.assert_close(got[number : number + 1], expected, atol=1e-4, rtol=0)


@pytest.mark.parametrize("variant", ["ssp-sam-224", "ssp-sam-336"])
def test_a_preset_alone_makes_a_variant(variant: str) -> None:
    """A reference checkpoint's key list fits the model and its image encoder: all names, all shapes."""
    preset = get_preset(variant)
    with torch.device("meta"):
        model, encoder = sspsam.build_model(variant), sspsam.build_image_encoder(preset.image_encoder)
        state = {key: torch.empty(shape) for key, shape in golden_shapes(variant).items()}
    sspsam.load_checkpoint(model, {"model": state})
    prefix = "sam.image_encoder."
    load_strictly(encoder, {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)})


@pytest.mark.parametrize(("variant", "expected"), [("ssp-sam-224", 18_373_611), ("ssp-sam-336", 18_733_035)])
def test_trainable_parameters_as_the_paper_counts(variant: str, expected: int) -> None:
    with torch.device("meta"):
        model = sspsam.build_model(variant)
    own = sum(p.numel() for name, p in model.named_parameters() if is_trainable(name))
    assert f" {own:,} |" in (Path(__file__).parents[3] / "docs" / "model.md").read_text(encoding="utf-8")
    unused = {k: v for k, v in golden_shapes(variant).items() if k.startswith(UNUSED_BUT_COUNTED)}
    counted = sum(torch.Size(shape).numel() for key, shape in unused.items() if ".pos_" not in key)
    assert own + counted == expected
