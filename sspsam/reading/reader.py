"""Reads typed phrases for the model."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

from sspsam.phrases import normalise
from sspsam.reading.known_words import KnownWords
from sspsam.reading.requests import bare_phrase

KEPT_READINGS = 4096


@dataclass(frozen=True)
class Reading:
    """What a phrase asks for."""

    asked: str
    """What the model is asked."""
    changes: tuple[tuple[str, str], ...] = ()
    """Mended words: as typed, and as asked."""
    unknown: tuple[str, ...] = ()
    """Words that the text tower was not trained on; empty if its words are not listed."""


NOT_READ = Reading("")
"""Without a phrase."""


class PhraseReader:
    """Reads phrases for a text tower.

    Args:
        known: The words of its training; None if they are not listed, as for CLIP's.
    """

    def __init__(self, known: KnownWords | None = None) -> None:
        self.known = known
        self._read = lru_cache(KEPT_READINGS)(self._read_once)

    def read(self, phrase: str, learned: frozenset[int] = frozenset()) -> Reading:
        """Reads a phrase; equal spellings are read once.

        Args:
            phrase: As typed, at most `sspsam.phrases.MAX_CHARACTERS`.
            learned: Tokens of words that a fine-tune has taught the model.
        """
        return self._read(phrase, learned)

    def _read_once(self, phrase: str, learned: frozenset[int]) -> Reading:
        bare = bare_phrase(phrase)
        if self.known is None:
            return Reading(bare)
        spelling = self.known.read(bare, learned)
        asked = spelling.text if normalise(spelling.text) else bare
        return Reading(asked, spelling.changes, spelling.unknown)
