"""What we write behind a phrase in the prompt box, and how it comes off again.

The prompt box is the one place of the form that every annotator sees, so a phrase that got no mask stays in
it. A plain phrase there means "nothing in the picture fits", is saved as that, and trains as that. A phrase
that was never answered, since the picture could not be read, say, must not: it carries a note behind it.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

SEPARATOR = ";"
"""Between several phrases in one entry."""
_FAILED = "\u26a0"  # warning sign
_NO_MATCH = "\u2205"  # empty set
_NOTE = re.compile(rf"(^|\s+)[{_FAILED}{_NO_MATCH}]\s.*", re.DOTALL)
_FAILURE = re.compile(rf"(^|\s+){_FAILED}\s")


def with_failure(phrase: str, reason: str) -> str:
    """The entry of a phrase that could not be answered, and why."""
    return f"{plain_phrase(phrase)}  {_FAILED} {reason}".lstrip()


def with_no_match(phrase: str) -> str:
    """The entry of a phrase that nothing fits, in a form that has no other place to say so."""
    return f"{plain_phrase(phrase)}  {_NO_MATCH} nothing here fits"


def has_failed(entry: str) -> bool:
    """Whether the entry is a phrase that was never answered."""
    return _FAILURE.search(entry) is not None


def plain_phrase(entry: str) -> str:
    """The phrase without its note, blanks collapsed."""
    return " ".join(_NOTE.sub("", entry).split())


def split(entry: str) -> list[str]:
    """The phrases of an entry, which semicolons part; a note stays behind each of them."""
    note = _NOTE.search(entry)
    typed, behind = (entry[: note.start()], note[0]) if note else (entry, "")
    phrases = [phrase.strip() for phrase in typed.split(SEPARATOR) if phrase.strip()]
    return [phrase + behind for phrase in phrases] or [entry.strip(f" {SEPARATOR}")]


def phrase_key(phrase: str) -> str:
    """The form in which two spellings are the same phrase."""
    return plain_phrase(phrase).casefold()


def distinct(texts: Iterable[str]) -> dict[str, str]:
    """Plain phrases of entries by key, in order; of several spellings the first, and no empty one."""
    phrases: dict[str, str] = {}
    for text in (part for entry in texts for part in split(entry)):
        phrases.setdefault(phrase_key(text), plain_phrase(text))
    phrases.pop("", None)
    return phrases


def entries(value: Any) -> list[str]:
    """The texts of a TextArea's value, which may be one text or a list; blank ones are left out."""
    texts: Iterable[Any] = [value] if isinstance(value, str) else value if isinstance(value, list) else []
    return [text.strip() for text in texts if isinstance(text, str) and text.strip()]
