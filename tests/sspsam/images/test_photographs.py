"""Photographs are told from drawings: those of the demo, and scenes that set no threshold."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from finetune.data.stickers.dataset import make_scene, select_nouns
from sspsam.images.image_io import read_picture
from sspsam.images.photographs import is_photograph
from worker.local.demo_photographs import FOLDER
from worker.local.demo_pictures import demo_pictures

SMOOTH = {"rocket.jpg"}
"""Mostly sky."""


def test_photographs_are_recognised() -> None:
    paths = sorted(FOLDER.glob("*.jpg"))
    assert len(paths) == 6
    missed = {path.name for path in paths if not is_photograph(read_picture(path))}
    assert missed == SMOOTH


def test_drawings_are_no_photographs() -> None:
    scenes = [make_scene(seed, "test", select_nouns(["core", "base"])).image for seed in range(20)]
    assert sum(map(is_photograph, scenes)) <= 1


def test_no_picture_of_the_demo_is_a_photograph(tmp_path: Path) -> None:
    paths = [picture.path for picture in demo_pictures(tmp_path, 3)]
    assert not any(is_photograph(read_picture(path)) for path in paths)


@pytest.mark.parametrize("shape", [(1, 1), (1, 5000), (5000, 1), (15, 15), (16, 16), (17, 4000), (300, 300)])
def test_pictures_of_any_shape_have_an_answer(shape: tuple[int, int]) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (*shape, 3), dtype=np.uint8)
    for image in (np.zeros_like(noise), noise, np.full_like(noise, 255)):
        assert is_photograph(image) in (True, False)
    assert not is_photograph(np.zeros_like(noise))
