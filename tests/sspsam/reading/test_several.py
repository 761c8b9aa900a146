"""What phrases say about the number of their targets."""

from __future__ import annotations

import pytest

from sspsam.reading.several import may_have_several, number_of_targets, things_of


@pytest.mark.parametrize(
    "phrase",
    [
        "all dogs",
        "both cats",
        "the two cars on the left",
        "every fruit",
        "The Animals",
        "dog and cat",
        "people",
        "left dogs",
        "the men in red",
        "3 birds",
        "a dog and a cat",
        "dogs that are next to the tree",
        "犬",
        "scissors",
        "taxis",
        "a few dogs",
        "a couple of dogs",
        "a group of people",
        "a row of cars",
        "another two dogs",
        "the snowmen",
        "the tvs",
        "2 deer",
        "the left two",
        "two or three dogs",
        "a dog, a cat",
        "dog & cat",
        "dog, cat and duck",
    ],
)
def test_several(phrase: str) -> None:
    assert may_have_several(phrase)


@pytest.mark.parametrize(
    "phrase",
    [
        "a carrot",
        "the dog left of the trees",
        "the bus",
        "spoon",
        "man in red on the left",
        "second car from the right",
        "that glass",
        "the cactus",
        "right car",
        "the bird that is not next to the trees",
        "the dog's bone",
        "Tennis racket",
        "player 7",
        "the bus number 12",
        "a fish",
        "a two story house",
        "that sheep",
        "the eight ball",
        "12 inch watermelon",
        "the two headed dragon",
        "the 5 dollar watermelon",
        "the four poster bed",
        "10 dollar bill",
        "the 7 on the dice",
        "7 up can",
        "the six string guitar",
        "2 cm crack",
        "the rhinoceros",
        "christmas tree",
        "the gas can",
        "the specimen",
        "the big, red dog",
        "dog, brown",
    ],
)
def test_one(phrase: str) -> None:
    assert not may_have_several(phrase)


@pytest.mark.parametrize(
    ("phrase", "number"),
    [
        ("both cats", 2),
        ("The two topmost suns", 2),
        ("all three dogs", 3),
        ("all of the 4 birds", 4),
        ("TWO BOTTOMMOST DONUTS", 2),
        ("the dogs", None),
        ("the two dogs and the cat", None),
        ("one of the two dogs", None),
        ("the man with two dogs", None),
        ("player 7", None),
        ("the 1000000000000 cats", None),
        ("0 cats", None),
        ("1 cats", None),
        ("³ cats", None),
        ("five hundred cups", None),
        ("two thousand people", None),
        ("three dozen eggs", None),
        ("the two story houses", None),
        ("2 door cars", None),
        ("all two wheelers", None),
        ("the two doors", 2),
        ("the two headed dragons", None),
        ("two or three dogs", None),
        ("the eight ball", None),
        ("12 inch watermelons", None),
        ("nine snowmen", 9),
        ("2 deer", 2),
        ("the left two", None),
        ("two dogs, a cat", None),
        ("two", 2),
        ("", None),
    ],
)
def test_a_number_of_targets(phrase: str, number: int | None) -> None:
    assert number_of_targets(phrase) == number


@pytest.mark.parametrize(
    ("phrase", "things"),
    [
        ("the cup and the spoon", ["the cup", "the spoon"]),
        ("Balloon and train", ["balloon", "train"]),
        ("a red cup and a spoon and the dogs", ["a red cup", "a spoon", "the dogs"]),
        ("the dog, the cat and the duck", ["the dog", "the cat", "the duck"]),
        ("the dog, the cat, and the duck", ["the dog", "the cat", "the duck"]),
        ("dog, cat and duck", ["dog", "cat", "duck"]),
        ("the dog & the cat", ["the dog", "the cat"]),
        ("dog, brown", []),
        ("the big, red dog", []),
        ("the dog, on the left", []),
        ("the black and white dog", []),
        ("black and white dog", []),
        ("the cup and spoon", []),
        ("the cup and the spoon on the table", []),
        ("the cup", []),
        ("and", []),
        ("the and the", []),
        ("a and b and c and d and e", []),
        ("", []),
    ],
)
def test_different_things(phrase: str, things: list[str]) -> None:
    assert things_of(phrase) == things
