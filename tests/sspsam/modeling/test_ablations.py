"""Ablations: what each leaves out, that nothing unused is built, and that what is left learns."""

from __future__ import annotations

import itertools
import json
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

import sspsam
from sspsam.checkpoints.load import CheckpointError, is_trainable
from sspsam.checkpoints.state_dicts import REFERENCE_PREFIXES
from sspsam.phrases import tokenize
from sspsam.presets import ABLATIONS, PRESETS, get_preset
from tests.sspsam.golden import GOLDEN_FOLDER, golden_inputs, golden_record, golden_tensor
from tests.sspsam.published_files import golden_bundle, reference_state

TEST = "ssp-sam-test"
NAMES = [TEST, *(f"{TEST}-without-{part}" for part in ABLATIONS)]
PAIRS = [f"{TEST}-without-{a}-without-{b}" for a, b in itertools.combinations(ABLATIONS, 2)]

GRU = 2 * (2 * 3 * 512 * 512 + 2 * 3 * 512)
ATTENTION_SCORE = 1024 + 1
WORDS_ATTENTION = 4 * 512 * 512 + 4 * 512
VERIFICATION = 2 * (512 * 512 + 512)
GAUSSIAN = 2
NORM = 2 * 512
BOX_HEAD = 2 * (256 * 256 + 256) + 256 * 4 + 4
LEFT_OUT = {
    "linguistic-adapter": GRU + ATTENTION_SCORE,
    "visual-adapter": WORDS_ATTENTION + VERIFICATION + GAUSSIAN + NORM,
    "verification-score": WORDS_ATTENTION + VERIFICATION + GAUSSIAN,
    "verification-gaussian": GAUSSIAN,
    "rec-head": BOX_HEAD,
}
"""Parameters that ssp-sam-224 has fewer without each."""


@cache
def trainable(name: str) -> int:
    with torch.device("meta"):
        model = sspsam.build_model(name)
    return sum(p.numel() for key, p in model.named_parameters() if is_trainable(key))


@pytest.mark.parametrize("part", ABLATIONS)
def test_parameter_counts(part: str) -> None:
    assert trainable("ssp-sam-224") - trainable(f"ssp-sam-224-without-{part}") == LEFT_OUT[part]


def test_a_sentence_of_another_width_is_projected() -> None:
    fewer = LEFT_OUT["linguistic-adapter"] - (768 * 512 + 512)
    assert trainable("ssp-sam-336") - trainable("ssp-sam-336-without-linguistic-adapter") == fewer


def test_without_both_adapters_two_projections_are_left() -> None:
    name = "ssp-sam-224-without-linguistic-adapter-without-visual-adapter"
    fewer = LEFT_OUT["linguistic-adapter"] + LEFT_OUT["visual-adapter"]
    assert trainable("ssp-sam-224") - trainable(name) == fewer


def inputs(name: str, count: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    side = get_preset(name).clip.image_size
    tokens = tokenize(["the red dog on the left", "a cat", "two birds"][:count])
    return torch.randn(count, 3, side, side), torch.randn(count, 32, 4, 4), tokens


@pytest.mark.parametrize("name", NAMES + PAIRS)
def test_shapes(name: str) -> None:
    output = sspsam.build_model(name)(*inputs(name, 3))
    assert output.mask_logits.shape == (3, 1, 16, 16)
    assert output.iou_predictions.shape == (3,)
    if "rec-head" in name:
        assert output.boxes is None
    else:
        assert output.boxes.shape == (3, 4)


@pytest.mark.parametrize("name", NAMES + PAIRS)
def test_every_parameter_of_the_prompt_encoder_learns(name: str) -> None:
    model = sspsam.build_model(name)
    output = model(*inputs(name, 3))
    loss = output.mask_logits.square().mean()
    if output.boxes is not None:
        loss = loss + output.boxes.sum()
    loss.backward()
    for key, parameter in model.named_parameters():
        # Added to every word's score alike, softmax cancels it: the authors' model has it, so ours has.
        if key.startswith(("clip.", "sam.")) or key == "linguistic_adapter.attention_score.bias":
            continue
        assert parameter.grad is not None, key
        assert parameter.grad.abs().sum() > 0, key


@pytest.mark.parametrize("name", NAMES)
def test_batching_changes_nothing(name: str) -> None:
    model, (images, embeddings, tokens) = sspsam.build_model(name), inputs(name, 3)
    with torch.inference_mode():
        together = model(images, embeddings, tokens)
        alone = model(images[1:2], embeddings[1:2], tokens[1:2])
    for got, expected in zip(together, alone, strict=True):
        if expected is not None:
            torch.testing.assert_close(got[1:2], expected, atol=1e-5, rtol=0)


def with_same_weights(part: str) -> tuple[sspsam.SSPSAM, sspsam.SSPSAM]:
    """The full model, and one without the part that shares all that is left."""
    torch.manual_seed(3)
    full, left = sspsam.build_model(TEST), sspsam.build_model(f"{TEST}-without-{part}")
    state = full.state_dict()
    left.load_state_dict({key: state[key] for key in left.state_dict()})
    return full, left


def test_the_cosine_is_what_the_gaussian_is_of() -> None:
    full, left = with_same_weights("verification-gaussian")
    patches, attended = torch.randn(2, 5, 32), torch.randn(2, 5, 32)
    cosine = left.visual_adapter.verification_score(patches, attended)
    gaussian = full.visual_adapter.verification_score(patches, attended)
    torch.testing.assert_close(gaussian, torch.exp(-((1 - cosine) ** 2) / (2 * 0.5**2)))


def test_without_a_score_patches_are_only_normalised() -> None:
    full, left = with_same_weights("verification-score")
    with torch.no_grad():
        full.visual_adapter.verification_scale.fill_(1.0)
        full.visual_adapter.verification_sigma.fill_(1e6)  # a Gaussian so wide that it is 1 everywhere
        images, _, tokens = inputs(TEST, 2)
        fused = [m.fuse(m.encode_image(images), m.encode_phrase(tokens)) for m in (full, left)]
    torch.testing.assert_close(*fused, atol=1e-5, rtol=0)


def test_without_the_linguistic_adapter_the_sentence_is_the_phrase() -> None:
    model = sspsam.build_model(f"{TEST}-without-linguistic-adapter")
    encoded = model.encode_phrase(inputs(TEST, 2)[2])
    assert torch.equal(encoded.phrase.phrase, encoded.sentence_feature)
    assert encoded.phrase.attention is None


def test_without_the_visual_adapter_patches_know_no_phrase_and_clip_no_surgery() -> None:
    model = sspsam.build_model(f"{TEST}-without-visual-adapter")
    assert model.preset.clip.surgery_blocks == 0
    images, _, tokens = inputs(TEST, 2)
    features = model.clip.encode_image(images)
    towers = model.clip.towers.visual
    hidden = towers.ln_pre(model.clip._embed_patches(images))
    for block in towers.transformer.resblocks:
        hidden = block(hidden)
    torch.testing.assert_close(features, towers.ln_post(hidden) @ towers.proj)
    patches = model.encode_image(images)
    for phrase in (model.encode_phrase(tokens), model.encode_phrase(tokens.flip(0))):
        adapted = model.visual_adapter(patches, phrase.sentence_feature, phrase.phrase)
        assert torch.equal(adapted, model.visual_adapter.patch_projection(patches))


def test_without_the_rec_head_the_box_is_the_masks() -> None:
    predictor = sspsam.Predictor.from_preset(f"{TEST}-without-rec-head", "cpu")
    image = np.random.default_rng(0).integers(0, 256, (40, 60, 3), dtype=np.uint8)
    answer = predictor.predict(predictor.embed(image), ["a dog"])[0]
    rows, columns = np.nonzero(answer.mask)
    expected = (columns.min(), rows.min(), columns.max() + 1, rows.max() + 1) if rows.size else (0, 0, 0, 0)
    assert answer.box_xyxy == pytest.approx(expected)


ANSWERS = json.loads((GOLDEN_FOLDER / "ablations.json").read_text(encoding="utf-8"))
THEIRS = {ours: theirs for theirs, ours in REFERENCE_PREFIXES.items()}
THEIRS["linguistic_adapter.sentence_projection."] = "clip_proj."


def golden_state(model: sspsam.SSPSAM) -> dict[str, torch.Tensor]:
    """Its tensors, made from the names that the authors give them."""
    state = {}
    for key, value in model.state_dict().items():
        prefix = next(prefix for prefix in THEIRS if key.startswith(prefix))
        state[key] = golden_tensor(THEIRS[prefix] + key.removeprefix(prefix), tuple(value.shape))
    return state


@pytest.mark.slow
@pytest.mark.parametrize("part", ANSWERS)
def test_answers_are_those_of_the_authors_file(part: str) -> None:
    model, expected, record = (
        sspsam.build_model(f"ssp-sam-224-without-{part}"), ANSWERS[part], golden_record("ssp-sam-224")
    )  # fmt: skip
    model.load_state_dict(golden_state(model))
    with torch.inference_mode():
        output = model(*golden_inputs(record))
    logits, points = output.mask_logits[:, 0], torch.tensor(record["low_res_points_yx"])
    pairs = {
        "low_res_logits": logits[:, points[:, 0], points[:, 1]],
        "low_res_mean": logits.mean(dim=(1, 2)),
        "low_res_std": logits.std(dim=(1, 2)),
        "iou_prediction": output.iou_predictions,
    }
    if output.boxes is not None:
        pairs["boxes_cxcywh"] = output.boxes
    for name, actual in pairs.items():
        torch.testing.assert_close(actual, torch.tensor(expected[name]), atol=2e-4, rtol=0)


def test_a_checkpoint_of_the_whole_model_is_refused() -> None:
    with pytest.raises(CheckpointError, match=r"unexpected: box_head.layers.0.bias"):
        sspsam.load_checkpoint(
            sspsam.build_model(f"{TEST}-without-rec-head"), reference_state(golden_bundle())
        )


def test_the_documentation_tells_each() -> None:
    text = (Path(__file__).parents[3] / "docs" / "model.md").read_text(encoding="utf-8")
    for part, fewer in LEFT_OUT.items():
        (row,) = [line for line in text.splitlines() if line.startswith(f"| `{part}` |")]
        assert f"| {fewer:,} |" in row


def test_names() -> None:
    assert get_preset("ssp-sam-demo-without-rec-head").weights is None
    both = ["verification-score", "verification-gaussian"]
    for first, second in (both, both[::-1]):
        assert get_preset(f"{TEST}-without-{first}-without-{second}").prompt.verification == "none"
    assert set(PRESETS) == {name for name in PRESETS if get_preset(name) is PRESETS[name]}
    with pytest.raises(
        ValueError, match="unknown ablation 'clip' in 'ssp-sam-224-without-clip', expected one of"
    ):
        get_preset("ssp-sam-224-without-clip")
