"""SAM's image encoder: segment_anything's numbers, however attention is sliced."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from segment_anything.modeling import ImageEncoderViT
from torch import nn

from sspsam.modeling import image_encoder
from sspsam.modeling.image_encoder import ImageEncoder


def build(kind: type[ImageEncoderViT]) -> ImageEncoderViT:
    """Twelve cells a side, in windows of five (the last ones padded) and as a whole."""
    torch.manual_seed(0)
    encoder = kind(
        img_size=192, patch_size=16, embed_dim=32, depth=4, num_heads=2, out_chans=16, use_rel_pos=True,
        norm_layer=partial(nn.LayerNorm, eps=1e-6), window_size=5, global_attn_indexes=(1, 3),
    ).eval()  # fmt: skip
    for name, parameter in encoder.named_parameters():
        if "rel_pos" in name or name == "pos_embed":
            nn.init.normal_(parameter, std=0.5)
    return encoder


@pytest.fixture(scope="module")
def encoders() -> tuple[ImageEncoderViT, ImageEncoder]:
    stock, ours = build(ImageEncoderViT), build(ImageEncoder)
    assert stock.state_dict().keys() == ours.state_dict().keys()
    ours.load_state_dict(stock.state_dict())
    return stock, ours


@pytest.mark.parametrize("slice_bytes", [1, 5000, 2**25], ids=["query by query", "slices", "whole"])
def test_numbers_are_segment_anythings(
    encoders: tuple[ImageEncoderViT, ImageEncoder], slice_bytes: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(image_encoder, "SLICE_BYTES", slice_bytes)
    stock, ours = encoders
    images = torch.randn(2, 3, 192, 192)
    with torch.inference_mode():
        expected, found = stock(images), ours(images)
    assert found.is_contiguous()
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)


def test_relative_positions_of_another_grid_are_interpolated(
    encoders: tuple[ImageEncoderViT, ImageEncoder],
) -> None:
    stock_block, our_block = (encoder.blocks[1] for encoder in encoders)
    cells = torch.randn(1, 7, 7, 32)
    with torch.inference_mode():
        expected = stock_block(cells)
        torch.testing.assert_close(image_encoder.run_block(our_block, cells), expected, atol=1e-5, rtol=0)


def test_it_learns_as_segment_anythings_does(encoders: tuple[ImageEncoderViT, ImageEncoder]) -> None:
    images = torch.randn(1, 3, 192, 192)
    gradients = []
    for encoder in encoders:
        encoder.zero_grad()
        encoder(images).square().mean().backward()
        gradients.append({name: p.grad for name, p in encoder.named_parameters() if p.grad is not None})
    assert gradients[0].keys() == gradients[1].keys()
    for name, expected in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], expected, atol=1e-5, rtol=1e-3)


def test_bfloat16_stays_near(encoders: tuple[ImageEncoderViT, ImageEncoder]) -> None:
    images = torch.randn(1, 3, 192, 192)
    with torch.inference_mode():
        expected = encoders[1](images)
        with torch.autocast("cpu", torch.bfloat16):
            found = encoders[1](images)
    assert torch.nn.functional.cosine_similarity(found.float().flatten(), expected.flatten(), dim=0) > 0.999
