"""The demo's images: equal on every machine, of known nouns, with true phrases."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.stickers.dataset import select_nouns
from finetune.data.stickers.demo import NOUNS
from worker.local.demo import PICTURES
from worker.local.demo_pictures import PER_PICTURE, Picture, demo_pictures, demo_scene

pytestmark = pytest.mark.xdist_group("demo-pictures")  # the module's fixtures are made once

FEW = 5
"""Of the demo's PICTURES, which are drawn one like the other."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[Picture]:
    return demo_pictures(folder, FEW)


def test_there_are_as_many_files_as_pictures(folder: Path, pictures: list[Picture]) -> None:
    assert len({picture.path for picture in pictures}) == FEW
    assert all(picture.path.exists() for picture in pictures)


def test_a_file_shows_its_scene(pictures: list[Picture]) -> None:
    for picture in pictures[:3]:
        with Image.open(picture.path) as image:
            assert np.array_equal(np.asarray(image), demo_scene(picture.seed).image)


def test_all_that_is_shown_is_known_to_the_weights(pictures: list[Picture]) -> None:
    known = set(select_nouns(NOUNS))
    shown = {thing.noun for picture in pictures for thing in demo_scene(picture.seed).objects}
    assert shown <= known


def test_phrases_are_a_name_other_kinds_and_something_that_is_not_there(pictures: list[Picture]) -> None:
    for picture in pictures:
        name, *others, nothing = picture.phrases
        scene = demo_scene(picture.seed)
        assert len(name.targets) == 1
        assert len(others) == PER_PICTURE
        assert len({phrase.targets for phrase in (name, *others)}) == 1 + PER_PICTURE
        assert all(scene.mask_of(phrase.targets).any() for phrase in others)
        assert nothing.targets == ()
        assert not any(nothing.text == f"the {thing.noun}" for thing in scene.objects)


@pytest.mark.slow
def test_every_family_is_shown(tmp_path: Path) -> None:
    """Told by words that no other family uses."""
    pictures = demo_pictures(tmp_path, PICTURES)
    texts = " ".join(phrase.text for picture in pictures for phrase in picture.phrases)
    for words in (("all", "both"), ("first", "1st", "second", "2nd"), ("between", "away from", "next to")):
        assert any(word in texts for word in words), words
    assert any(len(phrase.targets) > 1 for picture in pictures for phrase in picture.phrases)


def test_the_second_start_draws_nothing_anew(folder: Path, pictures: list[Picture]) -> None:
    before = {picture.path: picture.path.stat().st_mtime_ns for picture in pictures}
    assert demo_pictures(folder, FEW) == pictures
    assert {path: path.stat().st_mtime_ns for path in before} == before
