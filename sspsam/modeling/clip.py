"""Frozen CLIP: patch features by surgery, word features and the sentence feature.

Source: CLIP Surgery (arXiv 2304.05653); open_clip's modules and weights are used as they are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sspsam.modeling.attention import attend, attend_projected, project
from sspsam.modeling.stem import ConvStem
from sspsam.presets import CLIPConfig
from sspsam.runtime.libraries import import_one_by_one

if TYPE_CHECKING:
    import open_clip
    from open_clip.transformer import ResidualAttentionBlock

CONTEXT_LENGTH = 77
"""Context length of the text tower."""


class TextFeatures(NamedTuple):
    """Text features of a phrase."""

    words: Tensor
    """(B, 77, text width), before the projection to the joint space."""
    sentence: Tensor
    """(B, D), L2-normalised."""


class CLIPTowers(nn.Module):
    """open_clip's image and text towers, with the outputs that SSP-SAM needs."""

    def __init__(self, config: CLIPConfig) -> None:
        super().__init__()
        self.config = config
        self.towers = _build_towers(config)

    def encode_image(self, clip_images: Tensor) -> Tensor:
        """Runs the image tower with surgery in its last blocks.

        Args:
            clip_images: (B, 3, S, S), normalised; S need not be the preset's.

        Returns:
            (B, 1 + G*G, D): the class token of the original path, then the patch tokens of the surgery path.
        """
        visual = self.towers.visual
        tokens = visual.ln_pre(self._embed_patches(clip_images))  # (B, 1 + G*G, width)
        blocks = visual.transformer.resblocks
        first_surgery = len(blocks) - self.config.surgery_blocks
        for block in blocks[:first_surgery]:
            tokens = run_block(block, tokens)
        # The ordinary path continues beside the surgery path. Each block of the surgery path reads the
        # ordinary tokens, and its residual sum skips the MLPs,
        # which harm localisation (CLIP Surgery, sec. 3).
        surgery_tokens = tokens
        for block in blocks[first_surgery:]:
            is_last = block is blocks[-1]
            tokens, read = run_surgery_block(block, tokens, class_token_only=is_last)
            surgery_tokens = surgery_tokens + read
        # The class token keeps its ordinary value: value-value attention helps patches, not the summary.
        features = torch.cat([tokens[:, :1], surgery_tokens[:, 1:]], dim=1)
        return cast(Tensor, visual.ln_post(features) @ visual.proj)  # (B, 1 + G*G, D)

    def encode_text(self, tokens: Tensor, offsets: Tensor | None = None) -> TextFeatures:
        """Runs the text tower on (B, L) int64 tokens; padding does not change sentence features.

        Args:
            tokens: as from `sspsam.phrases.tokenize`.
            offsets: (B, L, text width), added to their embeddings: learned words.
        """
        towers, length = self.towers, tokens.shape[1]
        embedded = towers.token_embedding(tokens) + towers.positional_embedding[:length]
        embedded = embedded if offsets is None else embedded + offsets
        mask = towers.attn_mask[:length, :length]
        for block in towers.transformer.resblocks:
            embedded = run_block(block, embedded, mask)
        words = towers.ln_final(embedded)  # (B, L, width)
        # The end-of-text token has the highest id, so argmax finds it without a length.
        end_of_text = words[torch.arange(len(tokens), device=tokens.device), tokens.argmax(dim=-1)]
        return TextFeatures(words, F.normalize(end_of_text @ towers.text_projection, dim=-1))

    def text_tower(self) -> dict[str, nn.Parameter]:
        """The parameters used for sentences, by their names in this module."""
        rest = ("towers.visual.", "towers.logit_scale")
        return {name: p for name, p in self.named_parameters() if not name.startswith(rest)}

    def restore_attention_mask(self) -> None:
        """Recomputes the causal mask, which is not a weight, after construction on the meta device."""
        mask = torch.full((CONTEXT_LENGTH, CONTEXT_LENGTH), float("-inf")).triu_(1)
        self.towers.register_buffer("attn_mask", mask, persistent=False)

    def _embed_patches(self, clip_images: Tensor) -> Tensor:
        visual = self.towers.visual
        patches = visual.conv1(clip_images)  # (B, width, G, G)
        grid_hw = (patches.shape[-2], patches.shape[-1])
        patches = patches.flatten(2).transpose(1, 2)  # (B, G*G, width)
        class_token = visual.class_embedding.to(patches.dtype).expand(len(patches), 1, -1)
        position = interpolate_position_embedding(visual.positional_embedding, grid_hw)
        return torch.cat([class_token, patches], dim=1) + position.to(patches.dtype)


def run_surgery_block(
    block: ResidualAttentionBlock, tokens: Tensor, class_token_only: bool = False
) -> tuple[Tensor, Tensor]:
    """Runs a stock block on both paths; they share its normalised tokens and their values.

    Args:
        block: its attention is an ordinary layer.
        tokens: (B, L, width), ordinary tokens.
        class_token_only: compute no other row of the ordinary path, for the last block.

    Returns:
        The ordinary tokens, (B, L, width) or (B, 1, width), and value-value attention on the given ones,
        (B, L, width): self-attention in which the values also serve as queries and keys.

    Source: CLIP Surgery (arXiv 2304.05653), sec. 3.
    """
    query, key, value = project(block.attn, block.ln_1(tokens), 0, 3).chunk(3, dim=-1)
    read = attend_projected(block.attn, value, value, value)
    if class_token_only:
        query, tokens = query[:, :1], tokens[:, :1]
    attended = attend_projected(block.attn, query, key, value)
    return _add_attended(block, tokens, attended), read


def run_block(block: ResidualAttentionBlock, tokens: Tensor, mask: Tensor | None = None) -> Tensor:
    """Runs a stock block of open_clip's transformers on (B, L, width) tokens."""
    normed = block.ln_1(tokens)
    return _add_attended(block, tokens, attend(block.attn, normed, normed, normed, mask))


def _add_attended(block: ResidualAttentionBlock, tokens: Tensor, attended: Tensor) -> Tensor:
    """The rest of a block behind its attention."""
    tokens = tokens + block.ls_1(attended)
    return tokens + cast(Tensor, block.ls_2(block.mlp(block.ln_2(tokens))))


def interpolate_position_embedding(position: Tensor, grid_hw: tuple[int, int]) -> Tensor:
    """Resizes a learned position embedding (1 + G*G, width) bilinearly to another grid."""
    side = int((len(position) - 1) ** 0.5)
    if (side, side) == grid_hw:
        return position
    grid = position[1:].view(1, side, side, -1).permute(0, 3, 1, 2)  # (1, width, G, G)
    grid = F.interpolate(grid, size=grid_hw, mode="bilinear", align_corners=False)
    return torch.cat([position[:1], grid.flatten(2)[0].T])


def _build_towers(config: CLIPConfig) -> open_clip.CLIP:
    # Here, because it takes longer than torch: not every process makes a model.
    import_one_by_one("torchvision", "open_clip")
    import open_clip

    towers = open_clip.CLIP(
        embed_dim=config.embed_dim,
        vision_cfg=open_clip.CLIPVisionCfg(
            layers=config.layers,
            width=config.width,
            head_width=config.width // config.heads,
            patch_size=config.patch_size,
            image_size=config.image_size,
        ),
        text_cfg=open_clip.CLIPTextCfg(
            context_length=CONTEXT_LENGTH,
            width=config.text_width,
            heads=config.text_heads,
            layers=config.text_layers,
        ),
        quick_gelu=config.quick_gelu,
    )
    if config.stem:
        towers.visual.conv1 = ConvStem(config.stem, config.width, config.patch_size)
    return towers
