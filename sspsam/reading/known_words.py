"""The words that a text tower was trained on: mends typing errors, and names words that it does not know."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Collection
from functools import cached_property
from typing import NamedTuple

from rapidfuzz import process
from rapidfuzz.distance import OSA

from sspsam.phrases import token_ids

MAX_LOOKED_UP = 8
"""Words of a phrase compared with all known ones; the others are only looked up."""
SHORTEST = 4
"""Letters of the shortest word that is mended by one letter."""
LONG = 8
"""Letters of the shortest word that is mended by two letters."""
_WORD = re.compile(r"[^\W\d_](?:(?:[^\W\d_]|['-])*[^\W\d_])?")
_ENDINGS = ("'s", "s'", "es", "s")
_INFLECTIONS = ("'s", "es", "s", "ing", "ed", "er", "y")
_HEAD_END = re.compile(
    r"\b(?:left of|right of|to the|next to|on|in|at|from|above|over|below|under|beneath|underneath|beside"
    r"|near|close to|by|between|that|which|with|not|closest|nearest|furthest)\b|,",
    re.IGNORECASE,
)
"""What follows the subject of a phrase."""
_EMPTY_WORDS = frozenset((
    "any", "are", "can", "could", "did", "do", "does", "got", "had", "has", "have", "how", "is", "its",
    "just", "maybe", "my", "our", "please", "should", "some", "such", "than", "their", "there", "there's",
    "these", "this", "those", "was", "were", "what", "where", "which", "whr", "would", "your",
))  # fmt: skip
"""Words without which a phrase refers to the same thing."""
_FUNCTION_WORDS = _EMPTY_WORDS | frozenset((
    "about", "across", "after", "against", "all", "along", "also", "among", "and", "around", "away",
    "because", "been", "before", "behind", "beyond", "both", "but", "carrying", "closer", "doing", "down",
    "each", "else", "every", "except", "farther", "few", "find", "first", "for", "front", "get", "give",
    "having", "here", "hers", "him", "his", "holding", "image", "inside", "instead", "into", "last", "less",
    "like", "many", "may", "mean", "mine", "more", "most", "much", "must", "near", "nearer", "need",
    "neither", "never", "no", "none", "nor", "not", "now", "off", "one", "only", "onto", "other", "others",
    "out", "outside", "own", "photo", "pic", "picture", "riding", "said", "same", "scene", "see", "seen",
    "she", "something", "somewhere", "than", "then", "they", "thing", "through", "too", "toward", "towards",
    "two", "upon", "use", "very", "want", "way", "wearing", "when", "while", "who", "whose", "will", "with",
    "without", "yes", "you",
))  # fmt: skip
"""Words that do not name a thing; without them, a phrase may refer to another."""
_SELECTING_WORDS = frozenset((
    "couple", "dozen", "dozens", "double", "eight", "eighth", "eleven", "eleventh", "fifth", "five", "four",
    "fourth", "half", "hundred", "nine", "ninth", "non", "pair", "several", "seven", "seventh", "single",
    "six", "sixth", "ten", "tenth", "third", "three", "triple", "twelfth", "twelve", "un",
))  # fmt: skip
"""Numbers and negations: without them a phrase refers to others, whether or not the text tower knows them."""
_NEGATIONS = ("non-", "un-")
_SHADES = frozenset(("bright", "dark", "deep", "light", "pale"))
_VOWEL = re.compile("[aeiouy]")
_DANGLING = re.compile(r" (?:of|for) ")
_SELECTS = re.compile("est$|..er$|ish$|less")
"""Endings of comparatives, superlatives and colours."""


class Spelling(NamedTuple):
    """A phrase in known words, as far as possible."""

    text: str
    changes: tuple[tuple[str, str], ...]
    """Words as typed, and as understood; empty for those left out."""
    unknown: tuple[str, ...]
    """Words that may name the subject and that the text tower was not trained on; none if a name is known."""


class _Read(NamedTuple):
    """A word of a phrase, or two that are one."""

    start: int
    stop: int
    typed: str
    word: str
    """As understood, in lower case."""
    known: bool


class KnownWords:
    """The words of a text tower's training.

    Args:
        names: Names of things, in lower case; those of several words are known as a whole and by their words.
        words: The other words.
    """

    def __init__(self, names: Collection[str], words: Collection[str] = ()) -> None:
        self.words = frozenset(part for word in (*names, *words) for part in word.split())
        self.names = frozenset(names)
        self._joined = {name.replace(" ", ""): name for name in sorted(names) if " " in name}
        self._candidates = sorted(word for word in self.words if len(word) >= SHORTEST)

    @cached_property
    def _tokens(self) -> frozenset[int]:
        return frozenset(token for word in self.words for token in token_ids(word))

    def read(self, text: str, learned: frozenset[int] = frozenset()) -> Spelling:
        """Reads a phrase.

        A word is mended only if it is no English word (one of CLIP's whole-word tokens) and one known word is
        nearest. Unknown words that describe a known name ("the yummy peach", "eagle flying") are left
        out: to the text tower, they are noise. The work is linear in the text's length.

        Args:
            text: The phrase.
            learned: Tokens of words that a fine-tune has taught the model.
        """
        words = self._words(text, learned)
        head = self._head(text, words)
        left_out: list[_Read] = []
        unknown: tuple[str, ...] = ()
        name = self._last_name(head)
        if name is None:
            inside = [w.typed for w in head if not w.known and w.word not in _FUNCTION_WORDS]
            unknown = tuple(dict.fromkeys(inside))
        else:
            described = [w for i, w in enumerate(head) if i < name or _is_participle(w.word)]
            left_out = [w for w in described if not w.known and _is_noise(w.word)]
        parts, changes, end = [], [], 0
        for word in words:
            read = "" if word in left_out else word.word
            if read == word.typed.lower():
                continue
            changes.append((word.typed, read))
            parts += [text[end : word.start], read]
            end = word.stop
            if not read and (dangling := _DANGLING.match(text, end)):  # "a slice of watermelon"
                parts, end = [], dangling.end()
        asked = "".join([*parts, text[end:]])
        return Spelling(asked if not left_out else " ".join(asked.split()), tuple(changes), unknown)

    def _words(self, text: str, learned: frozenset[int]) -> list[_Read]:
        matches = list(_WORD.finditer(_with_letters_for_marks(text)))
        words: list[_Read] = []
        looked_up = 0
        for place, match in enumerate(matches):
            if words and match.start() < words[-1].stop:
                continue  # the second of a pair
            word, stop = text[match.start() : match.end()].lower(), match.end()
            read: str | None = word
            if not self._is_known(word, learned):
                following = matches[place + 1] if place + 1 < len(matches) else None
                joined = None if following is None else self._joined_pair(text, match, following)
                if following is not None and joined is not None:
                    stop, read = following.end(), joined
                else:
                    looked_up += 1
                    read = self._mended(word) if looked_up <= MAX_LOOKED_UP else None
            words.append(
                _Read(match.start(), stop, text[match.start() : stop], read or word, read is not None)
            )
        return words

    def _head(self, text: str, words: list[_Read]) -> list[_Read]:
        """The words of the subject: those before "on the left", "with a cloud above it" and the like."""
        end = next(
            (m.start() for m in _HEAD_END.finditer(text) if any(w.stop <= m.start() for w in words)), None
        )
        return [word for word in words if end is None or word.stop <= end]

    def _last_name(self, head: list[_Read]) -> int | None:
        """Place of the last word that belongs to a known name."""
        singular = [read.word.removesuffix("'s") for read in head]
        for place in range(len(head) - 1, -1, -1):
            pair = " ".join(singular[max(0, place - 1) : place + 1])
            if singular[place] in self.names or pair in self.names:
                return place
        return None

    def _is_known(self, word: str, learned: frozenset[int]) -> bool:
        if (len(word) < 3 and word.isascii()) or word in self.words:
            return True
        if any(word.endswith(ending) and word.removesuffix(ending) in self.words for ending in _ENDINGS):
            return True
        tokens = set(token_ids(word)) if learned else set()
        return bool(tokens & learned) and tokens <= learned | self._tokens

    def _joined_pair(self, text: str, first: re.Match[str], second: re.Match[str]) -> str | None:
        """Two words as one, if that is known: "lap top"."""
        before, between, after = (
            text[first.start() : first.end()],
            text[first.end() : second.start()],
            text[second.start() : second.end()],
        )
        joined = (before + after).lower()
        return joined if between == " " and joined in self.words else None

    def _mended(self, word: str) -> str | None:
        """The known word, or name, for one that is not known."""
        compact = _without_accents(word).replace("-", "")
        if compact in self.words:
            return compact
        if compact in self._joined:
            return self._joined[compact]
        apart = word.split("-")
        if len(apart) > 1 and all(part in self.words for part in apart[apart[0] in _SHADES :]):
            return " ".join(apart)
        if len(compact) < SHORTEST or word.startswith(_NEGATIONS) or _is_english(word):
            return None
        limit = 2 if len(compact) >= LONG else 1
        near = process.extract(compact, self._candidates, scorer=OSA.distance, score_cutoff=limit, limit=2)
        if not near or (len(near) > 1 and near[1][1] == near[0][1]):
            return None
        return str(near[0][0])


def _with_letters_for_marks(text: str) -> str:
    """The text with a letter in place of each combining mark, which to `re` is the end of a word."""
    return "".join("m" if unicodedata.category(sign).startswith("M") else sign for sign in text)


def _without_accents(word: str) -> str:
    signs = unicodedata.normalize("NFKD", word)
    return "".join(sign for sign in signs if not unicodedata.combining(sign))


def _is_noise(word: str) -> bool:
    """Whether an unknown word before a name may be left out."""
    if word in _EMPTY_WORDS:
        return True
    means = word in _FUNCTION_WORDS or word in _SELECTING_WORDS or word.startswith(_NEGATIONS)
    return not means and _SELECTS.search(word) is None


def _is_participle(word: str) -> bool:
    """Such as "flying", not "wing" or "king"."""
    return word.endswith("ing") and _VOWEL.search(word[:-3]) is not None


def _is_english(word: str) -> bool:
    """Whether a word, or its stem, is one of CLIP's whole-word tokens: the frequent words of the web."""
    stems = {word.removesuffix(ending) for ending in _INFLECTIONS if word.endswith(ending)} | {word}
    return any(len(stem) > 2 and len(token_ids(stem)) == 1 for stem in stems)
