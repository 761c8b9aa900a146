"""Removes from a typed phrase what cannot change its meaning: "can you find ... please?", hyphens of sides.

Only whole openings and closings in English are removed, and never the whole phrase. Names in capitals
("Please Touch Museum") and texts with letters of other alphabets stay as typed.
"""

from __future__ import annotations

import re

_DETERMINER = r"(?:the|an?|any|all|both|every|each|that|this|these|those|some|my)"
_VERB = (
    r"(?:find|show|see|mark|select|segment|highlight|outline|locate|get|label|annotate|detect|identify|spot"
    r"|point (?:to|at|out)|pick(?: out)?|give)"
)
_DETERMINED = re.compile(_DETERMINER, re.IGNORECASE)
_POLITE = r"(?:please|pls|plz)"
_OPENING = re.compile(
    rf"""(?:
      (?:hi|hey|hello|ok|okay),\ (?=\S)
    | where(?:'s|s|\ is|\ are|\ can\ (?:i|you|we)\ (?:find|see)|\ do\ (?:you|we|i)\ see)\ (?=\S)
    | (?:can|could|would|will)\ (?:you|u|we|i)\ (?:{_POLITE}\ )?{_VERB}(?:\ me|\ us)?\ (?=\S)
    | (?:do|can|could)\ (?:you|we|i)\ see\ (?=\S)
    | (?:is|are)\ there\ (?={_DETERMINER}\ )
    | (?:(?:i\ am|i'm|im|we\ are|we're)\ )?(?:looking|searching)\ for\ (?=\S)
    | (?:i|we)\ (?:want|need|would\ like)\ (?:to\ {_VERB}\ )?(?={_DETERMINER}\ )
    | (?:i|we)'d\ like\ (?:to\ {_VERB}\ )?(?={_DETERMINER}\ )
    | {_POLITE}\ {_VERB}(?:\ me|\ us)?\ (?=\S)
    | {_POLITE},?\ (?=\S)
    | {_VERB}(?:\ me|\ us)?\ (?={_DETERMINER}\ )
    )""",
    re.VERBOSE | re.IGNORECASE,
)
_CLOSING = re.compile(rf",? (?:(?:if you )?{_POLITE}|thanks|thank you|thx)$", re.IGNORECASE)
_ONLY = re.compile(rf"(?:{_DETERMINER}|{_VERB}|{_POLITE}|where|is|are|me|us|it|them)", re.IGNORECASE)
_END = " \t?!.,;:…"
_QUOTES = str.maketrans({"‘": "'", "’": "'", "“": '"', "”": '"', "‐": "-", "‑": "-", "–": "-", "—": "-"})
_MOST = re.compile(r"\b(left|right|top|bottom|upper|lower)[- ]most\b", re.IGNORECASE)
_HAND = re.compile(r"\b(left|right)-hand\b", re.IGNORECASE)
_CORNER = re.compile(r"\b(top|bottom|upper|lower)-(left|right)\b", re.IGNORECASE)
_ROUNDS = 3
"""Openings removed one after the other: "ok, can you see if there is ..."."""


def bare_phrase(phrase: str) -> str:
    """The phrase without the words and marks around it; as typed if nothing else would remain."""
    typed = " ".join(phrase.split())
    text = typed.translate(_QUOTES)
    if any(character.isalpha() and not character.isascii() for character in text):
        return typed
    text = _unquoted(text.rstrip(_END)) or text
    for _ in range(_ROUNDS):
        shorter = _without_closing(_without_opening(text))
        if shorter == text:
            break
        text = shorter
    if not text or all(_ONLY.fullmatch(word) for word in text.split()):
        return typed
    text = _MOST.sub(r"\1most", text)
    return _CORNER.sub(r"\1 \2", _HAND.sub(r"\1 hand", text))


def _without_opening(text: str) -> str:
    match = _OPENING.match(text)
    if match is None or _is_name(text, match.end()):
        return text
    return text[match.end() :]


def _is_name(text: str, start: int) -> bool:
    """Whether an opening belongs to a name: it and the word after it are capitalised, and not all of it."""
    last, following = text[:start].split()[-1], text[start:].split()[0]
    capitals = last[0].isupper() and following[0].isupper() and not text.isupper()
    return capitals and _DETERMINED.fullmatch(following) is None


def _without_closing(text: str) -> str:
    match = _CLOSING.search(text)
    if match is None or (text[match.start() :].strip(", ")[0].isupper() and not text.isupper()):
        return text
    return text[: match.start()].rstrip(_END)


def _unquoted(text: str) -> str:
    if len(text) > 2 and text[0] == text[-1] and text[0] in "'\"" and text.count(text[0]) == 2:
        return text[1:-1].strip()
    return text
