"""The linguistic and visual attention adapters, and their replacements in ablations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sspsam.modeling.attention import attend
from sspsam.modeling.clip import TextFeatures
from sspsam.modeling.sam_layers import MLP
from sspsam.presets import Preset, Verification


class PhraseFeatures(NamedTuple):
    """Adapted text features of a phrase."""

    words: Tensor | None
    """(B, L, adapter dim): projected word features; None if nothing attends to them."""
    phrase: Tensor
    """(B, adapter dim): the phrase vector."""
    attention: Tensor | None
    """(B, L): weights of the words in it, 0 at padding, summing to 1; None without the linguistic adapter."""
    padding: Tensor
    """(B, L) bool: True at padding."""

    def row(self, number: int, length: int) -> PhraseFeatures:
        """One phrase of the batch, cut to its length, in separate memory; its padding is never read."""
        row = PhraseFeatures._make(None if field is None else field[number : number + 1] for field in self)
        return PhraseFeatures(
            None if row.words is None else row.words[:, :length].clone(),
            row.phrase.clone(),
            None if row.attention is None else row.attention[:, :length].clone(),
            row.padding[:, :length].clone(),
        )

    @classmethod
    def stack(cls, phrases: Sequence[PhraseFeatures]) -> PhraseFeatures:
        """Concatenates rows to a batch, padded to the longest."""
        longest = max(row.padding.shape[1] for row in phrases)
        padded = [row.pad(longest - row.padding.shape[1]) for row in phrases]
        columns = zip(*padded, strict=True)
        return cls._make(None if column[0] is None else torch.cat(column) for column in columns)

    def pad(self, more: int) -> PhraseFeatures:
        """With additional padding after the words."""
        return PhraseFeatures(
            None if self.words is None else F.pad(self.words, (0, 0, 0, more)),
            self.phrase,
            None if self.attention is None else F.pad(self.attention, (0, more)),
            F.pad(self.padding, (0, more), value=True),
        )

    @property
    def nbytes(self) -> int:
        """Bytes of the tensors."""
        return sum(tensor.nbytes for tensor in self if tensor is not None)


class LinguisticAttentionAdapter(nn.Module):
    """Weights the words of a phrase and sums them to one vector."""

    def __init__(self, text_width: int, dim: int) -> None:
        super().__init__()
        self.word_projection = nn.Linear(text_width, dim)
        self.gru = nn.GRU(dim, dim, batch_first=True, bidirectional=True)
        self.attention_score = nn.Linear(2 * dim, 1)

    def forward(self, text: TextFeatures, tokens: Tensor) -> PhraseFeatures:
        """Adapts the features of (B, L) tokens."""
        padding = tokens == 0
        words = self.word_projection(text.words)  # (B, L, dim)
        score = self.attention_score(self._read_both_ways(words, padding)).squeeze(-1)  # (B, M)
        # As in the authors' code, the softmax includes padding, which is then zeroed and renormalised.
        attention = score.masked_fill(padding[:, : score.shape[1]], -torch.inf).softmax(dim=-1)
        attention = F.pad(attention, (0, words.shape[1] - attention.shape[1]))  # (B, L)
        phrase = torch.einsum("bl,bld->bd", attention, words)
        return PhraseFeatures(words, phrase, attention, padding)

    def _read_both_ways(self, words: Tensor, padding: Tensor) -> Tensor:
        """The GRU's output for the first M words, followed by padding only: (B, M, 2 * dim).

        On a GPU, all positions run in one kernel. On a CPU, steps are sequential, and the forward direction
        need not enter the padding; the backward direction must come out of it, as in training of the released
        weights.
        """
        if words.is_cuda:
            return cast(Tensor, self.gru(words)[0])
        longest = int((~padding).sum(dim=1).max())
        ahead = self._read_one_way(words[:, :longest], "")
        back = self._read_one_way(words.flip(1), "_reverse").flip(1)[:, :longest]
        return torch.cat([ahead, back], dim=-1)

    def _read_one_way(self, words: Tensor, direction: str) -> Tensor:
        """One direction of the GRU: (B, L, dim)."""
        weights = [
            getattr(self.gru, f"{kind}_l0{direction}")
            for kind in ("weight_ih", "weight_hh", "bias_ih", "bias_hh")
        ]
        start = words.new_zeros(1, len(words), self.gru.hidden_size)
        return torch.gru(words, start, weights, True, 1, 0.0, self.training, False, True)[0]

    def projections(self) -> list[nn.Linear]:
        """Its linear layers applied to words, in execution order."""
        return [self.word_projection]


class SentenceAdapter(nn.Module):
    """Replacement of the linguistic adapter: the sentence feature is the phrase vector.

    It is projected if its width differs from the adapters', and if no words are projected either.
    """

    def __init__(self, text_width: int, clip_dim: int, dim: int, with_words: bool) -> None:
        super().__init__()
        self.word_projection = nn.Linear(text_width, dim) if with_words else None
        as_it_is = with_words and clip_dim == dim
        self.sentence_projection = nn.Identity() if as_it_is else nn.Linear(clip_dim, dim)

    def forward(self, text: TextFeatures, tokens: Tensor) -> PhraseFeatures:
        """Adapts the features of (B, L) tokens."""
        words = None if self.word_projection is None else self.word_projection(text.words)  # (B, L, dim)
        return PhraseFeatures(words, self.sentence_projection(text.sentence), None, tokens == 0)

    def projections(self) -> list[nn.Linear]:
        """Its linear layers."""
        layers = (self.word_projection, self.sentence_projection)
        return [layer for layer in layers if isinstance(layer, nn.Linear)]


class VisualAttentionAdapter(nn.Module):
    """Keeps the patches confirmed by the words: similarity, cross attention, verification score."""

    def __init__(
        self, clip_dim: int, dim: int, heads: int, dropout: float, verification: Verification
    ) -> None:
        super().__init__()
        self.verification = verification
        self.patch_projection = MLP(clip_dim, dim, dim, 3)
        if verification != "none":
            self.words_attention = nn.MultiheadAttention(dim, heads, dropout, batch_first=True)
            self.patch_verification = nn.Linear(dim, dim)
            self.words_verification = nn.Linear(dim, dim)
        if verification == "gaussian":
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
        if self.verification == "none":
            return cast(Tensor, self.patch_norm(patches))
        attended = self.attend_words(patches, phrase)
        score = self.verification_score(patches, attended)
        return cast(Tensor, self.patch_norm(patches) * score)

    def attend_words(self, patches: Tensor, phrase: PhraseFeatures) -> Tensor:
        """Aggregates for each patch the words relevant to it: (B, G*G, dim)."""
        assert phrase.words is not None, "attending to words requires projected words"
        words = ~phrase.padding[:, None, None]  # (B, 1, 1, L)
        return attend(self.words_attention, patches, phrase.words, phrase.words, words)

    def verification_score(self, patches: Tensor, attended: Tensor) -> Tensor:
        """The cosine of a patch and its attended words, or a learned Gaussian of it: (B, G*G, 1)."""
        cosine = F.cosine_similarity(
            self.patch_verification(patches), self.words_verification(attended), dim=-1, eps=1e-12
        )
        if self.verification == "cosine":
            return cosine.unsqueeze(-1)
        distance = (1 - cosine).pow(2) / (2 * self.verification_sigma.pow(2))
        return (self.verification_scale * torch.exp(-distance)).unsqueeze(-1)

    def projections(self) -> list[nn.Linear]:
        """Its linear layers, in execution order."""
        layers: list[nn.Linear] = [*self.patch_projection.layers]
        if self.verification != "none":
            layers += [self.patch_verification, self.words_verification]
        return layers


class PatchProjection(nn.Module):
    """Replacement of the visual adapter: patches in the adapters' width, independent of the phrase."""

    def __init__(self, clip_dim: int, dim: int) -> None:
        super().__init__()
        self.patch_projection = MLP(clip_dim, dim, dim, 3)

    def forward(self, patch_features: Tensor, _sentence_feature: Tensor, _phrase: PhraseFeatures) -> Tensor:
        """(B, G*G, D) to (B, G*G, adapter dim)."""
        return cast(Tensor, self.patch_projection(patch_features))

    def projections(self) -> list[nn.Linear]:
        """Its linear layers, in execution order."""
        return [*self.patch_projection.layers]


def build_linguistic_adapter(preset: Preset) -> LinguisticAttentionAdapter | SentenceAdapter:
    """The linguistic adapter, or its replacement."""
    clip, prompt = preset.clip, preset.prompt
    if prompt.linguistic_adapter:
        return LinguisticAttentionAdapter(clip.text_width, prompt.adapter_dim)
    with_words = prompt.visual_adapter and prompt.verification != "none"
    return SentenceAdapter(clip.text_width, clip.embed_dim, prompt.adapter_dim, with_words)


def build_visual_adapter(preset: Preset) -> VisualAttentionAdapter | PatchProjection:
    """The visual adapter, or its replacement."""
    clip, prompt = preset.clip, preset.prompt
    if not prompt.visual_adapter:
        return PatchProjection(clip.embed_dim, prompt.adapter_dim)
    return VisualAttentionAdapter(
        clip.embed_dim, prompt.adapter_dim, prompt.adapter_heads, prompt.adapter_dropout, prompt.verification
    )


def similarity_map(patch_features: Tensor, sentence_feature: Tensor) -> Tensor:
    """Patch-sentence similarity, scaled to 0..1 over the patches of each image: (B, G*G, 1)."""
    similarity = torch.einsum("bnd,bd->bn", patch_features, sentence_feature)
    low = similarity.amin(dim=1, keepdim=True)
    high = similarity.amax(dim=1, keepdim=True)
    return ((similarity - low) / (high - low)).unsqueeze(-1)
