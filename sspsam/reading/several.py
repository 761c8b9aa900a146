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
    "cattle", "children", "feet", "fish", "geese", "mice", "oxen", "people", "police", "sheep", "teeth",
))  # fmt: skip
_NUMBERS = {
    "both": 2, "two": 2, "three": 3, "four": 4, "five": 5, "six": 6, "seven": 7, "eight": 8, "nine": 9,
    "ten": 10,
}  # fmt: skip
_NOT_COUNTED = frozenset((
    "cm", "dollar", "door", "dozen", "euro", "headed", "hundred", "inch", "lane", "legged", "mm", "or",
    "seater", "seaters", "storey", "story", "string", "thousand", "to", "tone", "wheel", "wheeler",
    "wheelers", "year",
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
_SINGULAR_IN_S = frozenset((
    "atlas", "canvas", "christmas", "gas", "has", "his", "its", "lens", "rhinoceros", "series", "species",
    "sports", "was", "yes",
))  # fmt: skip
_SINGULAR_IN_MEN = frozenset(("abdomen", "omen", "regimen", "specimen", "stamen"))
_UNCHANGED = frozenset(("aircraft", "bison", "deer", "dice", "fish", "moose", "salmon", "sheep", "shrimp"))
"""Nouns whose plural is like their singular: behind a number they are several."""
_PLURAL_IN_IS = frozenset(("bikinis", "kiwis", "safaris", "skis", "taxis", "zucchinis"))
_WORD = re.compile(r"[\w'’-]+")
_JOINT = re.compile(r",\s*and\b|[,&]|\band\b")
"""Between the things of "the dog, the cat and the duck"."""
_LAST_JOINT = re.compile(r"&|\band\b")
_FURTHER_THING = re.compile(r"&|\band\b|,\s*(?:an?|the)\b")


def may_have_several(phrase: str) -> bool:
    """Whether a phrase may refer to several objects; True for what is not English, or cannot be told.

    A plural, a number of things or a word such as "all" in its subject means several: "the two cars on the
    left", not "the car next to the trees" or "the eight ball".
    """
    if not phrase.isascii():
        return True
    words = [word.replace("’", "'") for word in _WORD.findall(phrase.lower())]
    if not words or things_of(phrase):
        return True
    if words[0] in _OF_ONE:
        second, third, *_ = *words[1:], "", ""
        return "and" in words or (second in _QUANTITIES and third not in _NOT_COUNTED)
    subject = _subject(words)
    if subject[-1] in _NUMBERS:  # "the left two"
        return True
    if _from_number(subject)[:1] and _is_number(_from_number(subject)[0]) and subject[-1] in _UNCHANGED:
        return True
    return any((word in _SEVERAL and not _is_number(word)) or _is_plural(word) for word in subject)


def number_of_targets(phrase: str) -> int | None:
    """How many objects a phrase says that it refers to: 2 for "both cats", 3 for "the three dogs in red".

    None if it does not say so, in English, or not in front of its noun.
    """
    words = _WORD.findall(phrase.lower())
    if _FURTHER_THING.search(phrase.lower()) or not may_have_several(phrase):
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
    """The phrases of different things that a phrase joins by "and" or commas: "the cup" and "the spoon".

    Empty if it is not certain that they are different things. Either each has an article, or each is a
    single word and "and" is before the last: "the black and white dog" is one dog, "dog, brown" may be one,
    and "a cup and spoon on the table" may be either.
    """
    if not phrase.isascii():
        return []
    text = phrase.lower()
    things = [_WORD.findall(part) for part in _JOINT.split(text)]
    if not 2 <= len(things) <= MOST_THINGS or not all(things):
        return []
    have_articles = all(thing[0] in _ARTICLES and len(thing) > 1 for thing in things)
    are_words = _LAST_JOINT.search(text) is not None and all(
        len(thing) == 1 and thing[0] not in _ARTICLES for thing in things
    )
    if not (have_articles or are_words) or any(word in _PLACES for thing in things for word in thing):
        return []
    return [" ".join(thing) for thing in things]


def _subject(words: list[str]) -> list[str]:
    """The words up to those about its place; sides in front of the noun belong to it ("left dogs")."""
    for place, word in enumerate(words):
        if word in _PLACES and place > 0 and words[place - 1] not in _PLACES | {"the"}:
            return words[:place]
    return words


def _is_number(word: str) -> bool:
    return word != "both" and (word in _NUMBERS or word.isdigit())


def _is_plural(word: str) -> bool:
    if word in _PLURAL_IN_IS or (word.endswith("men") and word not in _SINGULAR_IN_MEN):
        return True
    return (
        len(word) > 2 and word.endswith("s") and not word.endswith(_NO_PLURAL) and word not in _SINGULAR_IN_S
    )
