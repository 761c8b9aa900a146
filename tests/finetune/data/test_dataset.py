"""Records as a data set, and data sets by name; the images are real files."""

from __future__ import annotations

import hashlib
import io
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from finetune.data.dataset import open_dataset, phrases_of, without_unreadable
from finetune.data.record_dataset import RecordDataset
from finetune.data.records import RefRecord, write_records
from finetune.data.sample import DatasetFileError, DatasetNameError, samples_by_image
from sspsam.images.masks import mask_to_coco_rle

Picture = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

ORIENTATION = 0x0112
ROTATED_90 = 6
"""EXIF orientation of a picture that is shown turned a quarter clockwise."""


def store_picture(folder: Path, array: Picture, orientation: int | None = None, kind: str = "PNG") -> str:
    """Writes a picture under its sha256, and returns that."""
    exif = Image.Exif()
    if orientation is not None:
        exif[ORIENTATION] = orientation
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, kind, exif=exif)
    digest = hashlib.sha256(buffer.getvalue()).hexdigest()
    folder.mkdir(exist_ok=True)
    (folder / digest).write_bytes(buffer.getvalue())
    return digest


def picture(height: int = 6, width: int = 8, seed: int = 0) -> Picture:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


def record(digest: str, phrase: str, mask: Mask | None, hw: tuple[int, int], task: int = 1) -> RefRecord:
    return RefRecord(
        image_sha256=digest,
        image_url="http://example.org/cat.png",
        image_hw=hw,
        phrase=phrase,
        mask_rle=None if mask is None else mask_to_coco_rle(mask),
        project=1,
        task=task,
        annotation=task,
        region=None if mask is None else f"region-{phrase}",
        updated_at="2025-01-01T00:00:00Z",
    )


@pytest.fixture
def hole() -> Mask:
    """A 6 x 8 ring."""
    mask = np.zeros((6, 8), dtype=bool)
    mask[1:5, 2:7] = True
    mask[2:4, 4:5] = False
    return mask


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def test_a_record_becomes_a_sample(images: Path, hole: Mask) -> None:
    digest = store_picture(images, picture())
    dataset = RecordDataset(
        [record(digest, "the cat", hole, (6, 8)), record(digest, "dog", None, (6, 8))], images
    )
    cat, dog = dataset[0], dataset[1]
    assert (cat.phrase, cat.image_id, cat.family, cat.has_target) == ("the cat", digest, "noun", True)
    assert (dog.family, dog.label) == ("none", "")
    assert not cat.is_box
    [box] = RecordDataset([replace(record(digest, "the cat", hole, (6, 8)), is_box=True)], images)
    assert box.is_box
    np.testing.assert_array_equal(cat.image, picture())
    np.testing.assert_array_equal(cat.mask, hole)
    assert not dog.has_target
    assert dog.mask.shape == (6, 8)
    assert cat.sample_id != dog.sample_id
    assert dog.image is cat.image, "a picture is read once for the records that follow each other"


def test_pictures_are_upright_as_annotators_saw_them(images: Path) -> None:
    digest = store_picture(images, picture(6, 8), ROTATED_90)
    dataset = RecordDataset([record(digest, "cat", np.ones((8, 6), dtype=bool), (8, 6))], images)
    np.testing.assert_array_equal(dataset[0].image, np.rot90(picture(6, 8), -1))


@pytest.mark.parametrize(
    ("typed", "learned"),
    [
        ("where is the koala?", "the koala"),
        ("Can you find the left-most cup, please", "the leftmost cup"),
        ("the koala", "the koala"),
        ("найди кота", "найди кота"),
    ],
)
def test_a_phrase_is_learned_as_it_will_be_asked(images: Path, hole: Mask, typed: str, learned: str) -> None:
    digest = store_picture(images, np.zeros((6, 8, 3), np.uint8))
    [sample] = RecordDataset([record(digest, typed, hole, (6, 8))], images)
    assert sample.phrase == learned


def test_records_of_one_picture_are_brought_together(images: Path, hole: Mask) -> None:
    first, second = store_picture(images, picture(seed=1)), store_picture(images, picture(seed=2))
    records = [
        record(digest, phrase, hole, (6, 8))
        for digest, phrase in [(first, "a"), (second, "b"), (first, "c"), (second, "d")]
    ]
    groups = list(samples_by_image(RecordDataset(records, images)))
    assert [[sample.phrase for sample in group] for group in groups] == [["a", "c"], ["b", "d"]]


def test_no_samples_no_groups(images: Path) -> None:
    assert list(samples_by_image(RecordDataset([], images))) == []


def test_what_is_wrong_with_a_picture_is_said(images: Path, hole: Mask) -> None:
    digest = store_picture(images, picture(6, 9))
    good = record(digest, "cat", hole, (6, 8))
    with pytest.raises(DatasetFileError, match=r"is \(6, 9\) .*drawn on \(6, 8\)"):
        RecordDataset([good], images)[0]
    with pytest.raises(DatasetFileError, match="there is no image"):
        RecordDataset([replace(good, image_sha256="0" * 64)], images)[0]
    (images / "text").write_text("no picture")
    with pytest.raises(DatasetFileError, match="is not an image"):
        RecordDataset([replace(good, image_sha256="text")], images)[0]


def test_a_damaged_mask_names_its_record(images: Path) -> None:
    digest = store_picture(images, picture())
    damaged = replace(
        record(digest, "cat", np.ones((6, 8), dtype=bool), (6, 8)),
        mask_rle={"size": [6, 8], "counts": [40, 9]},
    )
    with pytest.raises(DatasetFileError, match=damaged.sample_id):
        RecordDataset([damaged], images)[0]


def test_records_open_by_name(tmp_path: Path, images: Path, hole: Mask) -> None:
    digest = store_picture(images, picture())
    path = tmp_path / "7.jsonl"
    write_records(path, [record(digest, phrase, hole, (6, 8)) for phrase in ("a", "b", "c")])
    dataset = open_dataset(f"records:{path}?images={images}")
    assert [dataset[i].phrase for i in range(len(dataset))] == ["a", "b", "c"]


def test_phrases_are_known_without_their_pictures(tmp_path: Path, images: Path, hole: Mask) -> None:
    """Those of scenes only as far as they are drawn."""
    images.mkdir()
    path = tmp_path / "7.jsonl"
    write_records(
        path, [record("0" * 64, phrase, hole, (6, 8)) for phrase in ("where is the koala?", "left b", "c")]
    )
    records = f"records:{path}?images={images}"
    assert phrases_of(open_dataset(records), 1) == {"the koala", "left b", "c"}
    assert phrases_of(open_dataset(f"{records}&views=2"), 1) == {"the koala", "left b", "right b", "c"}
    scenes = "stickers/val?count=100000&phrases=2"
    drawn = open_dataset(scenes)
    joint = phrases_of(open_dataset(f"{scenes} + {records}"), 2)
    assert joint == {"the koala", "left b", "c", drawn[0].phrase, drawn[1].phrase}


def test_phrases_that_cannot_be_read_are_left_out(
    tmp_path: Path, images: Path, hole: Mask, caplog: pytest.LogCaptureFixture
) -> None:
    digest, path = store_picture(images, picture()), tmp_path / "7.jsonl"
    phrases = ("a", "very " * 90 + "long dog", "b")
    write_records(path, [record(digest, phrase, hole, (6, 8)) for phrase in phrases])
    opened = open_dataset(f"records:{path}?images={images}&views=2 + stickers/val?count=1&phrases=2")
    readable = without_unreadable(opened)
    assert (len(opened), len(readable)) == (8, 6)
    assert [readable[index].phrase for index in range(4)] == ["a", "b", "a", "b"]
    assert {"a", "b"} < phrases_of(readable, 2)
    [message] = caplog.messages
    assert message.startswith("1 samples are left out: their phrases are empty or too long, such as 'very")


@pytest.mark.parametrize(
    ("spec", "message"),
    [
        ("mnist/train", "no data set is named 'mnist/train'; known: stickers/<split>, refcoco/<split>, "),
        ("stickers/val?cuont=3", "unknown option cuont"),
        ("stickers/val?count=many", "count is 'many', expected a whole number"),
        ("stickers/nowhere?count=1", "nowhere"),
        ("stickers/val?size=4000", "size is '4000', expected WIDTHxHEIGHT"),
        ("stickers/val?size=31x400", "each side from 32 to"),
        ("stickers/val?objects=0.3-0.1", "objects is '0.3-0.1', expected two fractions"),
        ("stickers/val?objects=2-10", "expected two fractions"),
        ("stickers/val?close_ups=nan", "close_ups is nan"),
        ("stickers/val?close_ups=1.2", "close_ups is 1.2"),
        ("stickers/val?count=1&families=poems", "poems"),
    ],
)
def test_a_wrong_name_says_what_is_known(spec: str, message: str) -> None:
    with pytest.raises(DatasetNameError, match=message):
        open_dataset(spec)


def test_missing_files_are_named(tmp_path: Path) -> None:
    with pytest.raises(DatasetFileError, match="no such file of records"):
        open_dataset(f"records:{tmp_path}/none.jsonl?images={tmp_path}")
    (tmp_path / "some.jsonl").write_text("no record")
    with pytest.raises(DatasetFileError, match="line 1"):
        open_dataset(f"records:{tmp_path}/some.jsonl?images={tmp_path}")
    with pytest.raises(DatasetFileError, match="images=<folder>"):
        open_dataset(f"records:{tmp_path}/some.jsonl")
    with pytest.raises(DatasetFileError, match="elsewhere"):
        open_dataset(f"records:{tmp_path}/some.jsonl?images={tmp_path}/elsewhere")
