"""The data set of sticker scenes, single stickers, and the command that writes scenes."""

from __future__ import annotations

import json
import pickle

import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

from finetune.cli.scenes import PHRASES_FILE, TASKS_FILE, app
from finetune.data.dataset import open_dataset
from finetune.data.sample import DatasetNameError
from finetune.data.stickers.art import STYLES
from finetune.data.stickers.dataset import FIRST_NOUNS, StickerDataset, render_crop
from sspsam.images.masks import coco_rle_to_mask

SMALL = (96, 160)


def small_dataset(**options) -> StickerDataset:
    return StickerDataset(**{"count": 4, "size_range": SMALL, **options})


def test_samples_are_the_same_in_any_order():
    dataset, again = small_dataset(), small_dataset()
    forwards = [dataset[index] for index in range(len(dataset))]
    backwards = [again[index] for index in reversed(range(len(again)))][::-1]
    for one, other in zip(forwards, backwards, strict=True):
        assert (one.sample_id, one.phrase) == (other.sample_id, other.phrase)
        assert np.array_equal(one.image, other.image)
        assert np.array_equal(one.mask, other.mask)


def test_a_dataset_travels_to_another_process():
    dataset = small_dataset(families=["noun", "none"], nouns=["first"])
    arrived = pickle.loads(pickle.dumps(dataset))
    assert arrived[9].phrase == dataset[9].phrase
    assert np.array_equal(arrived[9].image, dataset[9].image)


def test_samples_of_a_scene_follow_each_other():
    dataset = small_dataset(phrases_per_scene=5)
    samples = [dataset[index] for index in range(len(dataset))]
    assert len(samples) == 20
    assert len({sample.sample_id for sample in samples}) == 20
    for start in range(0, 20, 5):
        assert len({sample.image_id for sample in samples[start : start + 5]}) == 1
    assert len({sample.image_id for sample in samples}) == 4


def test_every_object_is_in_the_baseline_mask():
    dataset = small_dataset()
    for index in range(len(dataset)):
        sample = dataset[index]
        assert sample.all_objects is not None
        assert not (sample.mask & ~sample.all_objects).any()
        assert sample.has_target == (sample.family != "none")


def test_splits_and_seeds_share_no_scene():
    chosen = [small_dataset(split=split, seed=seed) for split in ("train", "val") for seed in (0, 1)]
    images = [dataset[turn * 8].image.tobytes() for dataset in chosen for turn in range(4)]
    assert len(set(images)) == len(images)


def test_nouns_and_families_can_be_chosen_by_name():
    dataset = open_dataset("stickers/val?count=6&families=place,none&nouns=first")
    assert isinstance(dataset, StickerDataset)
    samples = [dataset[index] for index in range(len(dataset))]
    assert {sample.family for sample in samples} == {"place", "none"}
    scene = dataset.scene(0)[0]
    assert {thing.noun for thing in scene.objects} <= set(FIRST_NOUNS)


@pytest.mark.parametrize(
    "name", ["stickers/dev", "stickers/val?families=rhyme", "stickers/val?nouns=griffin"]
)
def test_what_is_not_there_is_refused(name):
    with pytest.raises(DatasetNameError, match=r"dev|rhyme|griffin"):
        open_dataset(name)


def test_an_index_beyond_the_end_is_refused():
    with pytest.raises(IndexError):
        small_dataset()[4 * 8]


@pytest.mark.parametrize("style", STYLES)
def test_crops_show_one_sticker(style):
    rng = np.random.default_rng(0)
    shares = []
    for noun in FIRST_NOUNS:
        crop, mask = render_crop(noun, style, rng, size=64)
        assert (crop.shape, crop.dtype) == ((64, 64, 3), np.uint8)
        assert (mask.shape, mask.dtype) == ((64, 64), np.bool_)
        shares.append(mask.mean())
    assert min(shares) > 0.03
    assert max(shares) < 0.98
    assert 0.15 < np.mean(shares) < 0.6


def test_scenes_are_written_with_tasks_and_phrases(tmp_path):
    written = CliRunner().invoke(app, ["--out", str(tmp_path), "--count", "2", "--nouns", "first"])
    assert written.exit_code == 0, written.output
    tasks = json.loads((tmp_path / TASKS_FILE).read_text())
    assert [task["data"]["image"].rpartition("=")[2] for task in tasks] == [
        "scene-0000.png",
        "scene-0001.png",
    ]
    lines = [json.loads(line) for line in (tmp_path / PHRASES_FILE).read_text().splitlines()]
    assert len(lines) == 16
    for line in lines:
        with Image.open(tmp_path / line["image"]) as picture:
            if line["mask_rle"] is not None:
                assert coco_rle_to_mask(line["mask_rle"]).shape == picture.size[::-1]
        assert (line["mask_rle"] is None) == (line["family"] == "none")


def test_a_wrong_choice_of_nouns_is_explained(tmp_path):
    refused = CliRunner().invoke(app, ["--out", str(tmp_path), "--nouns", "griffin"])
    assert refused.exit_code == 2
    assert "griffin" in refused.output
