"""The demo's lesson: images with one object whose name the shipped weights were never taught."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from finetune.data.stickers.dataset import select_nouns
from finetune.data.stickers.demo import NOUNS
from worker.local.demo import FINETUNE_AFTER
from worker.local.demo_lesson import (
    ASKED,
    NOUN,
    TAUGHT,
    lesson_pictures,
    lesson_scene,
    suggestion_of,
)
from worker.local.demo_pictures import Picture


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("lesson")


@pytest.fixture(scope="module")
def pictures(folder: Path) -> list[Picture]:
    return lesson_pictures(folder)


@pytest.mark.slow
def test_the_pictures_to_correct_are_enough_for_a_fine_tune(pictures: list[Picture]) -> None:
    assert len({picture.path for picture in pictures}) == TAUGHT + ASKED
    assert TAUGHT >= FINETUNE_AFTER


@pytest.mark.slow
def test_each_shows_one_object_that_the_weights_do_not_know(pictures: list[Picture]) -> None:
    known = set(select_nouns(NOUNS))
    for picture in pictures:
        assert picture.seed is not None
        scene = lesson_scene(picture.seed)
        (phrase,) = picture.phrases
        assert [scene.objects[index].noun for index in phrase.targets] == [NOUN]
        assert {thing.noun for thing in scene.objects} - known == {NOUN}
        with Image.open(picture.path) as image:
            assert np.array_equal(np.asarray(image), scene.image)


@pytest.mark.slow
def test_the_second_start_draws_nothing_anew(folder: Path, pictures: list[Picture]) -> None:
    before = {picture.path: picture.path.stat().st_mtime_ns for picture in pictures}
    assert lesson_pictures(folder) == pictures
    assert {path: path.stat().st_mtime_ns for path in before} == before


def test_the_form_says_what_to_do_with_each() -> None:
    assert f"(1 of {TAUGHT})" in suggestion_of(0)
    assert f"({TAUGHT} of {TAUGHT})" in suggestion_of(TAUGHT - 1)
    assert "Did it learn?" in suggestion_of(TAUGHT)
