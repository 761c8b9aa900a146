"""Tells phrases that may have several targets ("all dogs", "cup and spoon") from those with one ("a cup")."""

from __future__ import annotations

import re

_SEVERAL = frozenset((
    "all", "and", "any", "both", "couple", "each", "every", "everybody", "everyone", "everything", "few",
    "group", "many", "most", "multiple", "pair", "row", "several", "some", "these", "those", "two", "three",
    "four", "five", "six", "seven", "eight", "nine", "ten",
    "cattle", "children", "feet", "fish", "geese", "men", "mice", "oxen", "people", "police", "sheep",
    "teeth", "women",
))  # fmt: skip
_OF_ONE = frozenset(("a", "an", "another", "one", "that", "this"))
"""In front of a noun that is one thing."""
_PLACES = frozenset((
    "above", "at", "behind", "below", "beneath", "beside", "between", "by", "closest", "from", "holding",
    "in", "left", "near", "nearest", "next", "not", "on", "over", "right", "that", "to", "under",
    "underneath", "wearing", "which", "who", "with",
))  # fmt: skip
"""What follows the subject of a phrase."""
_NO_PLURAL = ("ss", "us", "is", "'s")
_WORD = re.compile(r"[\w'’-]+")


def may_have_several(phrase: str) -> bool:
    """Whether a phrase may refer to several objects; True for what is not English, or cannot be told.

    A plural, a number or a word such as "all" in its subject means several: "the two cars on the left", not
    "the car next to the trees".
    """
    if not phrase.isascii():
        return True
    words = [word.replace("’", "'") for word in _WORD.findall(phrase.lower())]
    if not words:
        return True
    if words[0] in _OF_ONE:
        return "and" in words
    subject = _subject(words)
    return any(word in _SEVERAL or word.isdigit() or _is_plural(word) for word in subject)


def _subject(words: list[str]) -> list[str]:
    """The words up to those about its place; sides in front of the noun belong to it ("left dogs")."""
    for place, word in enumerate(words):
        if word in _PLACES and place > 0 and words[place - 1] not in _PLACES | {"the"}:
            return words[:place]
    return words


def _is_plural(word: str) -> bool:
    return len(word) > 3 and word.endswith("s") and not word.endswith(_NO_PLURAL)
