"""`sspsam reproduce`: the paper's tables for the data sets that are there, "not run" for all others."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from finetune.cli.reproduction import _by_data_set
from finetune.evaluation import reproduction
from finetune.evaluation.report import EVALUATION_JSON
from finetune.evaluation.reproduction import SPLITS, find_split, rows_of, tables
from sspsam.checkpoints.load import write_tensors
from sspsam.cli import main
from tests.finetune.published import (
    FIRST,
    annotation,
    coco_name,
    polygon,
    ref,
    write_instances,
    write_pictures,
    write_refs,
)
from tests.sspsam.published_files import PRESET, golden_bundle


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """RefCOCO's val with one phrase; no other split and no other data set."""
    root = tmp_path / "data"
    write_pictures(root / "images/mscoco/images/train2014", [coco_name(FIRST)])
    box = [2.0, 4.0, 12.0, 10.0]
    write_instances(
        root / "refcoco", [annotation(7, FIRST, [polygon(4, 2, 10, 12)], box)], {FIRST: coco_name(FIRST)}
    )
    write_refs(root / "refcoco" / "refs(unc).p", [ref(1, FIRST, 7, ["the dog"], "val")])
    return root


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "bundle.safetensors"
    write_tensors(path, golden_bundle(), {"preset": PRESET})
    return path


def reproduce(data: Path, out: Path, *arguments: str) -> str:
    with pytest.raises(SystemExit) as ended:
        main(["reproduce", "--data", str(data), "--out", str(out), "--device", "cpu", *arguments])
    assert ended.value.code == 0
    return (out / "tables.md").read_text()


def line_of(text: str, spec: str) -> list[str]:
    (line,) = [line for line in text.splitlines() if line.startswith(f"| {spec} |")]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.slow
def test_a_split_that_is_there_is_evaluated_once(
    data: Path, weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    text = reproduce(data, out, "--weights", f"refcoco={weights}")
    found = line_of(text, "refcoco/val")
    assert found[0::2] == ["–"] * 5
    assert all(0 <= float(cell) <= 100 for cell in found[1::2])
    assert set(line_of(text, "refcoco/testA")[1::2]) == {"not run"}
    assert "- refcoco/testA: the file of phrases in" in text
    assert "- grefcoco/val: " in text
    assert "henghuiding/gRefCOCO" in text
    monkeypatch.setattr("finetune.cli.reproduction._evaluate", None)  # is not called again
    assert line_of(reproduce(data, out, "--weights", str(weights)), "refcoco/val") == found
    without = reproduce(data, out)
    assert set(line_of(without, "refcoco/val")[1::2]) == {"not run"}
    assert "- refcoco/val: no weights: name a bundle with --weights refcoco=FILE" in without


@pytest.mark.slow
def test_results_of_other_weights_do_not_count(data: Path, weights: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    reproduce(data, out, "--weights", str(weights))
    (row, *_) = rows_of(out, {"refcoco": "0" * 64}, {})
    assert row.figures is None


@pytest.mark.slow
def test_an_evaluation_names_the_file_of_its_weights(data: Path, weights: Path, tmp_path: Path) -> None:
    asked = ["--dataset", f"refcoco/val?root={data}", "--preset", PRESET, "--weights", str(weights)]
    with pytest.raises(SystemExit) as ended:
        main(["evaluate", *asked, "--device", "cpu", "--out", str(tmp_path / "out")])
    assert ended.value.code == 0
    about = json.loads((tmp_path / "out" / EVALUATION_JSON).read_text())["about"]
    assert (about["model"], about["weights"]) == (PRESET, str(weights))


def test_wrong_arguments(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in ("refcocos=README.md", "none.safetensors"):
        with pytest.raises(SystemExit) as ended:
            main(["reproduce", "--data", str(data), "--weights", wrong, "--out", str(tmp_path)])
        assert ended.value.code == 2


def test_weights_may_lie_at_any_path(tmp_path: Path) -> None:
    own, other = (tmp_path / name / "w.safetensors" for name in ("lr=1", "lr=2"))
    for path in (own, other):
        path.parent.mkdir()
        path.touch()
    assert _by_data_set([f"refcoco={own}", str(other)], ["refcoco", "grefcoco"]) == {
        "refcoco": own,
        "grefcoco": other,
    }


@pytest.mark.parametrize("name", ["R&D", "50%25", "a + b", "x=y#z"])
def test_data_may_lie_at_any_path(data: Path, name: str) -> None:
    found = find_split("refcoco", "val", data.rename(data.parent / name))
    assert not isinstance(found, str), found
    assert len(found) == 1


def test_every_row_says_not_run_until_it_was_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = tables(rows_of(tmp_path, {}, {}))
    for name, splits in SPLITS.items():
        for split in splits:
            assert set(line_of(text, f"{name}/{split}")) == {"–", "not run"}
    assert "arXiv 2603.18086" in text
    monkeypatch.setattr(reproduction, "AUTHORS_FIGURES", {("refcoco", "val", "mIoU"): 12.5})
    assert line_of(tables(rows_of(tmp_path, {}, {})), "refcoco/val")[:2] == ["12.50", "not run"]
