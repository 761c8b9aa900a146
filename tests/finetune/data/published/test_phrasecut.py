"""PhraseCut in its published file format."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from finetune.data.dataset import open_dataset
from finetune.data.sample import DatasetFileError
from tests.finetune.published import HEIGHT, LEFT, RIGHT, WIDTH, write_pictures


def phrasecut_task(number: str, phrase: str, polygons: list[Any], kind: str = "name") -> dict[str, Any]:
    return {
        "task_id": number, "image_id": 2405812, "ann_ids": [1], "phrase": phrase, "Polygons": polygons,
        "instance_boxes": [[2, 4, 12, 10]] * len(polygons),
        "phrase_structure": {"name": "dog", "attributes": [], "relation_descriptions": [], "type": kind},
    }  # fmt: skip


def corners(top: int, left: int, bottom: int, right: int) -> list[list[float]]:
    """A rectangle whose outline belongs to it, as PhraseCut draws polygons."""
    return [[left + 0.7, top], [right, top], [right, bottom], [left, bottom + 0.4]]


@pytest.fixture
def phrasecut(tmp_path: Path) -> Path:
    folder = tmp_path / "VGPhraseCut_v0"
    write_pictures(folder / "images", ["2405812.jpg"])
    two = [[corners(4, 2, 13, 13)], [corners(20, 30, 29, 49), [[1.0, 1.0]]]]
    tasks = [phrasecut_task("a", "dog", two[:1]), phrasecut_task("b", " two dogs", two, "attribute")]
    (folder / "refer_test.json").write_text(json.dumps(tasks))
    (folder / "refer_val.json").write_text(json.dumps(tasks[:1]))
    (folder / "refer_miniv.json").write_text(json.dumps(tasks[1:]))
    return tmp_path


def test_phrasecut_polygons_of_instances_are_one_mask(phrasecut: Path) -> None:
    dataset = open_dataset(f"phrasecut/test?root={phrasecut}")
    np.testing.assert_array_equal(dataset[0].mask, LEFT)
    np.testing.assert_array_equal(dataset[1].mask, LEFT | RIGHT)
    assert (dataset[1].phrase, dataset[1].family) == ("two dogs", "attribute")
    assert dataset[0].sample_id == "phrasecut/test/a"
    assert dataset[0].image.shape == (HEIGHT, WIDTH, 3)


def test_phrasecut_validation_is_in_two_files(phrasecut: Path) -> None:
    sizes = [len(open_dataset(f"phrasecut/{split}?root={phrasecut}")) for split in ("val", "val_miniv")]
    assert sizes == [1, 2]


def test_what_is_wrong_with_phrasecut_is_said(phrasecut: Path) -> None:
    path = phrasecut / "VGPhraseCut_v0/refer_test.json"
    with pytest.raises(DatasetFileError, match=r"PhraseCut train is missing.*download_dataset\.py -s train"):
        open_dataset(f"phrasecut/train?root={phrasecut}")
    path.write_text(json.dumps([phrasecut_task("a", "dog", [[]])]))
    with pytest.raises(DatasetFileError, match=r"refer_test\.json, task a: .*it has no polygon"):
        open_dataset(f"phrasecut/test?root={phrasecut}")
    path.write_text(json.dumps([{"task_id": "a"}]))
    with pytest.raises(DatasetFileError, match="task a: KeyError"):
        open_dataset(f"phrasecut/test?root={phrasecut}")
