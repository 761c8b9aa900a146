"""Labels, and the one that a phrase names.

A label's name and the words of a phrase are compared without letter case, blanks, punctuation and
underscores, so that `dark_circles`, `DarkCircles` and "the dark circles" are equal. The last word of a name
may be in the singular or in the plural. In scripts without blanks between words, a name may stand anywhere.
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
_SEPARATORS = re.compile("[\\s!-/:-@\\[-`{-~\u00a1-\u00bf\u2000-\u206f\u3000-\u303f]+")
_WITHOUT_BLANKS = re.compile("[\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u3040-\u30ff\u3400-\u9fff]")
"""Thai, Lao, Burmese, Khmer, Japanese and Chinese characters."""
_CAMEL = re.compile("(?<=[a-z0-9])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")


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

    by_key: dict[str, int] = field(default_factory=dict)
    """Comparable name -> number of its label; the first of several."""
    anywhere: dict[str, int] = field(default_factory=dict)
    """The same, of names in scripts without blanks."""
    sizes: tuple[int, ...] = ()
    """Lengths of these names."""

    @classmethod
    def of(cls, labels: Iterable[Label]) -> LabelIndex:
        by_key: dict[str, int] = {}
        anywhere: dict[str, int] = {}
        for number, label in enumerate(labels):
            for name in label.names:
                key = "".join(_words(name))
                by_key.setdefault(key, number)
                if len(key) <= MOST_CHARACTERS and _WITHOUT_BLANKS.search(key):
                    anywhere.setdefault(key, number)
        by_key.pop("", None)
        return cls(by_key, anywhere, tuple({len(key) for key in anywhere}))

    def named_in(self, phrase: str) -> int | None:
        """Number of the label that a phrase names first, of several the most specific; None without one."""
        words = _words(phrase[:MOST_PHRASE_CHARACTERS])[:MOST_PHRASE_WORDS]
        starts = [0, *accumulate(map(len, words))]
        found = [
            (starts[first], -len(key), self.by_key[key])
            for first in range(len(words))
            for key in _keys_from(words, first)
            if key in self.by_key
        ]
        text = "".join(words)
        found += [
            (at, -size, self.anywhere[key])
            for size in self.sizes
            for at in range(len(text) - size + 1)
            if (key := text[at : at + size]) in self.anywhere
        ]
        return min(found)[2] if found else None


def _keys_from(words: list[str], first: int) -> Iterator[str]:
    """Comparable forms of the names that may begin with a word of a phrase."""
    before = ""
    for word in words[first : first + MOST_WORDS]:
        for form in _forms(word):
            yield before + form
        before += word


def _words(text: str) -> list[str]:
    plain = unicodedata.normalize("NFKC", text).casefold()
    return [word for word in _SEPARATORS.split(plain) if word]


@lru_cache(_REMEMBERED_WORDS)
def _forms(word: str) -> tuple[str, ...]:
    """A word, its singular and its plural, if it is English."""
    if not (word.isascii() and word.isalpha() and len(word) in INFLECTED_CHARACTERS):
        return (word,)
    inflection = _inflection()
    forms = [word, inflection.plural_noun(word)]
    if len(word) >= _SHORTEST_WITH_S or not word.endswith("s"):
        forms.append(str(inflection.singular_noun(word) or word))
    return tuple(dict.fromkeys(forms))


@cache
def _inflection() -> inflect.engine:
    return inflect.engine()
