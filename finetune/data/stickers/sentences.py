"""Sentences about nouns for text-only training, with their subject and the nouns they mention."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from string import Formatter

import numpy as np

from finetune.data.stickers.colours import COLOURS
from finetune.data.stickers.vocabulary import kinds, vocabulary
from sspsam.phrases import token_ids

KIND_SHARE = 0.12
"""Probability that a word for many nouns ("animal") replaces a noun."""
OBJECT_SHARE = 0.02
"""Probability that "object", which covers every noun, replaces it."""
TEMPLATES = (
    "{noun}", "the {noun}", "a {noun}", "{noun}", "the {noun}", "{plural}", "the {plural}", "all {plural}",
    "all the {plural}", "each {noun}", "every {noun}", "both {plural}", "the {number} {plural}",
    "all {number} {plural}", "the {number} {extreme} {plural}", "all {plural} {place}", "{noun} and {other}",
    "{noun} {place}", "the {noun} {place}", "the {noun} {place}", "{side} {noun}", "the {side} {noun}",
    "{extreme} {noun}", "the {extreme} {noun}", "the {noun} furthest to the {across}", "{noun} furthest down",
    "far {across} {noun}", "the {size} {noun}", "{size} {noun}", "the {size} of the two {plural}",
    "the {ordinal} {noun} from the {side}", "{ordinal} {noun} from {side}", "{ordinal} {noun}",
    "middle {noun}",
    "the {colour} {noun}", "{colour} {noun}", "{noun} that is {colour}",
    "the {noun} {relation} the {other}", "{noun} {relation} {other}", "the {noun} {relation} the {other}",
    "the {noun} that is not next to the {other}", "{noun} between the {other} and the {third}",
    "the {noun} in between the two {others}",
)  # fmt: skip
"""Sentence templates; the first noun is the subject."""
FILLERS = {
    "number": ("two", "three", "four", "five"),
    "side": ("left", "right", "top", "bottom", "top left", "top right", "bottom left", "bottom right"),
    "across": ("left", "right"),
    "extreme": ("leftmost", "rightmost", "topmost", "bottommost", "highest", "lowest", "uppermost"),
    "place": (
        "on the left", "on the right", "at the left", "at the right", "at the top", "at the bottom", "on top",
        "in the middle", "in the center", "in the centre", "in the upper part", "in the lower part",
        "in the top left", "at the bottom right", "in the upper right", "in the lower left",
        "on the left side", "on the right side", "on the bottom",
    ),
    "size": (
        "biggest", "largest", "bigger", "larger", "big", "large", "huge", "smallest", "tiniest", "smaller",
        "littler", "small", "little", "tiny",
    ),
    "ordinal": ("first", "1st", "second", "2nd", "third", "3rd", "fourth", "4th", "fifth", "5th"),
    "colour": (*COLOURS, "gray"),
    "relation": (
        "left of", "to the left of", "right of", "to the right of", "above", "over", "below", "under",
        "beneath", "next to", "beside", "near", "close to", "by", "closest to", "nearest to", "not near",
        "away from",
    ),
}  # fmt: skip
"""Values of the other placeholders."""


@dataclass(frozen=True)
class Mention:
    """A mention of a noun, or of a word for several nouns, in a sentence."""

    nouns: tuple[str, ...]
    """The nouns that it may denote."""
    token: int
    """Position of its last token."""


@dataclass(frozen=True)
class Sentence:
    """A sentence, its subject and its mentions."""

    text: str
    head: tuple[str, ...]
    """The subject: one noun, or the nouns covered by a word such as "animal"."""
    mentions: tuple[Mention, ...]


@dataclass(frozen=True)
class _Name:
    singular: str
    plural: str
    nouns: tuple[str, ...]


def make_sentence(nouns: Sequence[str], rng: np.random.Generator) -> Sentence:
    """Generates a sentence about one of the nouns, or about a kind of noun."""
    template = TEMPLATES[rng.integers(len(TEMPLATES))]
    names = {role: _choose_name(nouns, rng) for role in ("noun", "other", "third")}
    text, mentions = "", []
    for literal, field, _, _ in Formatter().parse(template):
        text += literal
        if field in FILLERS:
            text += FILLERS[field][rng.integers(len(FILLERS[field]))]
        elif field is not None:
            role = {"plural": "noun", "others": "other"}.get(field, field)
            text += names[role].plural if field in ("plural", "others") else names[role].singular
            mentions.append(Mention(names[role].nouns, len(token_ids(text))))
    return Sentence(text, names["noun"].nouns, tuple(mentions))


def spoken_tokens(nouns: Sequence[str]) -> list[int]:
    """Sorted ids of all tokens that can occur in sentences about the nouns."""
    literals = [" ".join(literal for literal, *_ in Formatter().parse(template)) for template in TEMPLATES]
    fillers = [option for options in FILLERS.values() for option in options]
    names = [word for noun in nouns for word in (noun, vocabulary()[noun].plural)]
    names += [word for kind in kinds() for word in (kind.name, kind.plural)] + ["object", "objects"]
    return sorted({token for text in (*literals, *fillers, *names) for token in token_ids(text)})


def _choose_name(nouns: Sequence[str], rng: np.random.Generator) -> _Name:
    chance = rng.random()
    if chance < OBJECT_SHARE:
        return _Name("object", "objects", tuple(nouns))
    if chance < OBJECT_SHARE + KIND_SHARE:
        kind = kinds()[rng.integers(len(kinds()))]
        members = tuple(noun for noun in nouns if noun in kind.members)
        if members:
            return _Name(kind.name, kind.plural, members)
    noun = nouns[int(rng.integers(len(nouns)))]
    return _Name(noun, vocabulary()[noun].plural, (noun,))
