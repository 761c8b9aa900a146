"""Reports: they can be read back, and comparisons state their confidence."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from finetune.evaluation.evaluate import EvaluationResult, SampleResult
from finetune.evaluation.report import (
    ComparisonError,
    bootstrap_interval,
    compare,
    comparison_to_markdown,
    difference_in_words,
    evaluation_to_markdown,
    percent,
    write_evaluation,
)
from finetune.metrics import SegmentationMetrics
from tests.facts import untold


def evaluation(ious: dict[str, float], images: dict[str, str] | None = None) -> EvaluationResult:
    """An evaluation with these IoUs; sample "a/1" is on image "a" unless said otherwise."""
    metrics = SegmentationMetrics(
        samples=len(ious), samples_with_target=len(ious), iou_sum=sum(ious.values())
    )
    per_sample = [
        SampleResult(name, (images or {}).get(name, name.split("/")[0]), iou) for name, iou in ious.items()
    ]
    return EvaluationResult(
        overall=metrics.compute(),
        by_family={"noun": metrics.compute()},
        counts={"samples": len(ious), "images": len({one.image_id for one in per_sample}), "no target": 0},
        family_samples={"noun": len(ious)},
        baselines={"nothing": SegmentationMetrics().compute()},
        family_baselines={"noun": {"all stickers": metrics.compute()}},
        per_sample=per_sample,
        timings_ms={"embed image": 30.04},
        refused={"a/9": "too long"},
    )


def test_a_written_evaluation_reads_back(tmp_path: Path) -> None:
    result = evaluation({"a/1": 0.5, "a/2": 1.0, "b/1": 0.0})
    write_evaluation(tmp_path / "new" / "folder", result, {"data set": "stickers/val"})
    written = json.loads((tmp_path / "new" / "folder" / "evaluation.json").read_text())
    assert written.pop("about") == {"data set": "stickers/val"}
    assert EvaluationResult.from_dict(written) == result


def rows_of(markdown: str) -> dict[str, list[str]]:
    """First cell -> other cells, of all tables' rows; each row has as many cells as its header."""
    rows: dict[str, list[str]] = {}
    for block in markdown.split("\n\n"):
        table = [line.strip("|").split("|") for line in block.splitlines() if line.startswith("|")]
        assert len({len(cells) for cells in table}) <= 1
        rows |= {cells[0].strip(): [cell.strip() for cell in cells[1:]] for cells in table}
    return rows


def test_markdown_has_figures_in_percent_and_every_part() -> None:
    text = evaluation_to_markdown(evaluation({"a/1": 0.5, "b/1": 1.0}), {"model": "ssp-sam-test-base"})
    rows = rows_of(text)
    assert untold(text, "model: ssp-sam-test-base", "2 phrases", "2 images", "a/9: too long") == []
    assert rows["mIoU"] == ["75.0"]
    assert rows["phrases"][-3:] == ["T-acc", "all stickers", "nothing"]
    assert rows["noun"][:2] == rows["all"][:2] == ["2", "75.0"]
    assert rows["noun"][-2:] == ["75.0", "–"]
    assert rows["all"][-2:] == ["–", "–"]
    assert rows["embed image"] == ["30.0"]


def test_a_baseline_that_a_data_set_does_not_have_is_no_column() -> None:
    text = evaluation_to_markdown(replace(evaluation({"a/1": 0.5}), family_baselines={}), {})
    assert rows_of(text)["phrases"][-2:] == ["T-acc", "nothing"]
    assert "all stickers" not in text


def test_comparison_counts_and_measures_the_difference() -> None:
    before = evaluation({"a/1": 0.2, "a/2": 0.5, "b/1": 0.9, "c/1": 0.4})
    after = evaluation({"c/1": 0.4, "a/1": 0.8, "a/2": 0.6, "b/1": 0.7})
    comparison = compare(before, after)
    assert comparison.difference == pytest.approx((0.6 + 0.1 - 0.2 + 0) / 4)
    assert (comparison.better, comparison.worse, comparison.same) == (2, 1, 1)
    assert (comparison.samples, comparison.images) == (4, 3)
    assert comparison.interval is not None
    low, high = comparison.interval
    assert low < comparison.difference < high
    assert json.loads(json.dumps(comparison.to_dict()))["better"] == 2


@pytest.mark.parametrize("after", [{"a/1": 1.0}, {"a/1": 1.0, "b/2": 1.0}])
def test_different_samples_are_not_compared(after: dict[str, float]) -> None:
    with pytest.raises(ComparisonError, match="1 of them the same"):
        compare(evaluation({"a/1": 0.5, "b/1": 0.5}), evaluation(after))


def test_nothing_is_not_compared_with_nothing() -> None:
    with pytest.raises(ComparisonError, match="0 samples"):
        compare(evaluation({}), evaluation({}))


def test_a_gain_everywhere_is_sure_and_noise_is_not() -> None:
    images = [str(number) for number in range(30)]
    gain = bootstrap_interval([0.1] * 30, images)
    assert gain == pytest.approx((0.1, 0.1))
    noise = bootstrap_interval(np.random.default_rng(0).normal(0, 0.3, 30), images)
    assert noise is not None
    assert noise[0] < 0 < noise[1]


def test_phrases_of_one_image_are_one_piece_of_evidence() -> None:
    changes = [0.3, 0.3, 0.3, 0.3, -0.1, -0.1, -0.1, -0.1]
    apart = bootstrap_interval(changes, list("abcdefgh"))
    together = bootstrap_interval(changes, list("aaaabbbb"))
    assert apart is not None
    assert together is not None
    assert together[1] - together[0] > apart[1] - apart[0]


def test_the_interval_covers_the_truth_about_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    images = [str(number) for number in range(40)]
    covered = 0
    for _ in range(60):
        interval = bootstrap_interval(rng.normal(0.05, 0.2, 40), images)
        assert interval is not None
        covered += interval[0] <= 0.05 <= interval[1]
    assert covered >= 60 * 0.85


def test_one_image_says_nothing_about_others() -> None:
    assert bootstrap_interval([0.5, 0.5], ["a", "a"]) is None
    words = difference_in_words(compare(evaluation({"a/1": 0.0}), evaluation({"a/1": 0.5})))
    told = ("mIoU", "0.0 %", "50.0 %", "+50.0", "1 phrases", "1 images", "1 better", "0 worse", "0 unchanged")
    assert untold(words, *told) == []
    assert "interval" not in words


def test_comparison_in_markdown_names_both_and_shows_changes() -> None:
    comparison = compare(evaluation({"a/1": 0.25, "b/1": 0.25}), evaluation({"a/1": 0.5, "b/1": 0.5}))
    text = comparison_to_markdown(comparison, "v1", "v2")
    rows = rows_of(text)
    assert rows["figure, %"][:2] == ["v1", "v2"]
    assert rows["mIoU"] == ["25.0", "50.0", "+25.0"]
    assert rows["N-acc"] == ["–", "–", "–"]
    assert untold(text, "90 % interval", "+25.0 to +25.0") == []


def test_percent() -> None:
    assert [percent(0.12345), percent(1.0), percent(None)] == ["12.3", "100.0", "–"]
