"""The label that a phrase names, in many spellings."""

from __future__ import annotations

import pytest

from backend.labelstudio.regions.labels import Label, LabelIndex

OTHERS = ("object", "tree", "sky")


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("dark_circles", "the dark circles"),
        ("dark-circle", "two dark circles on the left"),
        ("TrafficLight", "the traffic light"),
        ("trafficLight", "TRAFFIC LIGHTS"),
        ("traffic light", "the trafficlight"),
        ("boats", "the boat"),
        ("boat", "three boats"),
        ("battery", "all batteries"),
        ("batteries", "the battery"),
        ("person", "the people on the bench"),
        ("people", "a person"),
        ("man", "the men"),
        ("mice", "a mouse"),
        ("knife", "knives"),
        ("glass", "two glasses"),
        ("bus", "buses"),
        ("cactus", "three cacti"),
        ("mitochondria", "the mitochondrion"),
        ("larva", "all larvae"),
        ("matrix", "the matrices"),
        ("T-shirt", "the tshirt"),
        ("dog", "the dog's"),
        ("cat", "“cat”, please"),
        ("Café", "the CAFE\u0301"),
        ("Straße", "die STRASSE"),
        ("猫", "左边的猫"),
        ("ねこ", "赤いねこ"),
        ("แมว", "แมวสีดำ"),
        ("кошка", "Кошка слева"),
        ("कुत्ता", "बायाँ कुत्ता"),
        ("class_7", "class 7"),
    ],
)
def test_a_phrase_names_a_label(label: str, phrase: str) -> None:
    assert LabelIndex.of([Label(OTHERS[0]), Label(label), Label(OTHERS[1])]).named_in(phrase) == 1


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        ("man", "the mane of a horse"),
        ("car", "the cart"),
        ("cat", "a caterpillar"),
        ("class_7", "class 71"),
        ("ga", "the gas"),
        ("cat", ""),
        ("---", "--- a dog"),
    ],
)
def test_other_words_do_not(label: str, phrase: str) -> None:
    assert LabelIndex.of([Label(label)]).named_in(phrase) is None


def test_the_first_named_counts_and_of_two_names_at_one_place_the_longer() -> None:
    index = LabelIndex.of([Label("light"), Label("traffic"), Label("traffic_light"), Label("car")])

    assert index.named_in("the traffic lights by the car") == 2
    assert index.named_in("the cars by the traffic light") == 3


@pytest.mark.parametrize(
    ("labels", "phrase", "expected"),
    [
        (("person", "people"), "the people", "people"),
        (("people", "person"), "the person", "person"),
        (("cars", "car"), "the car by the cars", "car"),
        (("glasses", "glass"), "the glass", "glass"),
        (("crack", "cracks"), "cracks", "cracks"),
        (("traffic", "traffic_light"), "traffic lights", "traffic_light"),
        ((">5mm", "<5mm"), "<5mm lesion", "<5mm"),
        (("A+", "A-", "A"), "grade A-", "A-"),
        (("A+", "A-", "A"), "grade a", "A"),
        (("Grade 12", "Grade 1-2"), "grade 1-2", "Grade 1-2"),
        (("C", "C++"), "the C++ logo", "C++"),
        (("人", "人々"), "左の人々", "人々"),
        (("dark-circle", "dark_circle"), "dark circle", "dark-circle"),
    ],
)
def test_the_name_as_written_in_the_phrase_comes_first(
    labels: tuple[str, ...], phrase: str, expected: str
) -> None:
    named = LabelIndex.of(map(Label, labels)).named_in(phrase)
    assert named is not None
    assert labels[named] == expected


@pytest.mark.parametrize(
    ("label", "phrase"),
    [
        (Label("red_tomato"), "red tomato"),
        (Label("SUVs"), "SUVs"),
        (Label("iPhone"), "iPhone"),
        (Label("3Dprinter"), "3Dprinter"),
        (Label("PVCPipe"), "PVC pipe"),
        (Label("TrafficLight"), "traffic light"),
        (Label("HTTPServer"), "HTTP server"),
        (Label("T-shirt"), "T-shirt"),
        (Label("dark circles"), "dark circles"),
        (Label("猫"), "猫"),
        (Label("Помидор", alias="red_tomato"), "red tomato"),
        (Label("_"), "_"),
    ],
)
def test_a_label_is_asked_as_a_person_writes_it(label: Label, phrase: str) -> None:
    assert label.phrase == phrase
    assert LabelIndex.of([Label("object"), label]).named_in(phrase) in (1, None if label.value == "_" else 1)
