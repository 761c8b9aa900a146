"""Labels, and the one that a phrase names.

A label's name and the words of a phrase are compared without letter case, blanks, punctuation and
underscores, so that `dark_circles`, `DarkCircles` and "the dark circles" are equal. The last word of a name
may be in the singular or in the plural, unless the form has a label for either. Of names that differ in
punctuation only ("A+" and "A-"), the one is meant that is spelled so in the phrase. In scripts without blanks
between words, a name may stand anywhere.
"""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import cache, lru_cache
from itertools import accumulate

import inflect

MOST_WORDS = 16
"""Of a label's name that is looked for in a phrase: CLIP reads 77 tokens."""
MOST_CHARACTERS = 40
"""Of a name in a script without blanks, which is looked for anywhere in a phrase."""
MOST_PHRASE_CHARACTERS = 2000
"""Of a phrase, in which names are looked for."""
MOST_PHRASE_WORDS = 200
"""The same, in words."""
INFLECTED_CHARACTERS = range(3, 31)
"""Length of the words whose singular and plural are looked for."""
_SHORTEST_WITH_S = 4
""""gas" and "his" are no plurals."""
_REMEMBERED_WORDS = 10_000
_SEPARATORS = re.compile("[\\s!-/:-@\\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u3004\u3008-\u303f]+")
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""
_CAMEL = re.compile(
    "(?<=[a-z]{2})(?=[A-Z])|(?<=[a-z][0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])(?![A-Z]s(?![a-z]))"
)
"""Where a word begins in "TrafficLight" and "PVCPipe"; not in "SUVs", "iPhone" or "3D"."""


@dataclass(frozen=True)
class Label:
    """One label of a region control."""

    value: str
    alias: str = ""
    predicted: tuple[str, ...] = ()
    """Names used by models: attribute `predicted_values`."""

    @property
    def written(self) -> str:
        """Name used in results: Label Studio drops predictions with the value of an aliased label."""
        return self.alias or self.value

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(name for name in (self.value, self.alias, *self.predicted) if name.strip())

    @property
    def phrase(self) -> str:
        """The label as a phrase: "red tomato" for `red_tomato`, "traffic light" for `TrafficLight`."""
        name = self.written
        if " " in name.strip() or ("_" not in name and not _CAMEL.search(name)):
            return name
        words = _CAMEL.sub(" ", name.replace("_", " ")).split()
        return " ".join(word if word.isupper() else word.lower() for word in words) or name


@dataclass(frozen=True)
class LabelIndex:
    """The names of many labels, for the search in phrases."""

    by_key: dict[str, dict[str, int]] = field(default_factory=dict)
    """Comparable name -> the names that are equal so, in lower case -> number of the label."""
    anywhere: dict[str, dict[str, int]] = field(default_factory=dict)
    """The same, of names in scripts without blanks."""
    sizes: tuple[int, ...] = ()
    """Lengths of these names."""

    @classmethod
    def of(cls, labels: Iterable[Label]) -> LabelIndex:
        by_key: dict[str, dict[str, int]] = {}
        anywhere: dict[str, dict[str, int]] = {}
        for number, label in enumerate(labels):
            for name in label.names:
                key = "".join(_words(name))
                spelled = by_key.setdefault(key, {})
                spelled.setdefault(_plain(name).strip(), number)
                if len(key) <= MOST_CHARACTERS and _WITHOUT_BLANKS.search(key):
                    anywhere[key] = spelled
        by_key.pop("", None)
        return cls(by_key, anywhere, tuple({len(key) for key in anywhere}))

    def named_in(self, phrase: str) -> int | None:
        """Number of the label that a phrase names first, of several the most specific; None without one."""
        read = phrase[:MOST_PHRASE_CHARACTERS]
        words = _words(read)[:MOST_PHRASE_WORDS]
        starts = [0, *accumulate(map(len, words))]
        found = [
            (starts[first], -size, place, key)
            for first in range(len(words))
            for size, place, key in _keys_from(words, first)
            if key in self.by_key
        ]
        text = "".join(words)
        found += [
            (at, -size, 0, key)
            for size in self.sizes
            for at in range(len(text) - size + 1)
            if (key := text[at : at + size]) in self.anywhere
        ]
        return _as_spelled(self.by_key[min(found)[3]], _plain(read)) if found else None


def _keys_from(words: list[str], first: int) -> Iterator[tuple[int, int, str]]:
    """The names that may begin with a word of a phrase: length of what they cover, form (0: as typed),
    comparable name.
    """
    before = ""
    for word in words[first : first + MOST_WORDS]:
        for place, form in enumerate(_forms(word)):
            yield len(before) + len(word), place, before + form
        before += word


def _as_spelled(labels: dict[str, int], phrase: str) -> int:
    """Of the labels with one comparable name, that of the longest name in the phrase; else the first."""
    if len(labels) == 1:
        return next(iter(labels.values()))
    inside = [name for name in labels if name in phrase]
    return labels[max(inside, key=len)] if inside else next(iter(labels.values()))


def _plain(text: str) -> str:
    return unicodedata.normalize("NFKC", text).casefold()


def _words(text: str) -> list[str]:
    return [word for word in _SEPARATORS.split(_plain(text)) if word]


@lru_cache(_REMEMBERED_WORDS)
def _forms(word: str) -> tuple[str, ...]:
    """A word, its singular and its plural, if it is English."""
    if not (word.isascii() and word.isalpha() and len(word) in INFLECTED_CHARACTERS):
        return (word,)
    forms = [word, *(each.plural_noun(word) for each in _inflections())]
    if len(word) >= _SHORTEST_WITH_S or not word.endswith("s"):
        forms += [str(each.singular_noun(word) or word) for each in _inflections()]
    return tuple(dict.fromkeys(forms))


@cache
def _inflections() -> tuple[inflect.engine, inflect.engine]:
    """Of today's English, and with the plurals of Latin and Greek, which fields of science use."""
    modern, classical = inflect.engine(), inflect.engine()
    classical.classical(all=True)
    for singular, plural in (("larva", "larvae"), ("mitochondrion", "mitochondria")):
        classical.defnoun(singular, plural)
    return modern, classical
