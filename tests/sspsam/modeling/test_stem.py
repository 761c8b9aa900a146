"""The convolutional stem: its shape, and that it stands in for segment_anything's and open_clip's own."""

from __future__ import annotations

import pytest
import torch

from sspsam import build_image_encoder, build_model
from sspsam.modeling.stem import ConvStem, PatchEmbedding


def test_a_stage_halves_the_grid() -> None:
    stem = ConvStem(((4, 0), (8, 2)), width=8, stride=4).eval()
    assert stem(torch.zeros(2, 3, 32, 48)).shape == (2, 8, 8, 12)
    assert PatchEmbedding(stem)(torch.zeros(2, 3, 32, 48)).shape == (2, 8, 12, 8)


@pytest.mark.parametrize(("width", "stride"), [(4, 4), (8, 2), (8, 8)])
def test_a_stem_must_end_in_width_and_stride(width: int, stride: int) -> None:
    with pytest.raises(ValueError, match=f"width {width} and stride {stride}"):
        ConvStem(((4, 0), (8, 0)), width, stride)


def test_the_demo_preset_has_one_in_both_towers() -> None:
    model = build_model("ssp-sam-demo")
    encoder = build_image_encoder(model.preset.image_encoder)
    assert isinstance(model.clip.towers.visual.conv1, ConvStem)
    assert isinstance(encoder.patch_embed, PatchEmbedding)


@pytest.mark.parametrize("name", ["ssp-sam-224", "ssp-sam-336"])
def test_published_presets_stay_stock(name: str) -> None:
    with torch.device("meta"):
        model = build_model(name)
    assert isinstance(model.clip.towers.visual.conv1, torch.nn.Conv2d)


def test_statistics_do_not_move_in_evaluation() -> None:
    model = build_model("ssp-sam-test")
    before = {key: value.clone() for key, value in model.clip.state_dict().items()}
    with torch.inference_mode():
        model.encode_image(torch.randn(1, 3, 32, 32))
    assert all(torch.equal(before[key], value) for key, value in model.clip.state_dict().items())
