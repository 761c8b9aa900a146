"""MobileSAM's image encoder: its numbers, its published file, and its place in a preset."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sspsam
from sspsam.checkpoints.convert import convert
from sspsam.checkpoints.load import load_strictly
from sspsam.checkpoints.state_dicts import to_ours
from sspsam.modeling.tiny_vit import ConvNorm, TinyViT, WindowAttention
from sspsam.presets import PRESETS, get_preset, with_image_encoder
from tests.sspsam.golden import golden_record, golden_shapes, golden_tensor
from tests.sspsam.published_files import golden_bundle, reference_state, without

PREFIX = "image_encoder."
TOLERANCE = 1e-3


def published_state() -> dict[str, Tensor]:
    """`mobile_sam.pt`'s image encoder with the golden run's values, ImageNet head and all."""
    return {key: golden_tensor(key, shape) for key, shape in golden_shapes("mobile-sam").items()}


@pytest.fixture(scope="module")
def encoder() -> TinyViT:
    state = to_ours(published_state(), "sam")
    encoder = sspsam.build_image_encoder("mobile").eval()
    load_strictly(encoder, {key.removeprefix(PREFIX): value for key, value in state.items()})
    assert isinstance(encoder, TinyViT)
    return encoder


@pytest.mark.slow
def test_numbers_match_the_reference(encoder: TinyViT) -> None:
    """The record was made before the reference had read its position biases: there they are 0.

    It copies them into a buffer in `eval()`, and its builder calls that before it loads a file. Whoever calls
    `eval()` again, as its README does, gets them; what they do is compared below.
    """
    record = golden_record("mobile-sam")
    generator = np.random.Generator(np.random.PCG64(record["seed"]))
    images = torch.from_numpy(generator.standard_normal(record["input_shape"], dtype=np.float32))
    biases = [module.attention_biases for module in encoder.modules() if isinstance(module, WindowAttention)]
    kept = [bias.detach().clone() for bias in biases]
    assert len(biases) == 10
    with torch.inference_mode():
        try:
            for bias in biases:
                bias.zero_()
            embedding = encoder(images)
        finally:
            for bias, value in zip(biases, kept, strict=True):
                bias.copy_(value)
    assert list(embedding.shape) == record["embedding_shape"]
    channel, y, x = torch.tensor(record["points_channel_y_x"]).T
    expected = torch.tensor(record["embedding"])
    torch.testing.assert_close(embedding[0, channel, y, x], expected, atol=TOLERANCE, rtol=0)
    assert float(embedding.mean()) == pytest.approx(record["mean"], abs=TOLERANCE)
    assert float(embedding.std()) == pytest.approx(record["std"], abs=TOLERANCE)


@pytest.mark.parametrize("window", [7, 14])
def test_each_offset_has_its_bias(window: int) -> None:
    attention = WindowAttention(64, 32, window).eval()
    nn.init.normal_(attention.attention_biases)
    cells = torch.randn(3, window * window, 64)
    with torch.inference_mode():
        query, key, value = (
            attention.qkv(attention.norm(cells)).view(3, -1, 2, 96).transpose(1, 2).chunk(3, -1)
        )
        scores = query @ key.transpose(2, 3) * 32**-0.5
        for one in range(window * window):
            for other in range(window * window):
                rows, columns = abs(one // window - other // window), abs(one % window - other % window)
                scores[:, :, one, other] += attention.attention_biases[:, rows * window + columns]
        expected = attention.proj((scores.softmax(-1) @ value).transpose(1, 2).reshape(cells.shape))
        torch.testing.assert_close(attention(cells), expected)


def test_convolution_and_norm_are_one() -> None:
    layer = ConvNorm(4, 8, 3, stride=2, groups=2).eval()
    for tensor in (layer.bn.weight, layer.bn.bias, layer.bn.running_mean):
        assert tensor is not None
        nn.init.normal_(tensor)
    features = torch.randn(2, 4, 9, 9)
    with torch.inference_mode():
        torch.testing.assert_close(layer(features), layer.bn(layer.c(features)), atol=1e-5, rtol=1e-5)
    before = layer.bn.running_mean.clone()
    layer.train()(features)
    assert not torch.equal(layer.bn.running_mean, before)


def test_the_preset_with_another_encoder() -> None:
    name = with_image_encoder("ssp-sam-224", "mobile")
    assert name == "ssp-sam-224-with-mobile"
    assert get_preset(name) == replace(PRESETS["ssp-sam-224"], image_encoder="mobile")
    assert get_preset(f"{name}-without-rec-head") == get_preset("ssp-sam-224-without-rec-head-with-mobile")
    assert (
        with_image_encoder("ssp-sam-224", "vit_h") == with_image_encoder("ssp-sam-224", None) == "ssp-sam-224"
    )


@pytest.mark.parametrize(
    ("preset", "encoder", "message"),
    [
        ("ssp-sam-224", "vit_g", "unknown image encoder 'vit_g', expected one of: vit_b, "),
        ("ssp-sam-demo", "mobile", "'mobile' is 256x64x64, but ssp-sam-demo .* 128x32x32"),
        ("ssp-sam", "mobile", "unknown preset 'ssp-sam'"),
    ],
)
def test_encoders_that_do_not_fit(preset: str, encoder: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        with_image_encoder(preset, encoder)


@pytest.mark.slow
def test_its_file_takes_the_place_of_the_checkpoints_encoder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny model on SAM's real embedding shape, whose checkpoint brings ViT-B along."""
    monkeypatch.setitem(PRESETS, "ssp-sam-wide", replace(PRESETS["ssp-sam-test"], image_encoder="vit_b"))
    wide = without(PREFIX, golden_bundle("ssp-sam-wide"))
    stale = {f"{PREFIX}pos_embed": torch.zeros(1, 64, 64, 768)}
    torch.save({"model": reference_state(wide | stale)}, tmp_path / "ssp.pth")
    decoder = {
        key.removeprefix("sam."): torch.zeros_like(value)
        for key, value in wide.items()
        if key.startswith("sam.")
    }
    torch.save(published_state() | decoder, tmp_path / "mobile_sam.pt")
    sources, bundle = [tmp_path / "ssp.pth", tmp_path / "mobile_sam.pt"], tmp_path / "bundle.safetensors"

    card = convert(sources, "ssp-sam-wide-with-mobile", bundle)
    predictor = sspsam.Predictor.from_preset("ssp-sam-wide-with-mobile", "cpu", bundle)
    embedding = predictor.embed(np.full((40, 60, 3), 90, np.uint8))

    assert card.preset == "ssp-sam-wide-with-mobile"
    assert embedding.image_embedding.shape == (1, 256, 64, 64)
    assert predictor.predict(embedding, ["the dog"])[0].mask.shape == (40, 60)
    assert torch.equal(predictor.model.fusion.bias, wide["fusion.bias"])
    found = predictor.image_encoder.get_parameter("layers.1.blocks.0.attn.attention_biases")
    assert torch.equal(found, published_state()[f"{PREFIX}layers.1.blocks.0.attn.attention_biases"])
