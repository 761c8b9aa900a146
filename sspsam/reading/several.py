"""What a phrase says about the number of its targets: several ("all dogs", "cup and spoon") or one ("a cup"),
how many ("the two dogs"), and which different things ("the cup and the spoon").
"""

from __future__ import annotations

import re
from itertools import dropwhile

_QUANTITIES = frozenset((
    "couple", "dozen", "few", "group", "many", "multiple", "pair", "row", "several", "two", "three", "four",
    "five", "six", "seven", "eight", "nine", "ten",
))  # fmt: skip
"""Also after an article: "a few dogs"."""
_SEVERAL = _QUANTITIES | frozenset((
    "all", "and", "any", "both", "each", "every", "everybody", "everyone", "everything", "most", "some",
    "these", "those",
    "cattle", "children", "feet", "fish", "geese", "men", "mice", "oxen", "people", "police", "sheep",
    "teeth", "women",
))  # fmt: skip
_NUMBERS = {
    "both": 2, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10,
}  # fmt: skip
_NOT_COUNTED = frozenset((
    "door", "dozen", "hundred", "lane", "legged", "seater", "seaters", "storey", "story", "thousand", "tone",
    "wheel", "wheeler", "wheelers",
))  # fmt: skip
"""Behind a number that is not the number of objects: "two door cars", "five hundred cups"."""
MOST_COUNTED = 20
"""The largest number, in digits, that is taken for a number of objects."""
MOST_THINGS = 4
"""Joined by "and" in one phrase."""
_BEFORE_NUMBER = frozenset(("all", "of", "the", "these", "those"))
_ARTICLES = frozenset(("a", "an", "the"))
_OF_ONE = frozenset(("a", "an", "another", "one", "that", "this"))
"""In front of a noun that is one thing."""
_PLACES = frozenset((
    "above", "at", "behind", "below", "beneath", "beside", "between", "by", "closest", "from", "holding",
    "in", "left", "near", "nearest", "next", "not", "on", "over", "right", "that", "to", "under",
    "underneath", "wearing", "which", "who", "with",
))  # fmt: skip
"""What follows the subject of a phrase."""
_NO_PLURAL = ("ss", "us", "is", "'s")
_PLURAL_IN_IS = frozenset(("bikinis", "kiwis", "safaris", "skis", "taxis", "zucchinis"))
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
        second, third, *_ = *words[1:], "", ""
        return "and" in words or (second in _QUANTITIES and third not in _NOT_COUNTED)
    first, *_ = *_from_number(words), ""
    counts = first.isdigit()  # "2 cups", not "player 2"
    return counts or any(word in _SEVERAL or _is_plural(word) for word in _subject(words))


def number_of_targets(phrase: str) -> int | None:
    """How many objects a phrase says that it refers to: 2 for "both cats", 3 for "the three dogs in red".

    None if it does not say so, in English, or not in front of its noun.
    """
    words = _WORD.findall(phrase.lower())
    if "and" in words or not may_have_several(phrase):
        return None
    first, second, *_ = *_from_number(words), "", ""
    if second in _NOT_COUNTED:
        return None
    if first.isascii() and first.isdigit() and len(first) <= len(str(MOST_COUNTED)):
        number = int(first)
        return number if 2 <= number <= MOST_COUNTED else None
    return _NUMBERS.get(first)


def _from_number(words: list[str]) -> list[str]:
    """The words from the first on that may be a number of things."""
    return list(dropwhile(_BEFORE_NUMBER.__contains__, words))


def things_of(phrase: str) -> list[str]:
    """The phrases of different things that a phrase joins by "and": "the cup" and "the spoon".

    Empty if it is not certain that they are different things. Either each has an article, or each is a single
    word: "the black and white dog" is one dog, and "a cup and spoon on the table" may be either.
    """
    if not phrase.isascii():
        return []
    words = _WORD.findall(phrase.lower())
    things: list[list[str]] = [[]]
    for word in words:
        if word == "and":
            things.append([])
        else:
            things[-1].append(word)
    if not 2 <= len(things) <= MOST_THINGS or not all(things):
        return []
    have_articles = all(thing[0] in _ARTICLES and len(thing) > 1 for thing in things)
    are_words = all(len(thing) == 1 and thing[0] not in _ARTICLES for thing in things)
    if not (have_articles or are_words) or any(word in _PLACES for thing in things for word in thing):
        return []
    return [" ".join(thing) for thing in things]


def _subject(words: list[str]) -> list[str]:
    """The words up to those about its place; sides in front of the noun belong to it ("left dogs")."""
    for place, word in enumerate(words):
        if word in _PLACES and place > 0 and words[place - 1] not in _PLACES | {"the"}:
            return words[:place]
    return words


def _is_plural(word: str) -> bool:
    if word in _PLURAL_IN_IS:
        return True
    return len(word) > 3 and word.endswith("s") and not word.endswith(_NO_PLURAL)
