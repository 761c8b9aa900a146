"""New words learned by fine-tuning for the frozen text tower: offsets to their token embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

WORDS_PREFIX = "learned_words."
"""Prefix of these tensors in the model."""


class LearnedTokens(nn.Module):
    """Offsets to the embeddings of a few tokens in CLIP's text tower; initially none.

    The tower stays frozen, and features of phrases without these tokens are unchanged.

    Source: textual inversion (Gal et al., arXiv 2208.01618), which learns only the embedding of a new word.
    """

    tokens: Tensor | None
    """(N,) int64, ascending: the tokens."""
    offsets: nn.Parameter | None
    """(N, text width): offsets to their embeddings."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.register_buffer("tokens", None)
        self.register_parameter("offsets", None)

    def forward(self, tokens: Tensor) -> Tensor | None:
        """Offsets for (B, L) tokens, (B, L, text width); None: none apply."""
        if self.tokens is None or self.offsets is None:
            return None
        places = torch.searchsorted(self.tokens, tokens).clamp(max=len(self.tokens) - 1)
        learned = self.tokens[places] == tokens  # (B, L)
        return self.offsets[places] * learned.unsqueeze(-1)

    def add(self, tokens: Collection[int], device: torch.device) -> None:
        """Adds tokens with offsets of 0, to be trained; existing ones stay."""
        known = {} if self.tokens is None else dict(zip(self.tokens.tolist(), self._rows(), strict=True))
        every = sorted(known.keys() | set(tokens))
        if every:
            offsets = torch.stack([known.get(token, torch.zeros(self.width)) for token in every])
            self.replace({"tokens": torch.tensor(every), "offsets": offsets}, device)

    def replace(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Replaces its tokens and offsets by those of a `state_dict`; an empty one has none."""
        tokens, offsets = state.get("tokens"), state.get("offsets")
        self.tokens = None if tokens is None else tokens.to(device, copy=True)
        self.offsets = None if offsets is None else nn.Parameter(offsets.to(device, copy=True))

    def problems(self, state: Mapping[str, Tensor]) -> list[str]:
        """Describes why `replace` cannot take a state; empty if it can."""
        if not state:
            return []
        tokens, offsets = state.get("tokens"), state.get("offsets")
        if tokens is None or offsets is None or len(state) > 2:
            return [f"{WORDS_PREFIX} has {', '.join(sorted(state))[:200]}, expected tokens and offsets"]
        if tokens.dtype != torch.int64 or tokens.ndim != 1 or not self._are_ascending(tokens):
            return [f"{WORDS_PREFIX}tokens are not distinct, ascending IDs below {self.vocabulary}"]
        if offsets.dtype != torch.float32 or offsets.shape != (len(tokens), self.width):
            return [
                f"{WORDS_PREFIX}offsets are {tuple(offsets.shape)} {offsets.dtype}, "
                f"expected {(len(tokens), self.width)} torch.float32"
            ]
        return []

    def _are_ascending(self, tokens: Tensor) -> bool:
        bounds = tokens.new_tensor([-1]), tokens.new_tensor([self.vocabulary])
        return len(tokens) > 0 and bool((torch.cat([bounds[0], tokens, bounds[1]]).diff() > 0).all())

    def _rows(self) -> list[Tensor]:
        return [] if self.offsets is None else list(self.offsets.detach().cpu())
