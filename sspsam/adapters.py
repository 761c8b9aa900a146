"""The linguistic and the visual attention adapter."""

from __future__ import annotations

from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from segment_anything.modeling.mask_decoder import MLP
from torch import Tensor, nn


class PhraseFeatures(NamedTuple):
    """What the linguistic adapter makes of a phrase."""

    words: Tensor
    """(B, 77, adapter dim): projected word features."""
    phrase: Tensor
    """(B, adapter dim): their sum, weighted by attention."""
    attention: Tensor
    """(B, 77): the weights; 0 at padding, 1 in sum."""
    padding: Tensor
    """(B, 77) bool: True at padding."""


class LinguisticAttentionAdapter(nn.Module):
    """Weighs the words of a phrase and sums them into one vector."""

    def __init__(self, text_width: int, dim: int) -> None:
        super().__init__()
        self.word_projection = nn.Linear(text_width, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.attention_score = nn.Linear(2 * dim, 1)

    def forward(self, word_features: Tensor, tokens: Tensor) -> PhraseFeatures:
        """Adapts (B, 77, text width) word features of (B, 77) tokens."""
        padding = tokens == 0
        words = self.word_projection(word_features)  # (B, 77, dim)
        context, _ = self.gru(words)  # (B, 77, 2 * dim)
        score = self.attention_score(context).squeeze(-1)  # (B, 77)
        # The released weights were trained with a softmax that sees the padding, zeroed afterwards.
        attention = score.softmax(dim=-1).masked_fill(padding, 0.0)
        attention = attention / attention.sum(dim=-1, keepdim=True)
        phrase = torch.einsum("bl,bld->bd", attention, words)
        return PhraseFeatures(words, phrase, attention, padding)


class VisualAttentionAdapter(nn.Module):
    """Keeps the patches that the words confirm: similarity, cross attention, verification score."""

    def __init__(self, clip_dim: int, dim: int, heads: int) -> None:
        super().__init__()
        self.patch_projection = MLP(clip_dim, dim, dim, 3)
        self.words_attention = nn.MultiheadAttention(dim, heads, batch_first=True)
        self.patch_verification = nn.Linear(dim, dim)
        self.words_verification = nn.Linear(dim, dim)
        self.verification_scale = nn.Parameter(torch.ones(1))
        self.verification_sigma = nn.Parameter(torch.full((1,), 0.5))
        self.patch_norm = nn.LayerNorm(dim)

    def forward(self, patch_features: Tensor, sentence_feature: Tensor, phrase: PhraseFeatures) -> Tensor:
        """Adapts patch features to a phrase.

        Args:
            patch_features: (B, G*G, D).
            sentence_feature: (B, D), L2-normalised.
            phrase: the linguistic adapter's output.

        Returns:
            (B, G*G, adapter dim).
        """
        similarity = similarity_map(patch_features, sentence_feature)  # (B, G*G, 1)
        patches = self.patch_projection(patch_features * similarity)  # (B, G*G, dim)
        attended = self.attend_words(patches, phrase)
        score = self.verification_score(patches, attended)
        return cast(Tensor, self.patch_norm(patches) * score)

    def attend_words(self, patches: Tensor, phrase: PhraseFeatures) -> Tensor:
        """Each patch gathers the words that concern it: (B, G*G, dim)."""
        attended, _ = self.words_attention(
            patches, phrase.words, phrase.words, key_padding_mask=phrase.padding, need_weights=False
        )
        return cast(Tensor, attended)

    def verification_score(self, patches: Tensor, attended: Tensor) -> Tensor:
        """A learned Gaussian of the cosine between a patch and the words it attended to: (B, G*G, 1)."""
        cosine = F.cosine_similarity(
            self.patch_verification(patches), self.words_verification(attended), dim=-1, eps=1e-12
        )
        distance = (1 - cosine).pow(2) / (2 * self.verification_sigma.pow(2))
        return (self.verification_scale * torch.exp(-distance)).unsqueeze(-1)


def similarity_map(patch_features: Tensor, sentence_feature: Tensor) -> Tensor:
    """Patch-sentence similarity, scaled to 0..1 over the patches of each image: (B, G*G, 1)."""
    similarity = torch.einsum("bnd,bd->bn", patch_features, sentence_feature)
    low = similarity.amin(dim=1, keepdim=True)
    high = similarity.amax(dim=1, keepdim=True)
    return ((similarity - low) / (high - low)).unsqueeze(-1)
