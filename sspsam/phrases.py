"""Phrases: the text an annotator types, as CLIP tokens."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, lru_cache
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from sspsam.modeling.clip import CONTEXT_LENGTH
from sspsam.runtime.libraries import import_one_by_one

if TYPE_CHECKING:
    import open_clip

MAX_CHARACTERS = 1000
"""Longer texts are refused before they are tokenised: 75 tokens of English have about 400 characters."""
KEPT_PHRASES = 4096
"""Phrases whose tokens are cached: each is checked before its image is embedded, and encoded afterwards."""


class PhraseError(ValueError):
    """An unusable phrase: empty, or longer than CLIP's context."""


def tokenize(phrases: Sequence[str]) -> Tensor:
    """Converts phrases to CLIP tokens, in the form the model was trained on.

    Args:
        phrases: referring expressions in English; lower-cased, stripped and ended with a full stop here.

    Returns:
        (B, 77) int64, padded with 0.

    Raises:
        PhraseError: a phrase is empty, or would be cut.
    """
    rows = [_encode(_checked(phrase)) for phrase in phrases]
    tokens = torch.zeros(len(rows), CONTEXT_LENGTH, dtype=torch.long)
    for row, ids in zip(tokens, rows, strict=True):
        row[: len(ids)] = torch.tensor(ids)
    return tokens


def normalise(phrase: str) -> str:
    """Normalised form: equal for spellings of the same phrase."""
    return " ".join(phrase.lower().split())


def token_ids(text: str) -> list[int]:
    """Token IDs of a text, without start and end tokens."""
    ids: list[int] = _tokenizer().encode(normalise(text))
    return ids


def token_text(token: int) -> str:
    """The word, or word piece, of a token."""
    text: str = _tokenizer().decode([token])
    return text.strip()


def _checked(phrase: str) -> str:
    text = normalise(phrase)
    if len(text) > MAX_CHARACTERS:
        raise PhraseError(
            f"the phrase is too long: {len(text)} characters, the limit is {MAX_CHARACTERS} "
            f"and {CONTEXT_LENGTH} tokens"
        )
    return text


@lru_cache(KEPT_PHRASES)
def _encode(text: str) -> list[int]:
    if not text:
        raise PhraseError("the phrase is empty: expected some words, such as 'the dog on the left'")
    tokenizer = _tokenizer()
    ids = [tokenizer.sot_token_id, *tokenizer.encode(f"{text}."), tokenizer.eot_token_id]
    if len(ids) > CONTEXT_LENGTH:
        raise PhraseError(f"the phrase is too long: {len(ids)} tokens, the limit is {CONTEXT_LENGTH}")
    return ids


@cache
def _tokenizer() -> open_clip.SimpleTokenizer:
    import_one_by_one("torchvision", "open_clip")
    import open_clip  # see `sspsam.modeling.clip`

    return open_clip.SimpleTokenizer()
