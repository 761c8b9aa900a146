"""SAM's stock components, with a mask decoder for batches of images."""

from __future__ import annotations

from functools import partial
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sspsam.modeling.image_encoder import ImageEncoder
from sspsam.modeling.sam_layers import MaskDecoder, PromptEncoder, TwoWayTransformer
from sspsam.modeling.stem import ConvStem, PatchEmbedding
from sspsam.modeling.tiny_vit import TinyViT
from sspsam.modeling.two_way import ProjectedImage, attend_both_ways, project_image
from sspsam.presets import IMAGE_ENCODERS, DecoderConfig, ImageEncoderConfig, TinyViTConfig


def build_image_encoder(name: str) -> ImageEncoder | TinyViT:
    """Builds a SAM image encoder with random weights: (B, 3, S, S) to (B, C, S/16, S/16).

    Args:
        name: key of IMAGE_ENCODERS; `mobile` is MobileSAM's, whose embeddings replace those of `vit_h`.

    Raises:
        ValueError: unknown name.
    """
    if name not in IMAGE_ENCODERS:
        raise ValueError(f"unknown image encoder {name!r}, expected one of: {', '.join(IMAGE_ENCODERS)}")
    config = IMAGE_ENCODERS[name]
    return TinyViT(config) if isinstance(config, TinyViTConfig) else _build_vit(config)


def _build_vit(config: ImageEncoderConfig) -> ImageEncoder:
    encoder = ImageEncoder(
        img_size=config.image_size,
        patch_size=config.patch_size,
        embed_dim=config.width,
        depth=config.depth,
        num_heads=config.heads,
        mlp_ratio=4,
        out_chans=config.embedding_dim,
        norm_layer=partial(nn.LayerNorm, eps=1e-6),
        use_rel_pos=True,
        window_size=config.window_size,
        global_attn_indexes=config.global_attention_blocks,
    )
    if config.stem:
        encoder.patch_embed = PatchEmbedding(ConvStem(config.stem, config.width, config.patch_size))
    return encoder


class SAMDecoder(nn.Module):
    """SAM's prompt encoder and mask decoder: prompts and an image embedding to a mask."""

    def __init__(self, config: DecoderConfig, image_encoder: ImageEncoderConfig | TinyViTConfig) -> None:
        super().__init__()
        dim, side = image_encoder.embedding_dim, image_encoder.embedding_size
        self.prompt_encoder = PromptEncoder(
            embed_dim=dim,
            image_embedding_size=(side, side),
            input_image_size=(image_encoder.image_size, image_encoder.image_size),
            mask_in_chans=config.mask_in_channels,
        )
        self.mask_decoder = MaskDecoder(
            num_multimask_outputs=3,
            transformer=TwoWayTransformer(config.depth, dim, config.heads, config.feedforward_dim),
            transformer_dim=dim,
            iou_head_depth=3,
            iou_head_hidden_dim=dim,
        )

    def forward(self, image_embeddings: Tensor, sparse_prompt_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes one mask per image and prompt.

        segment_anything's `MaskDecoder.forward` takes one image with many prompts; this takes pairs, runs the
        same modules and only the first mask token, which is what `multimask_output=False` returns.

        Args:
            image_embeddings: (B, C, h, w).
            sparse_prompt_embeddings: (B, N, C).

        Returns:
            mask logits (B, 1, 4h, 4w) and predicted IoU (B,).
        """
        return self.decode(self.project(image_embeddings), sparse_prompt_embeddings)

    def project(self, image_embeddings: Tensor) -> ProjectedImage:
        """Decoder features of (B, C, h, w) image embeddings that do not depend on prompts."""
        source = image_embeddings + self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        return project_image(self.mask_decoder.transformer, source, self.prompt_encoder.get_dense_pe())

    def decode(self, image: ProjectedImage, sparse_prompt_embeddings: Tensor) -> tuple[Tensor, Tensor]:
        """Decodes one mask per row of prompts.

        Args:
            image: of B images, or one for all rows.
            sparse_prompt_embeddings: (B, N, C).

        Returns:
            as `forward`.
        """
        decoder = self.mask_decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        output_tokens = output_tokens.expand(len(sparse_prompt_embeddings), -1, -1)
        tokens = torch.cat(
            [output_tokens.to(sparse_prompt_embeddings.dtype), sparse_prompt_embeddings], dim=1
        )
        tokens, cells = attend_both_ways(decoder.transformer, image, tokens, answers=2)
        kernel = decoder.output_hypernetworks_mlps[0](tokens[:, 1])  # (B, C/8)
        mask_logits = upscale(decoder.output_upscaling, cells, kernel, image.grid_hw).unsqueeze(1)
        iou_predictions = decoder.iou_prediction_head(tokens[:, 0])[:, 0]
        return mask_logits, cast(Tensor, iou_predictions)


def upscale(upscaling: nn.Sequential, cells: Tensor, kernel: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Computes mask logits from cells.

    Stock modules and numbers, in the memory order of the cells: a transposed convolution whose stride equals
    its size maps each cell separately, so only the logits have to be rearranged.

    Args:
        upscaling: segment_anything's `output_upscaling`.
        cells: (B, h*w, C).
        kernel: (B, C/8).
        grid_hw: (h, w).

    Returns:
        (B, 4h, 4w).
    """
    first, norm, first_activation, second, second_activation = cast(Any, upscaling)
    halves = _spread(first, cells)  # (B, h*w, 2*2, C/4)
    halves = F.layer_norm(halves, norm.weight.shape, norm.weight, norm.bias, norm.eps)
    quarters = second_activation(_spread(second, first_activation(halves)))  # (B, h*w, 2*2, 2*2, C/8)
    logits = torch.stack([row @ one for row, one in zip(quarters, kernel, strict=True)])  # (B, h*w, 2*2, 2*2)
    logits = logits.view(-1, *grid_hw, 2, 2, 2, 2).permute(0, 1, 3, 5, 2, 4, 6)  # (B, h, 2, 2, w, 2, 2)
    return logits.reshape(-1, 4 * grid_hw[0], 4 * grid_hw[1])


def _spread(convolution: nn.ConvTranspose2d, cells: Tensor) -> Tensor:
    """A transposed convolution of size and stride 2 on (..., C) cells: (..., 2*2, C')."""
    weight = convolution.weight.permute(2, 3, 1, 0).flatten(0, 2)  # (2*2*C', C)
    bias = None if convolution.bias is None else convolution.bias.repeat(4)
    return F.linear(cells, weight, bias).view(*cells.shape[:-1], 4, -1)
