"""The semantic-spatial prompt generator (fusion transformer) and the box head."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
from torch import Tensor, nn

from sspsam.modeling.attention import attend
from sspsam.modeling.sam_layers import MLP
from sspsam.presets import PromptConfig


class Prompts(NamedTuple):
    """Output of the prompt generator."""

    box_token: Tensor
    """(B, dim): input of the box head."""
    prompt_tokens: Tensor
    """(B, N, dim): the semantic-spatial prompts."""
    fused_patches: Tensor | None
    """(B, G*G, dim): the fused patches, if requested, for training losses."""

    def sparse_prompt_embeddings(self, extra: Tensor | None = None) -> Tensor:
        """(B, N + M, dim) for SAM's decoder, with (B, M, dim) additional prompts."""
        return self.prompt_tokens if extra is None else torch.cat([self.prompt_tokens, extra], dim=1)


class FusionLayer(nn.Module):
    """A post-norm transformer encoder layer with positions added to queries and keys, as in DETR."""

    def __init__(self, dim: int, heads: int, feedforward_dim: int) -> None:
        super().__init__()
        self.self_attn = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.linear1 = nn.Linear(dim, feedforward_dim)
        self.linear2 = nn.Linear(feedforward_dim, dim)
        self.norm1 = nn.LayerNorm(dim)
        self.norm2 = nn.LayerNorm(dim)

    def forward(self, sequence: Tensor, position: Tensor, answers: int | None = None) -> Tensor:
        """(B, L, dim) and (L, dim) to (B, L, dim), or to the first (B, answers, dim) of them."""
        placed = sequence + position
        queries = placed if answers is None else placed[:, :answers]
        attended = attend(self.self_attn, queries, placed, sequence)
        sequence = self.norm1(sequence[:, :answers] + attended)
        return cast(Tensor, self.norm2(sequence + self.linear2(self.linear1(sequence).relu())))


class PromptGenerator(nn.Module):
    """Fuses a box token, the prompt tokens and the multimodal patches in one sequence."""

    def __init__(self, config: PromptConfig, dim: int, patches: int) -> None:
        super().__init__()
        self.box_token = nn.Embedding(1, dim)
        self.prompt_tokens = nn.Embedding(config.tokens, dim)
        self.position = nn.Embedding(1 + config.tokens + patches, dim)
        self.layers = nn.ModuleList(
            FusionLayer(dim, config.heads, config.feedforward_dim) for _ in range(config.layers)
        )
        self.norm = nn.LayerNorm(dim)
        self.placed_patches = config.placed_patches
        for parameter in self.layers.parameters():
            if parameter.dim() > 1:
                nn.init.xavier_uniform_(parameter)

    def forward(self, multimodal_patches: Tensor, with_patches: bool = False) -> Prompts:
        """Generates prompts from (B, G*G, dim) multimodal patches.

        Args:
            multimodal_patches: as from `SSPSAM.fuse`.
            with_patches: also compute the patches in the last layer, which only training needs.
        """
        learned = torch.cat([self.box_token.weight, self.prompt_tokens.weight])
        learned = learned.expand(len(multimodal_patches), -1, -1).to(multimodal_patches.dtype)
        if self.placed_patches:
            multimodal_patches = multimodal_patches + self.position.weight[learned.shape[1] :]
        sequence = torch.cat([learned, multimodal_patches], dim=1)  # (B, 1 + N + G*G, dim)
        first_patch = learned.shape[1]
        *layers, last = self.layers
        for layer in layers:
            sequence = layer(sequence, self.position.weight)
        sequence = last(sequence, self.position.weight, None if with_patches else first_patch)
        sequence = self.norm(sequence)
        patches = sequence[:, first_patch:] if with_patches else None
        return Prompts(sequence[:, 0], sequence[:, 1:first_patch], patches)


class BoxHead(MLP):  # type: ignore[misc]  # segment_anything is not typed
    """Referring expression comprehension: the box of the referent.

    Maps (B, dim) to (B, 4), cxcywh in 0..1 of the CLIP input.
    """

    def __init__(self, dim: int) -> None:
        super().__init__(dim, dim, 4, 3, sigmoid_output=True)
