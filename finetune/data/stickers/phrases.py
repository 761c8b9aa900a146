"""Referring expressions for sticker scenes, each true of exactly the objects it refers to.

One function per family generates a phrase for a scene, or returns None if it would be ambiguous. The margins
for positions, relations and colours are in `spatial_predicates`, those for sizes and orders here.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.stickers import spatial_predicates
from finetune.data.stickers.colours import COLOURS
from finetune.data.stickers.phrase_grammar import TRIES, PhraseGrammar, Word
from finetune.data.stickers.scenes import Scene
from finetune.data.stickers.spatial_predicates import SIDES, SpatialPredicate

Said = tuple[str, tuple[int, ...]]
"""The phrase, and the indices of the objects that it refers to."""

ORDER_GAP = 0.06
"""Minimum distance of objects distinguished by their order, as a fraction of the image's side."""
SIZE_RATIO = 1.6
"""Minimum ratio of the visible areas of the biggest object and the next."""
PLAIN_SIZE_RATIO = 2.5
"""The same for an object simply called big or small."""
NEAREST_RATIO = 2.0
"""Minimum ratio of the distances of the second nearest and the nearest object."""
NEAREST_GAP = 0.12
"""Minimum difference of these distances, as a fraction of the short side."""
_NUMBERS = {2: "two", 3: "three", 4: "four", 5: "five", 6: "six", 7: "seven", 8: "eight"}
_ORDINALS = (("first", "1st"), ("second", "2nd"), ("third", "3rd"), ("fourth", "4th"), ("fifth", "5th"))
_EXTREMES = {
    "left": ("leftmost {}", "{} furthest to the left", "far left {}"),
    "right": ("rightmost {}", "{} furthest to the right", "far right {}"),
    "top": ("topmost {}", "highest {}", "uppermost {}"),
    "bottom": ("bottommost {}", "lowest {}", "{} furthest down"),
}
_SIZES = {
    "big": (("biggest {}", "largest {}"), ("bigger {}", "larger {}"), ("big {}", "large {}", "huge {}")),
    "small": (
        ("smallest {}", "tiniest {}"),
        ("smaller {}", "littler {}"),
        ("small {}", "little {}", "tiny {}"),
    ),
}
"""Size -> wordings for the extreme of several, for one of two, and for an obvious difference."""


@dataclass(frozen=True)
class ScenePhrase:
    """A phrase about a scene."""

    phrase: str
    family: str
    targets: tuple[int, ...]
    """Indices of the objects that it refers to; empty without a target."""


def make_phrases(
    scene: Scene, rng: np.random.Generator, families: Sequence[str] | None = None, count: int | None = None
) -> list[ScenePhrase]:
    """Generates distinct phrases about a scene, cycling through the families.

    Args:
        scene: The scene.
        rng: Source of random choices.
        families: Families to use; all if None.
        count: Number of phrases; if None, one for each family that applies.

    Returns:
        At most `count` distinct phrases; fewer if the scene does not allow more.

    Raises:
        ValueError: an unknown family, or none.
    """
    wanted = FAMILIES if families is None else tuple(families)
    strange = [family for family in wanted if family not in _SPEAKERS]
    if strange or not wanted:
        raise ValueError(f"families are {strange or 'none'}, expected some of {', '.join(FAMILIES)}")
    limit = len(wanted) if count is None else count
    grammar = PhraseGrammar(scene, rng)
    said: dict[str, ScenePhrase] = {}
    for _ in range(1 if count is None else 2 + 2 * count):
        for index in rng.permutation(len(wanted)):
            if len(said) >= limit:
                return list(said.values())
            phrase = _say(grammar, wanted[index])
            if phrase is not None:
                said.setdefault(phrase.phrase.lower(), phrase)
    return list(said.values())


def _say(grammar: PhraseGrammar, family: str) -> ScenePhrase | None:
    """Tries to generate a phrase of a family."""
    for _ in range(TRIES):
        said = _SPEAKERS[family](grammar)
        if said is not None:
            return ScenePhrase(grammar.write(said[0]), family, tuple(sorted(said[1])))
    return None


def _say_noun(grammar: PhraseGrammar) -> Said | None:
    word = grammar.word(at_most=1)
    if word is None:
        return None
    name = word.name
    return grammar.pick((name, name, f"the {name}", f"the {name}", grammar.a(name))), word.indices


def _say_size(grammar: PhraseGrammar) -> Said | None:
    word = grammar.word(2, anything=0.08)
    if word is None:
        return None
    size = grammar.pick(("big", "small"))
    sign = -1 if size == "big" else 1
    objects = grammar.scene.objects
    first, second = spatial_predicates.ranked(
        grammar.scene, word.indices, lambda thing: sign * thing.area_px
    )[:2]
    areas = sorted(objects[index].area_px for index in (first, second))
    sides = [max(_sides_px(objects[index].box_xyxy)) for index in (first, second)]
    ratio = areas[1] / areas[0]
    if ratio < SIZE_RATIO or sign * (sides[1] - sides[0]) <= 0:
        return None
    most, more, plain = _SIZES[size]
    said = list(most)
    if len(word.indices) == 2:
        said += [*more, *(f"{way.format('')}of the two {word.plural}" for way in more)]
    if ratio >= PLAIN_SIZE_RATIO:
        said += plain
    return grammar.the(grammar.pick(said).format(word.name)), (first,)


def _sides_px(box_xyxy: tuple[int, int, int, int]) -> tuple[int, int]:
    return box_xyxy[2] - box_xyxy[0], box_xyxy[3] - box_xyxy[1]


def _say_place(grammar: PhraseGrammar) -> Said | None:
    if grammar.chance(0.3):
        return _say_extreme(grammar)
    word = grammar.mostly_repeated(anything=0.06)
    return _say_claim(grammar, word, grammar.place()) if word else None


def _say_claim(grammar: PhraseGrammar, word: Word, claim: SpatialPredicate) -> Said | None:
    """Generates a phrase from a predicate that singles out one object of a name."""
    targets = claim.true_of(word.indices)
    if targets is None or len(targets) != 1:
        return None
    return grammar.the(grammar.pick(claim.sayings).format(word.name)), targets


def _in_order(grammar: PhraseGrammar, word: Word, side: str) -> tuple[list[int], list[bool]]:
    """The objects of a name ordered from a side, and for each whether it is clear of its predecessor."""
    scene = grammar.scene
    order = spatial_predicates.ranked(
        scene, word.indices, lambda thing: spatial_predicates.distance_from(scene, thing, side)
    )
    steps = np.diff([spatial_predicates.distance_from(scene, scene.objects[index], side) for index in order])
    return order, [True, *(bool(step >= ORDER_GAP) for step in steps)]


def _say_extreme(grammar: PhraseGrammar) -> Said | None:
    word = grammar.word(2, anything=0.08)
    if word is None:
        return None
    side = grammar.pick(list(SIDES))
    order, clear = _in_order(grammar, word, side)
    return (grammar.the(grammar.pick(_EXTREMES[side]).format(word.name)), (order[0],)) if clear[1] else None


def _say_ordinal(grammar: PhraseGrammar) -> Said | None:
    word = grammar.word(2)
    if word is None:
        return None
    side = grammar.pick(("left", "left", "right", "right", "top", "bottom"))
    order, clear = _in_order(grammar, word, side)
    rank = int(grammar.rng.integers(min(len(order), len(_ORDINALS))))
    if not clear[rank] or not (rank + 1 == len(order) or clear[rank + 1]):
        return None
    if len(order) == 3 and rank == 1 and _in_row(grammar, word, side) and grammar.chance(0.4):
        return grammar.the(f"middle {word.name}"), (order[1],)
    said = _count_from(grammar, word.name, rank, side)
    if side == "left" and _in_row(grammar, word, side) and grammar.chance(0.25):
        bare = "last" if rank + 1 == len(order) and grammar.chance(0.5) else grammar.pick(_ORDINALS[rank])
        said = f"{bare} {word.name}"
    return grammar.the(said), (order[rank],)


def _count_from(grammar: PhraseGrammar, name: str, rank: int, side: str) -> str:
    ordinal = grammar.pick(_ORDINALS[rank])
    return grammar.pick((f"{ordinal} {name} from the {side}", f"{ordinal} {name} from {side}"))


def _in_row(grammar: PhraseGrammar, word: Word, side: str) -> bool:
    """Whether objects are arranged along the axis of the side rather than across it."""
    axis = SIDES[side][0]
    middles = np.array([grammar.scene.objects[index].centre for index in word.indices])
    spread = np.ptp(middles, axis=0)
    return bool(spread[axis] > 2 * spread[1 - axis])


def _say_relation(grammar: PhraseGrammar) -> Said | None:
    word = grammar.mostly_repeated()
    if word is None:
        return None
    choice = grammar.rng.random()
    if choice < 0.25:
        return _say_nearest(grammar, word)
    claim = grammar.apart(word) if choice < 0.35 else grammar.relation(word)
    return _say_claim(grammar, word, claim) if claim else None


def _say_nearest(grammar: PhraseGrammar, word: Word) -> Said | None:
    """Generates a phrase for the object nearest to another."""
    scene = grammar.scene
    anchors = [other for other in grammar.nouns if len(other.indices) == 1 and other.name != word.name]
    if len(word.indices) < 2 or not anchors:
        return None
    anchor = grammar.pick(anchors)
    if anchor.indices[0] in word.indices:
        return None
    other = scene.objects[anchor.indices[0]]
    order = spatial_predicates.ranked(
        scene, word.indices, lambda thing: spatial_predicates.gap_between(scene, thing, other)
    )
    first, second = (
        spatial_predicates.gap_between(scene, scene.objects[index], other) for index in order[:2]
    )
    if second < max(NEAREST_RATIO * first, first + NEAREST_GAP):
        return None
    ways = ["nearest to", "closest to"] + ["next to", "by", "near"] * (first <= spatial_predicates.NEAR)
    return f"{grammar.the(word.name)} {grammar.pick(ways)} {grammar.the(anchor.name)}", (order[0],)


def _say_colour(grammar: PhraseGrammar) -> Said | None:
    word = grammar.mostly_repeated(anything=0.1)
    return _say_claim(grammar, word, grammar.colour(word)) if word else None


def _say_several(grammar: PhraseGrammar) -> Said | None:
    choice = grammar.rng.random()
    if choice < 0.5:
        return _say_all(grammar)
    if choice < 0.6:
        return _say_pair(grammar)
    if choice < 0.75:
        return _say_outermost(grammar)
    word = grammar.word(3)
    if word is None:
        return None
    claim = grammar.place() if choice < 0.9 else grammar.colour(word)
    targets = claim.true_of(word.indices)
    if targets is None or not 2 <= len(targets) < len(word.indices):
        return None
    said = grammar.pick(claim.sayings).replace("that is", "that are").format(word.plural)
    if said.startswith(word.plural) and grammar.chance(0.4):
        return f"the {_NUMBERS[len(targets)]} {said}", targets
    return grammar.pick((said, f"the {said}", f"all {said}", f"all the {said}")), targets


def _say_all(grammar: PhraseGrammar) -> Said | None:
    word = grammar.word(2, at_most=max(_NUMBERS), anything=0.04)
    if word is None:
        return None
    number, plural = _NUMBERS[len(word.indices)], word.plural
    said = [plural, f"the {plural}", f"all {plural}", f"all the {plural}", f"the {number} {plural}"]
    if plural != word.name:
        said += [f"every {word.name}", f"each {word.name}"]
    said.append(f"both {plural}" if number == "two" else f"all {number} {plural}")
    return grammar.pick(said), word.indices


def _say_pair(grammar: PhraseGrammar) -> Said | None:
    """Joins phrases for two different objects."""
    words = [word for word in grammar.nouns if len(word.indices) == 1]
    if len(words) < 2:
        return None
    one, other = (words[index] for index in grammar.rng.permutation(len(words))[:2])
    said = grammar.pick((f"{one.name} and {other.name}", f"the {one.name} and the {other.name}"))
    return said, one.indices + other.indices


def _say_outermost(grammar: PhraseGrammar) -> Said | None:
    word = grammar.word(3)
    if word is None:
        return None
    side = grammar.pick(list(SIDES))
    order, clear = _in_order(grammar, word, side)
    number = int(grammar.rng.integers(2, min(len(order), 5)))
    if not clear[number]:
        return None
    return grammar.the(f"{_NUMBERS[number]} {_EXTREMES[side][0].format(word.plural)}"), tuple(order[:number])


def _say_none(grammar: PhraseGrammar) -> Said | None:
    said = _say_absent(grammar) if grammar.chance(0.6) else _say_untrue(grammar)
    return (said, ()) if said else None


def _say_absent(grammar: PhraseGrammar) -> str | None:
    """Names an absent object, with the same variety of wordings as for present ones."""
    absent = grammar.absent_word()
    if absent is None:
        return None
    name, plural = absent
    choice = grammar.rng.random()
    if choice < 0.5:
        return grammar.pick((name, f"the {name}", grammar.a(name)))
    if choice < 0.62:
        return grammar.pick((plural, f"all {plural}", f"both {plural}", f"the two {plural}"))
    if choice < 0.7:
        return grammar.the(
            _count_from(grammar, name, int(grammar.rng.integers(3)), grammar.pick(list(SIDES)))
        )
    if choice < 0.78:
        return grammar.the(grammar.pick(_SIZES[grammar.pick(("big", "small"))][0]).format(name))
    stand_in = Word(name, plural, ())
    claim = grammar.colour(stand_in) if choice < 0.86 else grammar.place()
    if choice >= 0.93:
        claim = grammar.relation(stand_in) or claim
    return grammar.the(grammar.pick(claim.sayings).format(name))


def _say_untrue(grammar: PhraseGrammar) -> str | None:
    """Generates a phrase about present objects that is true of none of them."""
    word = grammar.word()
    if word is None:
        return None
    choice = grammar.rng.random()
    if choice < 0.15:
        rank = len(word.indices) + int(grammar.rng.integers(2))
        if rank >= len(_ORDINALS):
            return None
        return grammar.the(_count_from(grammar, word.name, rank, grammar.pick(list(SIDES))))
    if choice < 0.3:
        absent = grammar.absent_word()
        return f"{grammar.the(word.name)} next to the {absent[0]}" if absent else None
    if choice < 0.55:
        claim: SpatialPredicate | None = spatial_predicates.has_colour(grammar.scene, grammar.pick(COLOURS))
    else:
        claim = grammar.place() if choice < 0.8 else grammar.relation(word)
    if claim is None or claim.true_of(word.indices) != ():
        return None
    return grammar.the(grammar.pick(claim.sayings).format(word.name))


_SPEAKERS = {
    "noun": _say_noun,
    "size": _say_size,
    "place": _say_place,
    "ordinal": _say_ordinal,
    "relation": _say_relation,
    "colour": _say_colour,
    "several": _say_several,
    "none": _say_none,
}
FAMILIES = tuple(_SPEAKERS)
