"""Notes after phrases in the prompt box, and their removal.

The prompt box is the only part of the form that every annotator sees, so a phrase without a mask stays
there, with a note: the model found nothing, or could not be asked. A phrase without a note was never
answered. None of them is a label: only a person says that something is absent, in `<TextArea name="absent">`.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from typing import Any

SEPARATORS = ";\uff1b"
"""Each separates several phrases in one entry; the second is that of Chinese and Japanese keyboards."""
COMPOSED_CHARACTERS = 500
"""Accents of longer phrases, which no model takes, are not composed: that takes quadratic time."""
NOTE_MAX_CHARACTERS = 1000
"""Of a note that each phrase of an entry gets; longer ones are not ours."""
_FAILED = "\u26a0"  # warning sign
_NO_MATCH = "\u2205"  # empty set
# Both begin at the sign: a pattern for the blanks before it would be quadratic in their number.
_NOTE = re.compile(rf"(?<!\S)[{_FAILED}{_NO_MATCH}]\s")
_FAILURE = re.compile(rf"(?<!\S){_FAILED}\s")
_NOTHING_FOUND = re.compile(rf"(?<!\S){_NO_MATCH}\s")
_BETWEEN = re.compile(f"[{SEPARATORS}]")
_DENIAL = re.compile(r"no (.+)", re.IGNORECASE)
_ARTICLE = re.compile(r"(?:the|an?) (?=.)", re.IGNORECASE)


def with_failure(phrase: str, reason: str) -> str:
    """Entry of a phrase that could not be answered, with the reason."""
    return f"{plain_phrase(phrase)}  {_FAILED} {reason}".lstrip()


def with_no_match(phrase: str, hint: str = "") -> str:
    """Entry of a phrase for which the model found nothing, with advice to the annotator."""
    return f"{plain_phrase(phrase)}  {_NO_MATCH} nothing found{hint}"


def has_failed(entry: str) -> bool:
    """Whether an entry is a phrase that was never answered."""
    return _FAILURE.search(entry) is not None


def failure_of(entry: str) -> str:
    """The reason why an entry's phrase could not be answered; empty for other entries."""
    note = _FAILURE.search(entry)
    return "" if note is None else entry[note.end() :].strip()


def found_nothing(entry: str) -> bool:
    """Whether an entry is a phrase for which the model found nothing."""
    return _NOTHING_FOUND.search(entry) is not None


def has_note(entry: str) -> bool:
    """Whether an entry is a phrase that was answered, or could not be."""
    return _NOTE.search(entry) is not None


def denied_phrase(entry: str) -> str:
    """The phrase that an entry such as "no scissors" denies; empty for other entries."""
    denial = _DENIAL.fullmatch(plain_phrase(entry))
    return denial[1] if denial else ""


def denial_of(phrase: str) -> str:
    """The entry that denies a phrase: "no cup" for "the cup"."""
    return f"no {without_article(phrase)}"


def without_article(phrase: str) -> str:
    """A plain phrase without the article at its beginning."""
    return _ARTICLE.sub("", phrase, count=1) if _ARTICLE.match(phrase) else phrase


def plain_phrase(entry: str) -> str:
    """The phrase without its note, with whitespace collapsed."""
    return " ".join(_without_note(entry).split())


def _without_note(entry: str) -> str:
    note = _NOTE.search(entry)
    return entry if note is None else entry[: note.start()]


def split(entry: str) -> list[str]:
    """The phrases of an entry, separated by semicolons, each with its note."""
    typed = _without_note(entry).rstrip()
    behind = entry[len(typed) :].rstrip()[:NOTE_MAX_CHARACTERS]
    phrases = [phrase.strip() for phrase in _BETWEEN.split(typed) if phrase.strip()]
    return [phrase + behind for phrase in phrases] or [entry.strip(f" {SEPARATORS}")]


def phrase_key(phrase: str) -> str:
    """Normalised form: equal for spellings of the same phrase."""
    plain = plain_phrase(phrase)
    if len(plain) <= COMPOSED_CHARACTERS:
        plain = unicodedata.normalize("NFC", plain)
    return plain.casefold()


def distinct(texts: Iterable[str]) -> dict[str, str]:
    """Plain phrases of entries by key, in order; the first of several spellings, without empty ones."""
    phrases: dict[str, str] = {}
    for text in (part for entry in texts for part in split(entry)):
        phrases.setdefault(phrase_key(text), plain_phrase(text))
    phrases.pop("", None)
    return phrases


def entries(value: Any) -> list[str]:
    """Texts of a TextArea's value, which may be a string or a list, without blanks."""
    texts: Iterable[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]
