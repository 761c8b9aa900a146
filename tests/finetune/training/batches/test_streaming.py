"""Streamed batches: every sample once per epoch, augmented, resumable, sharded across processes."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch

from finetune.data.sample import Dataset, DatasetError, DatasetFileError, Sample
from finetune.data.stickers.dataset import StickerDataset
from finetune.training.batches.embedding_store import EmbeddingStore
from finetune.training.batches.examples import ExampleStream
from finetune.training.batches.streaming import SampleStream, StepSampler
from finetune.training.config import ConfigError, TrainConfig
from finetune.training.ranks import Ranks
from sspsam import Predictor

PREDICTOR = Predictor.from_preset("ssp-sam-test", "cpu")


@pytest.fixture
def config(tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        preset="ssp-sam-test", output_dir=tmp_path, stream=True, batch_size=4, target_size=32, device="cpu"
    )


@pytest.fixture
def data() -> StickerDataset:
    return StickerDataset("train", count=3, phrases_per_scene=2, families=["noun", "none", "place"])


def stream(config: TrainConfig, data: Dataset, processes: Ranks | None = None) -> SampleStream:
    return SampleStream(data, PREDICTOR, config, config.batch_size, processes or Ranks())


def test_it_gives_what_the_windows_give(config: TrainConfig, data: StickerDataset) -> None:
    """Without variation, a streamed sample is the one that is embedded in windows."""
    windows = ExampleStream(data, PREDICTOR, len(data), len(data), config.target_size, seed=0).batch(0)
    at = {sample_id: row for row, sample_id in enumerate(windows.sample_ids)}
    batch = stream(config, data).batch(0)
    rows = [at[sample_id] for sample_id in batch.sample_ids]
    for name in ("patch_features", "image_embeddings", "tokens", "masks", "patch_coverage", "boxes"):
        expected, actual = getattr(windows, name)[rows], getattr(batch, name)
        torch.testing.assert_close(actual, expected, atol=2e-3, rtol=2e-3)
    assert torch.equal(batch.has_target, windows.has_target[rows])
    torch.testing.assert_close(batch.text.words, windows.text.words[rows], atol=2e-3, rtol=2e-3)


def test_an_epoch_visits_every_sample_once_in_an_order_of_its_own() -> None:
    sampler = StepSampler(10, 4, seed=0, processes=Ranks(), first_step=0)
    visits = [key for step in range(5) for key in sampler.keys(step)]
    first, second = visits[:10], visits[10:]
    assert sorted(first) == [(0, i) for i in range(10)]
    assert sorted(second) == [(1, i) for i in range(10)]
    assert [position for _, position in first] != [position for _, position in second]


@pytest.mark.parametrize("count", [1, 2, 3])
def test_processes_share_a_batch_without_gap_or_repeat(count: int) -> None:
    alone = StepSampler(10, 4, seed=0, processes=Ranks(), first_step=0).keys(7)
    shared = [StepSampler(10, 4, 0, Ranks(rank, count), 0).keys(7) for rank in range(count)]
    assert [key for share in shared for key in share] == alone


def test_a_stream_goes_on_anywhere(config: TrainConfig, data: StickerDataset) -> None:
    config = dataclasses.replace(config, random_placement=True, flip_probability=0.5)
    unbroken = stream(config, data)
    batches = [unbroken.batch(step) for step in range(4)]
    resumed = stream(config, data).batch(3)
    assert resumed.sample_ids == batches[3].sample_ids
    for name in ("patch_features", "image_embeddings", "masks", "boxes", "tokens"):
        assert torch.equal(getattr(resumed, name), getattr(batches[3], name)), name


@pytest.mark.slow
def test_workers_read_the_same(config: TrainConfig, data: StickerDataset) -> None:
    varied = dataclasses.replace(config, random_placement=True, flip_probability=0.5)
    alone, helped = stream(varied, data), stream(dataclasses.replace(varied, workers=1), data)
    for step in range(2):
        one, other = alone.batch(step), helped.batch(step)
        assert one.sample_ids == other.sample_ids
        assert torch.equal(one.patch_features, other.patch_features)


def wide_sample(phrase: str = "the left dog") -> Sample:
    """A picture twice as wide as high, so that it can lie at several heights of the canvas."""
    sample = StickerDataset("train", count=1, families=["noun"])[0]
    width = sample.image.shape[1]
    height = width // 2
    mask = np.zeros((height, width), dtype=bool)
    mask[height // 4 : height // 2, width // 8 : width // 3] = True
    return dataclasses.replace(sample, image=sample.image[:height], mask=mask, phrase=phrase)


def test_pictures_lie_at_random_places_with_their_boxes(config: TrainConfig) -> None:
    sample = wide_sample()
    placed = stream(dataclasses.replace(config, random_placement=True), [sample]).readings
    plain = stream(config, [sample]).readings
    tops = set()
    for epoch in range(12):
        reading = placed[epoch, 0]
        filled = reading.canvas.abs().sum(0).sum(1) > 0
        top = int(filled.nonzero()[0])
        tops.add(top)
        shift = (top - int((plain[0, 0].canvas.abs().sum(0).sum(1) > 0).nonzero()[0])) / 32
        torch.testing.assert_close(reading.box, plain[0, 0].box + torch.tensor([0, shift, 0, 0]))
        assert torch.equal(reading.mask, plain[0, 0].mask), "SAM's square does not move"
    assert len(tops) > 3
    assert {int((plain[e, 0].canvas.abs().sum(0).sum(1) > 0).nonzero()[0]) for e in range(3)} == {8}


def test_a_flip_changes_picture_mask_box_and_words(config: TrainConfig) -> None:
    sample = wide_sample()
    plain = stream(config, [sample]).readings[0, 0]
    flipped = stream(dataclasses.replace(config, flip_probability=1.0), [sample]).readings[0, 0]
    torch.testing.assert_close(flipped.canvas, plain.canvas.flip(-1), atol=0.05, rtol=0)
    torch.testing.assert_close(flipped.box[0], 1 - plain.box[0])
    assert torch.equal(flipped.mask, plain.mask.flip(-1))
    assert not torch.equal(flipped.tokens, plain.tokens)
    said = stream(config, [wide_sample("the right dog")]).readings[0, 0]
    assert torch.equal(flipped.tokens, said.tokens)


def test_some_are_flipped_and_some_are_not(config: TrainConfig) -> None:
    readings = stream(dataclasses.replace(config, flip_probability=0.5), [wide_sample()]).readings
    flips = [not torch.equal(readings[epoch, 0].mask, readings[0, 0].mask) for epoch in range(40)]
    assert 8 < sum(flips) < 32


def test_embeddings_are_kept_and_found(config: TrainConfig, data: StickerDataset, tmp_path: Path) -> None:
    config = dataclasses.replace(config, embeddings=tmp_path / "kept", flip_probability=0.5)
    first = stream(config, data)
    batches = [first.batch(step) for step in range(3)]
    files = sorted((tmp_path / "kept").rglob("*.safetensors"))
    assert 3 <= len(files) <= 6, "one or two of each of three scenes: as it is, and mirrored"
    second = stream(config, data)
    second.embeddings = Unused(second.embeddings)
    for step, batch in enumerate(batches):
        torch.testing.assert_close(
            second.batch(step).image_embeddings, batch.image_embeddings, rtol=0, atol=0
        )


class Unused:
    """A store that must not be asked to encode."""

    def __init__(self, store: EmbeddingStore) -> None:
        self.files = store.files

    def get(self, image: object) -> None:
        raise AssertionError("the embedding is on disk")


def test_boxes_alone_need_no_image_encoder(config: TrainConfig, data: StickerDataset, tmp_path: Path) -> None:
    boxes = dataclasses.replace(config, stage="rec", embeddings=None)
    batch = stream(boxes, data).batch(0)
    assert batch.image_embeddings.shape == (4, 0, 0, 0)
    assert batch.boxes[batch.has_target].min() > 0


def test_a_phrase_that_is_too_long_is_named(config: TrainConfig) -> None:
    sample = wide_sample("very " * 90 + "long dog")
    with pytest.raises(DatasetFileError, match=f"{sample.sample_id}: the phrase is too long"):
        stream(config, [sample]).batch(0)


def test_no_samples_is_an_error(config: TrainConfig) -> None:
    with pytest.raises(DatasetError, match="empty"):
        stream(config, [])


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"random_placement": True, "stream": False}, "need stream = true"),
        ({"flip_probability": 1.5}, r"in 0\.\.1"),
        ({"accumulate": 0}, "accumulate must be at least 1"),
        ({"accumulate": 2, "stage": "clip", "stream": False}, "stage clip cannot accumulate"),
        ({"from_scratch": True}, "from_scratch needs whole windows"),
        ({"stage": "pretraining"}, "expected one of: clip, sam, rec, ssp"),
        ({"precision": "float8"}, "expected one of: auto, float32, bfloat16"),
    ],
)
def test_settings_that_contradict_each_other_are_refused(
    config: TrainConfig, settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        dataclasses.replace(config, **settings)
