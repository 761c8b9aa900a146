"""gRefCOCO in its published file format: phrases with one, several and no targets."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from finetune.data.dataset import open_dataset
from finetune.data.sample import DatasetFileError
from tests.finetune.published import (
    COCO_NAMES,
    FIRST,
    HEIGHT,
    LEFT,
    RIGHT,
    RING,
    SECOND,
    WIDTH,
    annotation,
    polygon,
    rectangle,
    ref,
    uncompressed,
    write_instances,
)


@pytest.fixture
def grefcoco(root: Path) -> Path:
    """GRefCOCO beside it."""
    annotations = [
        annotation(1, FIRST, [polygon(4, 2, 10, 12)], [2, 4, 12, 10]),
        annotation(2, FIRST, [polygon(20, 30, 10, 20)], [30, 20, 20, 10]),
        annotation(3, FIRST, uncompressed(RING), [5, 5, 20, 20], crowd=1),
    ]
    write_instances(root / "grefcoco", annotations, COCO_NAMES)
    refs = [
        ref(0, FIRST, [1], ["one"], "testB"),
        ref(1, FIRST, [1, 2], ["both", "the two"], "testB"),
        ref(2, FIRST, [-1], ["nobody"], "testB") | {"no_target": True},
        ref(3, FIRST, [1, 3], ["one and a crowd"], "testB"),
        ref(4, FIRST, [3], ["a crowd"], "testB"),
        ref(5, SECOND, [-1], ["nothing here"], "val"),
    ]
    (root / "grefcoco/grefs(unc).json").write_text(json.dumps(refs))
    return root


def test_one_several_and_no_targets(grefcoco: Path) -> None:
    dataset = open_dataset("grefcoco/testB")
    by_phrase = {dataset[i].phrase: dataset[i] for i in range(len(dataset))}
    expected = {
        "one": LEFT, "both": LEFT | RIGHT, "the two": LEFT | RIGHT, "nobody": rectangle(0, 0, 0, 0),
        "one and a crowd": LEFT, "a crowd": RING,
    }  # fmt: skip
    assert by_phrase.keys() == expected.keys()
    for phrase, mask in expected.items():
        np.testing.assert_array_equal(by_phrase[phrase].mask, mask, err_msg=phrase)
        assert by_phrase[phrase].has_target == mask.any()
    assert by_phrase["both"].true_box_xyxy == (2.0, 4.0, 50.0, 30.0)
    assert by_phrase["nobody"].true_box_xyxy == (0.0, 0.0, 0.0, 0.0)


def test_a_picture_without_any_annotation_has_its_phrases(grefcoco: Path) -> None:
    [sample] = [open_dataset("grefcoco/val")[0]]
    assert not sample.has_target
    assert sample.mask.shape == (HEIGHT, WIDTH)


@pytest.mark.parametrize(
    ("refs", "message"),
    [
        ("[{", "is damaged or not JSON"),
        ('[{"ref_id": 1}]', "expected references with ids"),
        (json.dumps([ref(0, FIRST, [77], ["dog"], "testB")]), "no annotation 77"),
        (json.dumps([ref(0, 12, [-1], ["dog"], "testB")]), "unknown image 12"),
        (json.dumps([ref(0, SECOND, [1], ["dog"], "testB")]), f"on image {FIRST}, expected {SECOND}"),
        ("[1]", "expected objects"),
    ],
)
def test_what_is_wrong_with_grefcoco_is_said(grefcoco: Path, refs: str, message: str) -> None:
    (grefcoco / "grefcoco/grefs(unc).json").write_text(refs)
    with pytest.raises(DatasetFileError, match=message):
        open_dataset("grefcoco/testB")


def test_grefcoco_missing_says_where_to_get_it(root: Path) -> None:
    with pytest.raises(DatasetFileError, match=r"gRefCOCO's .*grefs\(unc\)\.json.*henghuiding/gRefCOCO"):
        open_dataset("grefcoco/testB")
