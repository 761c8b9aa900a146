"""Sticker scenes: deterministic by seed, with exact masks of the visible parts."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

from finetune.data.stickers.art import ART_PX, CELL_PX, COLUMNS, STYLES, read_art
from finetune.data.stickers.colours import colour_shares
from finetune.data.stickers.drawing import draw_sticker
from finetune.data.stickers.scenes import (
    CLOSE_UP_RANGE,
    MIN_VISIBLE,
    SOLID_ALPHA,
    SPLITS,
    Scene,
    StickerStack,
    make_scene,
)
from finetune.data.stickers.vocabulary import (
    ATLAS_DIR,
    FIRST_NOUNS,
    also_called,
    kinds,
    nouns,
    select_nouns,
    vocabulary,
)

SMALL = (96, 160)


def small_scene(seed: int, split: str = "train") -> Scene:
    return make_scene(seed, split, size_range=SMALL)


def test_the_same_seed_draws_the_same_scene():
    first, again = small_scene(5), small_scene(5)
    assert np.array_equal(first.image, again.image)
    assert [thing.noun for thing in first.objects] == [thing.noun for thing in again.objects]
    for one, other in zip(first.objects, again.objects, strict=True):
        assert np.array_equal(one.mask, other.mask)


def test_splits_and_seeds_draw_different_scenes():
    drawn = [small_scene(seed, split) for seed in (5, 6) for split in SPLITS]
    assert len({scene.image.tobytes() for scene in drawn}) == len(drawn)


def test_masks_are_disjoint_and_boxes_hold_them():
    for seed in range(40):
        scene = small_scene(seed)
        assert scene.objects
        covered = np.zeros(scene.image.shape[:2], int)
        for thing in scene.objects:
            covered += thing.mask
            rows, columns = np.flatnonzero(thing.mask.any(1)), np.flatnonzero(thing.mask.any(0))
            assert thing.box_xyxy == (columns[0], rows[0], columns[-1] + 1, rows[-1] + 1)
            assert thing.area_px == thing.mask.sum()
        assert covered.max() == 1, "no pixel belongs to two things"


def pile_up(seed: int, count: int) -> StickerStack:
    pile = StickerStack(np.random.default_rng(seed), 120, 160)
    for noun in FIRST_NOUNS[:count]:
        pile.lay(noun, STYLES[seed % len(STYLES)])
    return pile


def test_each_pixel_belongs_to_the_front_most_solid_sticker():
    for seed in range(30):
        pile = pile_up(seed, 8)
        owner = np.full((120, 160), -1)
        for index in reversed(range(len(pile.laid))):
            laid = pile.laid[index]
            places = np.argwhere(laid.sticker[..., 3] >= SOLID_ALPHA)
            rows, columns = np.add(places, (laid.top, laid.left)).T
            seen = (rows >= 0) & (rows < 120) & (columns >= 0) & (columns < 160)
            owner[rows[seen], columns[seen]] = index
        blank = np.zeros((120, 160, 3), np.uint8)
        for index, thing in enumerate(pile.objects(blank)):
            assert np.array_equal(thing.mask, owner == index)
            whole = (pile.laid[index].sticker[..., 3] >= SOLID_ALPHA).sum()
            assert thing.area_px >= MIN_VISIBLE * whole


def test_a_mask_is_where_a_sticker_lets_less_than_half_of_the_background_through():
    """Painted on black and on white, a lone sticker shows its alpha in the difference."""
    checked = 0
    for seed in range(40):
        pile = pile_up(seed, 1)
        if pile.shadow is not None:
            continue
        painted = [pile.paint(np.full((120, 160, 3), level, np.uint8)) for level in (0, 255)]
        through = painted[1][..., 0].astype(int) - painted[0][..., 0]
        clear = abs(through - 127.5) > 2
        mask = pile.objects(painted[0])[0].mask
        assert np.array_equal(mask[clear], through[clear] < 127)
        checked += 1
    assert checked > 15


def test_canvases_keep_to_the_range_and_objects_to_the_choice():
    seen = set()
    for seed in range(30):
        scene = make_scene(seed, nouns=["dog", "cat"], styles=["noto"], size_range=(64, 200), max_stickers=3)
        assert all(64 <= side <= 200 for side in scene.image.shape[:2])
        assert 1 <= len(scene.objects) <= 3
        assert {thing.style for thing in scene.objects} == {"noto"}
        seen |= {thing.noun for thing in scene.objects}
    assert seen == {"dog", "cat"}


def test_novel_nouns_are_never_drawn_unasked():
    drawn = {thing.noun for seed in range(150) for thing in small_scene(seed).objects}
    assert not drawn & set(nouns("novel"))
    assert len(drawn) > 100


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "dev"}, "split is 'dev'"),
        ({"nouns": ["dog", "griffin"]}, "'griffin' is neither a noun"),
        ({"nouns": []}, "no nouns"),
        ({"styles": ["crayon"]}, "no .* in style 'crayon'"),
        ({"size_range": (200, 100)}, "size_range"),
        ({"sticker_range": (0.5, 0.2)}, "sticker_range"),
    ],
)
def test_what_cannot_be_drawn_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make_scene(0, **arguments)


@pytest.mark.parametrize("sticker_range", [CLOSE_UP_RANGE, (0.02, 0.1)])
def test_stickers_are_as_large_as_asked_for(sticker_range):
    """The box of a turned sticker is larger than its side, that of one that is covered smaller."""
    canvas_hw = (160, 240)
    low, high = sticker_range
    sides = []
    for seed in range(12):
        scene = make_scene(seed, "val", canvas_hw=canvas_hw, sticker_range=sticker_range, max_stickers=3)
        assert scene.image.shape == (*canvas_hw, 3)
        sides += [
            max(np.ptp(np.array(thing.box_xyxy).reshape(2, 2), axis=0)) / 160 for thing in scene.objects
        ]
    assert 0.4 * low < min(sides) < 2.2 * low
    assert 0.6 * high < max(sides) < 1.35 * high


@pytest.mark.parametrize("style", STYLES)
def test_the_atlas_has_every_noun_within_its_cell(style):
    for noun in vocabulary():
        art = read_art(noun, style)
        alpha = art.levels[0][..., 3]
        assert max(art.size_hw) <= ART_PX + 2, noun
        assert (alpha >= 128).sum() > 500, f"{noun} is drawn"
        margin = np.ones_like(alpha, bool)
        margin[2:-2, 2:-2] = False
        assert not alpha[margin].any(), f"{noun} does not reach its neighbours"
        assert [level.shape for level in art.levels] == [(CELL_PX >> k, CELL_PX >> k, 4) for k in range(4)]
        assert (art.levels[0][..., :3] <= art.levels[0][..., 3:]).all(), "premultiplied"


def test_the_atlas_says_where_it_comes_from_and_brings_the_licences():
    described = json.loads((ATLAS_DIR / "atlas.json").read_text())
    assert tuple(described["styles"]) == STYLES
    assert (described["cell_px"], described["columns"]) == (CELL_PX, COLUMNS)
    assert {source["license"] for source in described["styles"].values()} <= {"Apache-2.0", "MIT"}
    notice = (ATLAS_DIR / "LICENSES" / "NOTICE.md").read_text()
    for style, source in described["styles"].items():
        row = next(line for line in notice.splitlines() if f"`{style}.webp`" in line)
        assert source["package"] in row
        texts = [name for name in row.split("`") if name.endswith(".txt")]
        assert texts
        for name in texts:
            text = (ATLAS_DIR / "LICENSES" / name).read_text()
            assert "Copyright (c)" in text or "Apache License" in text
    assert sum(path.stat().st_size for path in ATLAS_DIR.rglob("*.*")) < 5_000_000


def test_the_vocabulary_is_the_published_one():
    assert len(vocabulary()) == 240
    assert [len(nouns(split)) for split in ("core", "base", "novel")] == [67, 148, 25]
    assert len(FIRST_NOUNS) == 24
    assert set(FIRST_NOUNS) <= set(nouns("core"))
    assert select_nouns(["first", "dog", "box"]) == (*FIRST_NOUNS, "box")


def test_words_speak_of_nouns_that_exist():
    for kind in kinds():
        assert (kind.members | kind.doubtful) <= set(vocabulary()), kind.name
        assert not kind.members & kind.doubtful
    for noun in vocabulary():
        assert also_called(noun) <= set(vocabulary()) - {noun}


def test_a_sticker_turns_and_grows_as_asked():
    upright = draw_sticker("dog", "noto", 100)
    assert upright.dtype == np.uint8
    assert abs(max(upright.shape[:2]) - 102) <= 1
    turned = draw_sticker("dog", "noto", 100, angle_deg=90)
    assert turned.shape[:2] == upright.shape[1::-1]
    assert np.abs(np.rot90(upright, -1).astype(int) - turned).mean() < 3
    mirrored = draw_sticker("dog", "noto", 100, mirror=True)
    assert np.abs(upright[:, ::-1].astype(int) - mirrored).mean() < 3
    for longest in (12, 30, 64, 250):
        solid = draw_sticker("basketball", "noto", longest)[..., 3] >= 128
        assert np.ptp(np.flatnonzero(solid.any(0))) + 1 == pytest.approx(longest, abs=2)


@pytest.mark.parametrize(
    ("rgb", "name"),
    [
        ((220, 20, 25), "red"),
        ((250, 130, 20), "orange"),
        ((250, 215, 40), "yellow"),
        ((40, 160, 60), "green"),
        ((30, 90, 220), "blue"),
        ((120, 40, 190), "purple"),
        ((250, 90, 170), "pink"),
        ((120, 70, 35), "brown"),
        ((250, 250, 248), "white"),
        ((128, 128, 130), "grey"),
        ((20, 18, 22), "black"),
        ((60, 200, 200), None),
    ],
)
def test_colours_get_the_names_people_use(rgb, name):
    shares = colour_shares(np.full((7, 3), rgb, np.uint8))
    assert {colour for colour, share in shares.items() if share} == ({name} if name else set())


def test_the_sheets_are_pictures_of_the_expected_size():
    for style in STYLES:
        with Image.open(ATLAS_DIR / f"{style}.webp") as sheet:
            assert sheet.size == (COLUMNS * CELL_PX, 15 * CELL_PX)
            assert sheet.mode == "RGBA"
