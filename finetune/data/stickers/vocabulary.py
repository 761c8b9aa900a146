"""The vocabulary of stickers: names of objects, and which names are confusable.

The table is `atlas/vocabulary.tsv`. Its split separates the nouns of training, `core` and `base`, from
`novel` ones, which are never trained on in any style and serve to test learning from corrections.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ATLAS_DIR = Path(__file__).parents[1] / "atlas"


@dataclass(frozen=True)
class Noun:
    """One row of the table: the name of an object, and the location of its art."""

    icon: str
    name: str
    plural: str
    category: str
    split: str


@dataclass(frozen=True)
class Kind:
    """A word that covers several nouns, such as "fruit".

    `doubtful` nouns are counted by some people but not by others; phrases with the word are not generated for
    scenes that contain one of them.
    """

    name: str
    plural: str
    members: frozenset[str]
    doubtful: frozenset[str] = frozenset()


def _names(listed: str) -> frozenset[str]:
    return frozenset(listed.split(", "))


@cache
def vocabulary() -> dict[str, Noun]:
    """All nouns by name, in the order of the atlas's cells."""
    lines = (ATLAS_DIR / "vocabulary.tsv").read_text(encoding="utf-8").splitlines()[1:]
    rows = (Noun(*line.split("\t")) for line in lines)
    return {noun.name: noun for noun in rows}


@cache
def nouns(*splits: str) -> tuple[str, ...]:
    """Names of the nouns of the given splits; `nouns("core", "base")` are all nouns allowed in training."""
    return tuple(noun.name for noun in vocabulary().values() if noun.split in splits)


FIRST_NOUNS = (
    "dog", "cat", "frog", "butterfly", "penguin", "fish", "apple", "banana", "watermelon", "carrot", "burger",
    "cake", "car", "bus", "airplane", "bike", "house", "tree", "sun", "drum", "basketball", "shirt", "key",
    "gift",
)  # fmt: skip
"""Everyday core nouns that look distinct in every style: the nouns of the first weights."""


def _in_category(category: str) -> frozenset[str]:
    return frozenset(noun.name for noun in vocabulary().values() if noun.category == category)


_BIRDS = _names("bird, duck, owl, eagle, penguin, chicken, rooster, turkey")
_DRINKS = _names("milk, wine, beer, cocktail")


@cache
def kinds() -> tuple[Kind, ...]:
    """The words for several nouns that phrases use."""
    return (
        Kind("animal", "animals", _in_category("animal"), _names("snowman, fishing rod")),
        Kind("bird", "birds", _BIRDS, _names("bat")),
        Kind(
            "fruit",
            "fruits",
            _names(
                "grapes, melon, watermelon, orange, lemon, banana, pineapple, apple, peach, cherries, "
                "strawberry, kiwi"
            ),
            _names("tomato, avocado, cucumber, eggplant, pepper, chestnut, sundae"),
        ),
        Kind(
            "food",
            "foods",
            _in_category("food") - _DRINKS - {"honey pot"},
            _DRINKS | _names("honey pot, fish, crab"),
        ),
        Kind("drink", "drinks", _DRINKS),
        Kind("vehicle", "vehicles", _in_category("vehicle"), _names("shopping cart")),
        Kind(
            "flower",
            "flowers",
            _names("sunflower, tulip, rose, hibiscus"),
            _names("clover, kimono"),
        ),
        Kind("tree", "trees", _names("tree, pine tree, palm tree"), _names("cactus, seedling")),
        Kind(
            "ball",
            "balls",
            _names("soccer ball, basketball, baseball, volleyball"),
            _names("tennis ball, eight ball"),
        ),
        Kind(
            "building",
            "buildings",
            _names("house, castle, church, office building, factory"),
            _names("tent, ferris wheel"),
        ),
        Kind(
            "musical instrument",
            "musical instruments",
            _names("guitar, violin, trumpet, saxophone, drum"),
            _names("microphone, headphones, radio, bell"),
        ),
    )


_LOOK_ALIKES = (
    _names("chicken, rooster, turkey"),
    _names("cow, ox"),
    _names("goat, ram, deer"),
    _names("dolphin, whale, shark"),
    _names("lizard, crocodile, dragon"),
    _names("monkey, gorilla"),
    _names("squid, octopus"),
    _names("crab, scorpion"),
    _names("mouse, chipmunk"),
    _names("wolf, fox"),
    _names("melon, watermelon"),
    _names("tomato, apple, peach"),
    _names("orange, peach"),
    _names("candy, lollipop"),
    _names("bread, croissant, baguette"),
    _names("truck, ambulance"),
    _names("scooter, motorcycle"),
    _names("canoe, speedboat"),
    _names("ship, sailboat, speedboat"),
    _names("house, church"),
    _names("hammer, pickaxe"),
    _names("knife, dagger"),
    _names("purse, backpack"),
    _names("laptop, tv"),
    _names("telescope, microscope"),
)


_COVERS = {
    "dog": _names("poodle"),
    "cat": _names("tiger, lion"),
    "bird": _BIRDS - {"bird"},
    "horse": _names("unicorn"),
    "fish": _names("tropical fish, pufferfish, shark, fishing rod"),
    "orange": _names("lemon"),
    "burger": _names("hot dog"),
    "cake": _names("pancakes, donut"),
    "car": _names("taxi, police car, race car, ambulance"),
    "truck": _names("fire truck, ambulance"),
    "bus": _names("ambulance"),
    "tree": _names("palm tree, pine tree"),
    "leaf": _names("clover, seedling"),
    "star": _names("sun"),
    "glasses": _names("sunglasses"),
    "watch": _names("stopwatch"),
    "shirt": _names("tie, kimono"),
    "dress": _names("kimono"),
    "box": _names("gift, popcorn"),
    "ring": _names("diamond"),
    "diamond": _names("ring"),
}


@cache
def also_called(noun: str) -> frozenset[str]:
    """Nouns confusable with this one: some people use its name for them, or they look too similar.

    Phrases with the noun are not generated for scenes that contain one of them: their truth would be unclear.
    """
    alike = [group for group in _LOOK_ALIKES if noun in group]
    covered: frozenset[str] = _COVERS.get(noun, frozenset())
    return covered.union(*alike) - {noun}


def select_nouns(names: Iterable[str]) -> tuple[str, ...]:
    """Expands a selection of nouns: each entry is a noun, or "first", "core", "base" or "novel" for a group.

    Raises:
        ValueError: an entry is neither, or the selection is empty.
    """
    chosen: dict[str, None] = {}
    for name in names:
        group = FIRST_NOUNS if name == "first" else nouns(name)
        if not group and name not in vocabulary():
            raise ValueError(f"{name!r} is neither a noun of the vocabulary nor first, core, base or novel")
        chosen.update(dict.fromkeys(group or (name,)))
    if not chosen:
        raise ValueError("no nouns were given")
    return tuple(chosen)
