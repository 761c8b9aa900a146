"""RefRecord and its JSON Lines."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.data.records import (
    RecordFormatError,
    RecordObject,
    RefRecord,
    read_records,
    records_digest,
    write_records,
)
from sspsam.images.masks import mask_to_coco_rle

MASK = np.zeros((4, 6), dtype=np.bool_)
MASK[1:3, 2:5] = True
OTHER = ~MASK

RECORD = RefRecord(
    image_sha256="ab" * 32,
    image_url="/data/upload/1/a.png",
    image_hw=(4, 6),
    phrase="the döner\u2028on the left",
    mask_rle=mask_to_coco_rle(MASK),
    project=1,
    task=2,
    annotation=3,
    region="WR_laGtqWv",
    updated_at="2026-01-01T00:00:00Z",
)
NOTHING = replace(RECORD, phrase="a giraffe", mask_rle=None, region=None)


@pytest.mark.parametrize(
    ("record", "corrected"),
    [
        pytest.param(RECORD, True, id="drawn by hand"),
        pytest.param(replace(RECORD, served_rle=mask_to_coco_rle(MASK)), False, id="accepted as it was"),
        pytest.param(replace(RECORD, served_rle=mask_to_coco_rle(OTHER)), True, id="edited"),
        pytest.param(replace(RECORD, served_rle=mask_to_coco_rle(MASK[:, :5])), True, id="other size"),
        pytest.param(NOTHING, False, id="nothing, and the model said so"),
        pytest.param(
            replace(NOTHING, served_rle=mask_to_coco_rle(MASK)), True, id="nothing, but the model saw one"
        ),
    ],
)
def test_corrected_tells_what_the_person_changed(record: RefRecord, corrected: bool) -> None:
    assert record.corrected is corrected


def test_records_come_back_from_disk(tmp_path: Path) -> None:
    several = (RecordObject("a", (2, 1, 5, 3), mask_to_coco_rle(MASK)), RecordObject("b", (0, 0, 1, 1)))
    records = [
        RECORD,
        replace(RECORD, objects=several),
        replace(NOTHING, served_rle=mask_to_coco_rle(MASK), served_version="v1"),
    ]
    write_records(tmp_path / "new" / "1.jsonl", records)
    assert read_records(tmp_path / "new" / "1.jsonl") == records
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["1.jsonl"]


def test_corrected_survives_the_disk(tmp_path: Path) -> None:
    write_records(tmp_path / "r.jsonl", [replace(RECORD, served_rle=mask_to_coco_rle(MASK))])
    assert read_records(tmp_path / "r.jsonl")[0].corrected is False


@pytest.mark.parametrize(
    "change",
    [
        pytest.param({"phrase": " "}, id="no phrase"),
        pytest.param({"mask_rle": {"counts": "1"}}, id="an RLE without size"),
        pytest.param({"image_hw": [6, 4]}, id="mask and image differ in size"),
        pytest.param({"image_hw": []}, id="no size"),
        pytest.param({"objects": [{"region": "a", "box_xyxy": [0, 0, 1]}]}, id="a box with three sides"),
        pytest.param({"objects": ["a"]}, id="an object without fields"),
        pytest.param({"phrase": None}, id="phrase is no text"),
    ],
)
def test_a_line_that_is_no_record_is_named(tmp_path: Path, change: dict[str, object]) -> None:
    path = tmp_path / "r.jsonl"
    lines = [RECORD.to_dict(), RECORD.to_dict() | change]
    path.write_text("\n".join(json.dumps(line) for line in lines))
    with pytest.raises(RecordFormatError, match=r"r\.jsonl, line 2"):
        read_records(path)


@pytest.mark.parametrize("line", ["{", "[]", '"text"', "{}"])
def test_broken_json_is_named(tmp_path: Path, line: str) -> None:
    (tmp_path / "r.jsonl").write_text(line + "\n")
    with pytest.raises(RecordFormatError, match="line 1"):
        read_records(tmp_path / "r.jsonl")


def test_unknown_fields_are_left_out() -> None:
    assert RefRecord.from_dict(RECORD.to_dict() | {"of a newer version": 1}) == RECORD


def test_sample_ids_tell_regions_and_phrases_apart() -> None:
    records = [RECORD, NOTHING, replace(NOTHING, phrase="a zebra"), replace(RECORD, region="b")]
    assert len({record.sample_id for record in records}) == 4
    assert replace(RECORD, updated_at="later", mask_rle=mask_to_coco_rle(OTHER)).sample_id == RECORD.sample_id


def test_the_digest_follows_what_can_be_learned_and_nothing_else() -> None:
    digest = records_digest([RECORD, NOTHING])
    assert digest == records_digest([NOTHING, RECORD])
    assert digest == records_digest([replace(RECORD, updated_at="later"), NOTHING])
    assert digest != records_digest([RECORD])
    assert digest != records_digest([replace(RECORD, mask_rle=mask_to_coco_rle(OTHER)), NOTHING])
    assert digest != records_digest([replace(RECORD, phrase="the cup"), NOTHING])
