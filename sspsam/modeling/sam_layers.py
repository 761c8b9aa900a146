"""The layers of the segment-anything package, imported by one thread at a time."""

# ruff: noqa: E402

from __future__ import annotations

from sspsam.runtime.libraries import import_one_by_one

import_one_by_one("torchvision", "segment_anything")

from segment_anything.modeling import ImageEncoderViT, MaskDecoder, PromptEncoder, TwoWayTransformer
from segment_anything.modeling.image_encoder import Attention as EncoderAttention
from segment_anything.modeling.image_encoder import Block, get_rel_pos, window_partition, window_unpartition
from segment_anything.modeling.mask_decoder import MLP
from segment_anything.modeling.transformer import Attention as DecoderAttention
from segment_anything.modeling.transformer import TwoWayAttentionBlock

__all__ = [
    "MLP",
    "Block",
    "DecoderAttention",
    "EncoderAttention",
    "ImageEncoderViT",
    "MaskDecoder",
    "PromptEncoder",
    "TwoWayAttentionBlock",
    "TwoWayTransformer",
    "get_rel_pos",
    "window_partition",
    "window_unpartition",
]
