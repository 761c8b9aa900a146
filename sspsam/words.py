"""Words that fine-tuning has taught the frozen text tower: what is added to their embeddings."""

from __future__ import annotations

from collections.abc import Collection, Mapping

import torch
from torch import Tensor, nn

WORDS_PREFIX = "learned_words."
"""Of these tensors, among the model's."""


class LearnedWords(nn.Module):
    """Corrections of a few tokens' embeddings in CLIP's text tower; of none at first.

    The tower stays frozen, and the features of phrases without these tokens stay as they are.

    Source: textual inversion (Gal et al., arXiv 2208.01618), which learns the embedding of a new word alone.
    """

    tokens: Tensor | None
    """(N,) int64, ascending: what is corrected."""
    offsets: nn.Parameter | None
    """(N, text width): what is added to their embeddings."""

    def __init__(self, vocabulary: int, width: int) -> None:
        super().__init__()
        self.vocabulary, self.width = vocabulary, width
        self.register_buffer("tokens", None)
        self.register_parameter("offsets", None)

    def forward(self, tokens: Tensor) -> Tensor | None:
        """What is added to the embeddings of (B, L) tokens, (B, L, text width); None: nothing."""
        if self.tokens is None or self.offsets is None:
            return None
        places = torch.searchsorted(self.tokens, tokens).clamp(max=len(self.tokens) - 1)
        learned = self.tokens[places] == tokens  # (B, L)
        return self.offsets[places] * learned.unsqueeze(-1)

    def add(self, tokens: Collection[int], device: torch.device) -> None:
        """Makes room for more tokens, whose offsets are 0 until they learn; those that are there stay."""
        known = {} if self.tokens is None else dict(zip(self.tokens.tolist(), self._rows(), strict=True))
        every = sorted(known.keys() | set(tokens))
        if every:
            offsets = torch.stack([known.get(token, torch.zeros(self.width)) for token in every])
            self.replace({"tokens": torch.tensor(every), "offsets": offsets}, device)

    def replace(self, state: Mapping[str, Tensor], device: torch.device) -> None:
        """Takes the tokens and offsets of a `state_dict` in place of its own; an empty one has none."""
        tokens, offsets = state.get("tokens"), state.get("offsets")
        self.tokens = None if tokens is None else tokens.to(device, copy=True)
        self.offsets = None if offsets is None else nn.Parameter(offsets.to(device, copy=True))

    def problems(self, state: Mapping[str, Tensor]) -> list[str]:
        """Why `replace` cannot take a state, in words; none where it can."""
        if not state:
            return []
        tokens, offsets = state.get("tokens"), state.get("offsets")
        if tokens is None or offsets is None or len(state) > 2:
            return [f"{WORDS_PREFIX} has {', '.join(sorted(state))[:200]}, expected tokens and offsets"]
        if tokens.dtype != torch.int64 or tokens.ndim != 1 or not self._are_ascending(tokens):
            return [f"{WORDS_PREFIX}tokens are not different ids, ascending, below {self.vocabulary}"]
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
