"""Certainties of answers beside the truth."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from finetune.cli.commands import app
from finetune.data.dataset import open_dataset
from finetune.evaluation.calibration import (
    LEAST_ANSWERS,
    Bin,
    CalibrationError,
    Judged,
    calibrated,
    expected_calibration_error,
    judge,
    reliability,
    with_notes,
)
from sspsam import Predictor
from sspsam.checkpoints.bundles import packaged_weights
from sspsam.checkpoints.notes import NO_NOTES, read_notes


def answers(count: int, is_empty: bool = False) -> list[Judged]:
    """Answers whose IoU is on average the square of their raw certainty, and that say the raw one."""
    rng = np.random.default_rng(count)
    raw = rng.uniform(0, 1, count)
    iou = np.clip(raw**2 + rng.normal(0, 0.05, count), 0, 1)
    return [Judged(own, true, is_empty, own) for own, true in zip(raw.tolist(), iou.tolist(), strict=True)]


def test_the_error_is_the_mean_difference_of_certainty_and_iou() -> None:
    sure = [Judged(0.9, 0.5, False, 0.9)] * 3
    unsure = [Judged(0.1, 0.3, False, 0.1)]
    assert reliability(sure + unsure) == [
        Bin(1, pytest.approx(0.1), pytest.approx(0.3)),
        Bin(3, pytest.approx(0.9), pytest.approx(0.5)),
    ]
    assert expected_calibration_error(sure + unsure) == pytest.approx((3 * 0.4 + 0.2) / 4)
    assert expected_calibration_error([Judged(1.0, 1.0, False, 1.0), Judged(0.0, 0.0, True, 0.0)]) == 0
    assert expected_calibration_error([]) == 0


def test_a_calibration_makes_other_answers_honest() -> None:
    notes = calibrated(NO_NOTES, answers(2000) + answers(1999, is_empty=True))
    for is_empty in (False, True):
        others = answers(3000, is_empty)
        assert expected_calibration_error(others) > 0.1
        assert expected_calibration_error(with_notes(others, notes)) < 0.02


def test_a_kind_with_few_answers_stays_as_it_is() -> None:
    few = answers(LEAST_ANSWERS - 1, is_empty=True)
    notes = calibrated(NO_NOTES, answers(500) + few)
    assert notes.certainty_of_mask is not None
    assert notes.certainty_of_nothing is None
    assert with_notes(few, notes) == few
    earlier = calibrated(NO_NOTES, answers(500, is_empty=True))
    again = calibrated(earlier, answers(500) + few)
    assert again.certainty_of_mask == notes.certainty_of_mask
    assert again.certainty_of_nothing == earlier.certainty_of_nothing is not None


def test_answers_are_judged_as_they_are_served() -> None:
    predictor = Predictor.from_preset("ssp-sam-demo", "cpu")
    samples = open_dataset("stickers/val?count=2&phrases=4&families=noun,none&nouns=core")
    judged = judge(predictor, samples)
    assert len(judged) == len(samples)
    for number, answer in enumerate(judged):
        sample = samples[number]
        [served] = predictor.predict(predictor.embed(sample.image), [sample.phrase], image=sample.image)
        union = np.count_nonzero(served.mask | sample.mask)
        assert answer.iou == (np.count_nonzero(served.mask & sample.mask) / union if union else 1.0)
        assert answer.certainty == served.certainty
        assert 0 <= answer.raw <= 1


def test_a_model_without_a_presence_head_is_refused() -> None:
    with pytest.raises(CalibrationError, match="ssp-sam-test has no presence head"):
        judge(Predictor.from_preset("ssp-sam-test", "cpu"), open_dataset("stickers/val?count=1&phrases=1"))


@pytest.mark.slow
def test_the_command_adds_the_calibration_to_the_notes(tmp_path: Path) -> None:
    packaged = packaged_weights("ssp-sam-demo")
    assert packaged is not None
    weights = Path(shutil.copy(packaged, tmp_path))
    shutil.copy(packaged.with_suffix(".json"), tmp_path)
    data = "stickers/train?count=16&phrases=8&nouns=core&seed=9&families=noun,place&size=320x320"
    result = CliRunner().invoke(app, ["calibrate", "--weights", str(weights), "--dataset", data])
    assert result.exit_code == 0, result.output
    assert "Expected calibration error of the second half: " in result.output
    notes, before = read_notes(weights), read_notes(packaged)
    assert (notes.names, notes.words) == (before.names, before.words)
    assert notes.certainty_of_mask is not None
    few = CliRunner().invoke(
        app, ["calibrate", "--weights", str(weights), "--dataset", "stickers/train?count=1"]
    )
    assert few.exit_code != 0
    assert "too few answers, expected 80 or more" in few.output.replace("\n", " ").replace("│", "")
