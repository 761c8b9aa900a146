"""Tensor naming of SSP-SAM's authors, OpenAI's CLIP and open_clip, segment_anything, and ours.

Our names are those of `SSPSAM.state_dict()`, with `image_encoder.` before those of SAM's image encoder, which
is not part of the model. This module only renames; tensors stay unchanged.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Literal

from torch import Tensor

Layout = Literal["ours", "ssp-sam", "clip", "sam"]
"""`ssp-sam` is a checkpoint of the authors' training, `clip` OpenAI's or open_clip's, `sam` Meta's."""

IMAGE_ENCODER_PREFIX = "image_encoder."
CLIP_PREFIX = "clip.towers."

REFERENCE_PREFIXES = {
    "encoder.": CLIP_PREFIX,
    "clip_proj.": "linguistic_adapter.word_projection.",
    "text_proj.": "linguistic_adapter.gru.",
    "phrase_attn.fc.": "linguistic_adapter.attention_score.",
    "clip_img_proj.": "visual_adapter.patch_projection.",
    "img2text_attn.": "visual_adapter.words_attention.",
    "img_proj.layers.0.": "visual_adapter.patch_verification.",
    "imgtext_proj.layers.0.": "visual_adapter.words_verification.",
    "tf_scale": "visual_adapter.verification_scale",
    "tf_sigma": "visual_adapter.verification_sigma",
    "norm_img.": "visual_adapter.patch_norm.",
    "mlp.": "fusion.",
    "reg_token.": "prompt_generator.box_token.",
    "prompt_token.": "prompt_generator.prompt_tokens.",
    "vl_pos_embed.": "prompt_generator.position.",
    "vl_transformer.encoder.layers.": "prompt_generator.layers.",
    "norm.": "prompt_generator.norm.",
    "bbox_embed.": "box_head.",
    "sam.image_encoder.": IMAGE_ENCODER_PREFIX,
    "sam.prompt_encoder.": "sam.prompt_encoder.",
    "sam.mask_decoder.": "sam.mask_decoder.",
}
"""The reference implementation's layout to ours; no prefix is a prefix of another."""

SAM_PREFIXES = {
    "image_encoder.": IMAGE_ENCODER_PREFIX,
    "prompt_encoder.": "sam.prompt_encoder.",
    "mask_decoder.": "sam.mask_decoder.",
}

UNUSED_REFERENCE_PREFIXES = (
    "img2img_attn.",  # two modules in released checkpoints that the forward pass never uses
    "norm_text_cond_img.",
    "sam.pixel_",  # constants of SAM's preprocessing
    "encoder.visual.attn.",  # a copy left behind by the reference's lazy surgery
)
UNUSED_CLIP_NAMES = frozenset({"input_resolution", "context_length", "vocab_size", "attn_mask"})
"""Sizes stored as tensors in OpenAI's archives, and the causal mask, which is not a weight."""
UNUSED_SAM_PREFIXES = ("pixel_", "image_encoder.norm_head.", "image_encoder.head.")
"""Constants of SAM's preprocessing, and the ImageNet head in MobileSAM's file."""

SURGERY_RENAMES = {
    ".attn.qkv.weight": ".attn.in_proj_weight",
    ".attn.qkv.bias": ".attn.in_proj_bias",
    ".attn.proj.weight": ".attn.out_proj.weight",
    ".attn.proj.bias": ".attn.out_proj.bias",
}
"""Renaming of attention in the last image blocks by the reference's surgery."""

_OUR_PARTS = (
    "clip.", "linguistic_adapter.", "visual_adapter.", "fusion.", "prompt_generator.",
    "box_head.", "presence_head.", "sam.",
)  # fmt: skip


def find_layout(names: Collection[str]) -> Layout:
    """Detects the layout from the names.

    Raises:
        ValueError: unknown layout.
    """
    if "tf_scale" in names or "vl_pos_embed.weight" in names:
        return "ssp-sam"
    if "visual.class_embedding" in names and "token_embedding.weight" in names:
        return "clip"
    if any(name.startswith(_OUR_PARTS) for name in names):
        return "ours"
    if any(name.startswith(tuple(SAM_PREFIXES)) for name in names):
        return "sam"
    some = ", ".join(sorted(names)[:5]) or "none"
    raise ValueError(
        "not the tensors of SSP-SAM, of a CLIP ViT (OpenAI's or open_clip's names) or of SAM; the first "
        f"names are: {some}"
    )


def to_ours(state: Mapping[str, Tensor], layout: Layout) -> dict[str, Tensor]:
    """Renames; known unused tensors are dropped, unknown names are kept for the strict loader to report."""
    if layout == "ssp-sam":
        return reference_to_ours(state)
    if layout == "clip":
        return clip_to_ours(state)
    if layout == "sam":
        return {
            _with_prefix(name, SAM_PREFIXES): value
            for name, value in state.items()
            if not name.startswith(UNUSED_SAM_PREFIXES)
        }
    return dict(state)


def reference_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A checkpoint of the reference implementation, with CLIP in either naming."""
    return {
        _without_surgery(_with_prefix(name, REFERENCE_PREFIXES)): value
        for name, value in state.items()
        if not name.startswith(UNUSED_REFERENCE_PREFIXES)
    }


def clip_to_ours(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """CLIP as OpenAI and open_clip name it."""
    return {
        _without_surgery(CLIP_PREFIX + name): value
        for name, value in state.items()
        if name not in UNUSED_CLIP_NAMES
    }


def _with_prefix(name: str, prefixes: Mapping[str, str]) -> str:
    for prefix, replacement in prefixes.items():
        if name.startswith(prefix):
            return replacement + name.removeprefix(prefix)
    return name


def _without_surgery(name: str) -> str:
    if name.startswith(CLIP_PREFIX + "visual."):
        for old, new in SURGERY_RENAMES.items():
            name = name.replace(old, new)
    return name
