"""Phrases about scenes, verified against the masks by independent means."""

from __future__ import annotations

import colorsys
import re
from collections import Counter
from functools import cache

import numpy as np
import pytest

from finetune.data.stickers.phrases import FAMILIES, ScenePhrase, make_phrases
from finetune.data.stickers.scenes import Scene, make_scene
from finetune.data.stickers.vocabulary import kinds, vocabulary

pytestmark = pytest.mark.xdist_group("sticker-phrases")  # the scenes are made once

SIDE_AXES = {"left": (0, 1), "right": (0, -1), "top": (1, 1), "bottom": (1, -1)}


@cache
def scenes() -> list[Scene]:
    return [make_scene(seed, size_range=(128, 200)) for seed in range(220)]


@cache
def said(family: str | None = None) -> list[tuple[Scene, ScenePhrase]]:
    rng = np.random.default_rng(1)
    families = None if family is None else [family]
    return [(scene, phrase) for scene in scenes() for phrase in make_phrases(scene, rng, families, count=8)]


def centre(scene: Scene, index: int) -> np.ndarray:
    """(x, y) of the middle of the extent of a mask, parts of the picture's size."""
    rows, columns = np.nonzero(scene.objects[index].mask)
    middle = np.array([columns.min() + columns.max() + 1, rows.min() + rows.max() + 1]) / 2
    return middle / np.array(scene.image.shape[1::-1])


def area(scene: Scene, index: int) -> int:
    return int(scene.objects[index].mask.sum())


def names() -> dict[str, frozenset[str]]:
    """Every word a phrase can use, singular or plural, and the nouns it stands for."""
    words: dict[str, frozenset[str]] = {}
    for noun in vocabulary().values():
        words[noun.name] = words[noun.plural] = frozenset([noun.name])
    for kind in kinds():
        words[kind.name] = words.get(kind.name, frozenset()) | kind.members
        words[kind.plural] = words.get(kind.plural, frozenset()) | kind.members
    words["object"] = words["objects"] = frozenset(vocabulary())
    return words


WORDS = names()
ANY_WORD = "|".join(sorted(map(re.escape, WORDS), key=len, reverse=True))


def named(scene: Scene, word: str) -> list[int]:
    """Objects that a word stands for; a noun that is also a kind ("bird") stands for the wider."""
    return [index for index, thing in enumerate(scene.objects) if thing.noun in WORDS[word]]


def parse(pattern: str, phrase: str) -> re.Match[str] | None:
    """Matches a whole phrase, `W` in the pattern standing for a word and its article."""
    pattern = pattern.replace("{W}", rf"(?:the |an? )?(?P<word>{ANY_WORD})")
    pattern = pattern.replace("{A}", rf"(?:the |an? )?(?P<anchor>{ANY_WORD})")
    return re.fullmatch(rf"(?:the )?{pattern}", phrase.lower())


def counted(family: str, pattern: str, at_least: int) -> list[tuple[Scene, ScenePhrase, re.Match[str]]]:
    found = []
    for scene, phrase in said(family):
        match = parse(pattern, phrase.phrase)
        if match:
            found.append((scene, phrase, match))
    assert len(found) >= at_least, f"too few phrases {pattern!r} to test anything: {len(found)}"
    return found


@pytest.mark.slow
def test_nouns_name_the_only_one():
    for scene, phrase, match in counted("noun", "{W}", 300):
        assert named(scene, match["word"]) == list(phrase.targets)
        assert len(phrase.targets) == 1


@pytest.mark.parametrize(
    ("pattern", "sign"), [("(big|larg|hug)\\w* {W}", 1), ("(small|tin|littl)\\w* {W}", -1)]
)
def test_sizes_hold_by_area(pattern, sign):
    for scene, phrase, match in counted("size", pattern, 60):
        others = set(named(scene, match["word"])) - set(phrase.targets)
        assert others
        ratios = [area(scene, phrase.targets[0]) / area(scene, other) for other in others]
        assert all(ratio**sign >= 1.5 for ratio in ratios), phrase


@pytest.mark.parametrize(
    ("side", "pattern"),
    [
        ("left", "leftmost {W}|"),
        ("right", "rightmost {W}"),
        ("top", "(topmost|highest|uppermost) {W}"),
        ("bottom", "(bottommost|lowest) {W}"),
    ],
)
def test_the_outermost_is_further_out_than_all_others(side, pattern):
    axis, sign = SIDE_AXES[side]
    for scene, phrase, match in counted("place", pattern.strip("|"), 8):
        target = centre(scene, phrase.targets[0])[axis] * sign
        others = set(named(scene, match["word"])) - set(phrase.targets)
        assert all(centre(scene, other)[axis] * sign > target + 0.05 for other in others), phrase


@pytest.mark.parametrize("side", SIDE_AXES)
def test_sides_hold_of_the_target_and_of_no_other(side):
    axis, sign = SIDE_AXES[side]
    for scene, phrase, match in counted("place", f"(?:{side} {{W}}|{ANY_WORD} (on|at) the {side})", 15):
        word = match["word"] or phrase.phrase.lower().removeprefix("the ").split(" on ")[0].split(" at ")[0]
        inside = [index for index in named(scene, word) if (centre(scene, index)[axis] - 0.5) * sign < 0]
        assert inside == list(phrase.targets), phrase


def test_ordinals_count_from_their_side():
    words = ["first", "second", "third", "fourth", "fifth", "1st", "2nd", "3rd", "4th", "5th"]
    order = {word: place % 5 for place, word in enumerate(words)}
    found = counted("ordinal", "(?P<rank>\\w+) {W} from (the )?(?P<side>\\w+)", 100)
    for scene, phrase, match in found:
        axis, sign = SIDE_AXES[match["side"]]
        ranked = sorted(named(scene, match["word"]), key=lambda index: centre(scene, index)[axis] * sign)
        assert [ranked[order[match["rank"]]]] == list(phrase.targets), phrase
    assert len({match["rank"] for *_, match in found}) >= 6


@pytest.mark.parametrize(
    ("side", "pattern"),
    [
        ("left", "left of"),
        ("right", "right of"),
        ("top", "(above|over)"),
        ("bottom", "(below|under|beneath)"),
    ],
)
def test_relations_hold_of_the_target_and_of_no_other(side, pattern):
    axis, sign = SIDE_AXES[side]
    for scene, phrase, match in counted("relation", f"{{W}} (to the )?{pattern} {{A}}", 10):
        (anchor,) = named(scene, match["anchor"])
        beyond = centre(scene, anchor)[axis] * sign
        true = [
            index
            for index in named(scene, match["word"])
            if centre(scene, index)[axis] * sign < beyond and index != anchor
        ]
        assert true == list(phrase.targets), phrase


def test_the_nearest_is_nearest():
    def gap(scene: Scene, one: int, other: int) -> float:
        boxes = [np.array(scene.objects[index].box_xyxy) for index in (one, other)]
        away = np.maximum(np.maximum(boxes[0][:2] - boxes[1][2:], boxes[1][:2] - boxes[0][2:]), 0)
        return float(np.hypot(*away))

    for scene, phrase, match in counted("relation", "{W} (nearest|closest) to {A}", 20):
        (anchor,) = named(scene, match["anchor"])
        nearest = min(named(scene, match["word"]), key=lambda index: gap(scene, index, anchor))
        assert (nearest,) == phrase.targets


@pytest.mark.slow
def test_colours_are_those_of_the_pixels():
    vivid = {"red": (-15, 15), "yellow": (42, 65), "green": (75, 165), "blue": (185, 252)}
    checked = 0
    for scene, phrase, match in counted("colour", "(?P<colour>\\w+) {W}", 100):
        if match["colour"] in vivid:
            pixels = scene.image[scene.objects[phrase.targets[0]].mask][::5]
            hues = [360 * colorsys.rgb_to_hsv(*pixel)[0] for pixel in pixels / 255]
            low, high = vivid[match["colour"]]
            inside = [low <= hue <= high or low <= hue - 360 <= high for hue in hues]
            assert np.mean(inside) >= 0.45, phrase
            checked += 1
    assert checked > 40


def test_all_means_all():
    pattern = "(all|both|every|each)( the| two| three| four)* {W}"
    for scene, phrase, match in counted("several", pattern, 100):
        assert named(scene, match["word"]) == list(phrase.targets)
        assert len(phrase.targets) >= 2
        if phrase.phrase.lower().startswith("both"):
            assert len(phrase.targets) == 2


def test_numbers_are_the_number_of_targets():
    numbers = {"two": 2, "three": 3, "four": 4}
    for _, phrase, match in counted("several", "(all )?(?P<number>two|three|four) .*", 50):
        assert len(phrase.targets) == numbers[match["number"]]


def test_nothing_means_nothing():
    found = counted("none", "{W}", 200)
    for scene, phrase, match in found:
        assert phrase.targets == ()
        assert not named(scene, match["word"])
    for scene, phrase in said("none"):
        assert not scene.mask_of(phrase.targets).any()


def test_phrases_vary():
    spoken = said()
    families = Counter(phrase.family for _, phrase in spoken)
    assert set(families) == set(FAMILIES)
    assert min(families.values()) > 40
    texts = [phrase.phrase for _, phrase in spoken]
    assert any(text.isupper() for text in texts)
    assert any(text.startswith("The ") for text in texts)
    assert len({text.lower() for text in texts}) > 0.7 * len(texts)
    assert not [text for text in texts if "{" in text or "  " in text or text != text.strip()]


def test_the_same_random_stream_says_the_same():
    one, other = (make_phrases(scenes()[0], np.random.default_rng(3), count=8) for _ in range(2))
    assert one == other
    assert len({phrase.phrase.lower() for phrase in one}) == len(one)


def test_unknown_families_are_refused():
    with pytest.raises(ValueError, match="rhyme"):
        make_phrases(scenes()[0], np.random.default_rng(0), families=["rhyme"])
