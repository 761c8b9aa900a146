"""The words for the objects of a scene, and random choices between wordings."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeVar

import numpy as np

from finetune.data.stickers import spatial_predicates
from finetune.data.stickers.colours import COLOURS
from finetune.data.stickers.scenes import Scene
from finetune.data.stickers.spatial_predicates import SIDES, SpatialPredicate
from finetune.data.stickers.vocabulary import also_called, kinds, vocabulary

Option = TypeVar("Option")

TRIES = 10
"""Maximum number of attempts of a family to make a phrase for a scene."""

_NO_ARTICLE = frozenset(
    ["bread", "cheese", "meat", "bacon", "popcorn", "spaghetti", "sushi", "chocolate", "milk", "wine", "food"]
)


@dataclass(frozen=True)
class Word:
    """A word and the objects of a scene that it denotes."""

    name: str
    plural: str
    indices: tuple[int, ...]


class PhraseGrammar:
    """Vocabulary of one scene, and random choices between wordings."""

    def __init__(self, scene: Scene, rng: np.random.Generator) -> None:
        self.scene = scene
        self.rng = rng
        self.present = frozenset(scene.by_noun)
        self.everything = Word("object", "objects", tuple(range(len(scene.objects))))
        self.nouns = self._noun_words()
        self.kinds = self._kind_words()

    def _noun_words(self) -> list[Word]:
        return [
            Word(noun, vocabulary()[noun].plural, indices)
            for noun, indices in self.scene.by_noun.items()
            if not also_called(noun) & self.present
        ]

    def _kind_words(self) -> list[Word]:
        named = {word.name for word in self.nouns}
        words = []
        for kind in kinds():
            if kind.members & self.present and not kind.doubtful & self.present and kind.name not in named:
                members = [self.scene.by_noun[noun] for noun in self.present & kind.members]
                words.append(Word(kind.name, kind.plural, tuple(sorted(sum(members, ())))))
        return words

    def pick(self, options: Sequence[Option]) -> Option:
        return options[int(self.rng.integers(len(options)))]

    def chance(self, probability: float) -> bool:
        return bool(self.rng.random() < probability)

    def word(self, at_least: int = 1, at_most: int | None = None, anything: float = 0.0) -> Word | None:
        """Picks a word for a number of objects: mostly a noun, sometimes a kind or, if allowed, "object"."""
        if self.chance(anything):
            words = [self.everything]
        else:
            words = self.kinds if self.chance(0.12) else self.nouns
        words = [
            word
            for word in words
            if at_least <= len(word.indices) and (at_most is None or len(word.indices) <= at_most)
        ]
        return self.pick(words) if words else None

    def mostly_repeated(self, anything: float = 0.0) -> Word | None:
        """Picks a word that preferably denotes several objects, so that the phrase must be more specific."""
        return self.word(2, anything=anything) if self.chance(0.75) else self.word(anything=anything)

    def the(self, text: str) -> str:
        return f"the {text}" if self.chance(0.5) else text

    def a(self, name: str) -> str:
        """A name with its indefinite article, if it takes one."""
        if name in _NO_ARTICLE or (name.endswith("s") and not name.endswith(("ss", "us", "bus"))):
            return name
        return f"an {name}" if name[0] in "aeiou" and name != "unicorn" else f"a {name}"

    def write(self, text: str) -> str:
        """Varies upper and lower case as users do."""
        style = self.rng.random()
        if style < 0.8:
            return text
        return text.upper() if style > 0.95 else text[0].upper() + text[1:]

    def place(self) -> SpatialPredicate:
        """A predicate about positions in the image."""
        choice = self.rng.random()
        if choice < 0.55:
            return spatial_predicates.on_side(self.scene, self.pick(list(SIDES)))
        if choice < 0.85:
            return spatial_predicates.in_corner(
                self.scene, self.pick(("top", "bottom")), self.pick(("left", "right"))
            )
        return spatial_predicates.in_middle(self.scene)

    def colour(self, of: Word) -> SpatialPredicate:
        """A predicate about a colour: mostly one that an object of this name has."""
        seen = [self.scene.objects[index].colour for index in of.indices]
        known = [name for name in seen if name is not None]
        return spatial_predicates.has_colour(self.scene, self.pick(known) if known else self.pick(COLOURS))

    def relation(self, of: Word) -> SpatialPredicate | None:
        """A predicate about positions relative to another object, whose name it includes."""
        anchors = [word for word in self.nouns if not set(word.indices) & set(of.indices)]
        single = [word for word in anchors if len(word.indices) == 1]
        choice = self.rng.random()
        if choice < 0.2:
            return self._between(anchors)
        if not single:
            return None
        anchor = self.pick(single)
        if choice < 0.4:
            claim = spatial_predicates.near(self.scene, anchor.indices)
        else:
            claim = spatial_predicates.beside(self.scene, anchor.indices[0], self.pick(list(SIDES)))
        return _name_anchor(claim, self.the(anchor.name))

    def apart(self, of: Word) -> SpatialPredicate | None:
        """A predicate about distance from all objects of another name."""
        anchors = [word for word in self.nouns if not set(word.indices) & set(of.indices)]
        if not anchors:
            return None
        anchor = self.pick(anchors)
        name = self.a(anchor.name) if len(anchor.indices) > 1 else f"the {anchor.name}"
        return _name_anchor(spatial_predicates.far(self.scene, anchor.indices), name)

    def _between(self, anchors: Sequence[Word]) -> SpatialPredicate | None:
        pairs = [word for word in anchors if len(word.indices) == 2]
        single = [word for word in anchors if len(word.indices) == 1]
        if pairs and (self.chance(0.3) or len(single) < 2):
            pair = self.pick(pairs)
            return _name_anchor(
                spatial_predicates.between(self.scene, *pair.indices), f"the two {pair.plural}"
            )
        if len(single) < 2:
            return None
        one, other = (single[index] for index in self.rng.permutation(len(single))[:2])
        claim = spatial_predicates.between(self.scene, one.indices[0], other.indices[0])
        return _name_anchor(claim, f"the {one.name} and the {other.name}")

    def absent_word(self) -> tuple[str, str] | None:
        """Name and plural of an absent noun, preferably of a category that is present."""
        if self.chance(0.08):
            away = [kind for kind in kinds() if not (kind.members | kind.doubtful) & self.present]
            away = [kind for kind in away if kind.members & set(self.scene.nouns)]
            return (kind.name, kind.plural) if away and (kind := self.pick(away)) else None
        categories = {thing.category for thing in self.scene.objects}
        similar = self.chance(0.5)
        for _ in range(TRIES):
            noun = vocabulary()[self.pick(self.scene.nouns)]
            clear = noun.name not in self.present and not also_called(noun.name) & self.present
            if clear and (not similar or noun.category in categories):
                return noun.name, noun.plural
        return None


def _name_anchor(claim: SpatialPredicate, name: str) -> SpatialPredicate:
    return SpatialPredicate(
        tuple(saying.replace("{anchor}", name) for saying in claim.sayings), claim.verdicts
    )
