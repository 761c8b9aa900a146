"""SAM's parts, built stock, and its mask decoder called on a batch of images."""

from __future__ import annotations

from functools import partial
from typing import cast

import torch
from segment_anything.modeling import MaskDecoder, PromptEncoder, TwoWayTransformer
from torch import Tensor, nn

from sspsam.image_encoder import ImageEncoder
from sspsam.presets import IMAGE_ENCODERS, DecoderConfig, ImageEncoderConfig, TinyViTConfig
from sspsam.stem import ConvStem, PatchEmbedding
from sspsam.tiny_vit import TinyViT


def build_image_encoder(name: str) -> ImageEncoder | TinyViT:
    """Builds a SAM image encoder with random weights: (B, 3, S, S) to (B, C, S/16, S/16).

    Args:
        name: key of IMAGE_ENCODERS; `mobile` is MobileSAM's, whose embeddings stand in for those of `vit_h`.

    Raises:
        ValueError: there is no encoder of that name.
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
        decoder = self.mask_decoder
        output_tokens = torch.cat([decoder.iou_token.weight, decoder.mask_tokens.weight])
        output_tokens = output_tokens.expand(len(sparse_prompt_embeddings), -1, -1)
        tokens = torch.cat(
            [output_tokens.to(sparse_prompt_embeddings.dtype), sparse_prompt_embeddings], dim=1
        )
        source = image_embeddings + self.prompt_encoder.no_mask_embed.weight.view(1, -1, 1, 1)
        tokens, source = decoder.transformer(source, self.prompt_encoder.get_dense_pe(), tokens)
        source = source.transpose(1, 2).reshape(image_embeddings.shape)  # (B, C, h, w)
        upscaled = decoder.output_upscaling(source)  # (B, C/8, 4h, 4w)
        kernel = decoder.output_hypernetworks_mlps[0](tokens[:, 1])  # (B, C/8)
        mask_logits = torch.einsum("bc,bchw->bhw", kernel, upscaled).unsqueeze(1)
        iou_predictions = decoder.iou_prediction_head(tokens[:, 0])[:, 0]
        return mask_logits, cast(Tensor, iou_predictions)
