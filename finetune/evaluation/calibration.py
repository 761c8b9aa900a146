"""How certain answers are: fits the calibration in the notes of weights, and measures how honest it is."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from finetune.data.sample import Dataset, samples_by_image
from sspsam import Predictor
from sspsam.checkpoints.notes import Calibration, WeightsNotes, fit_calibration, raw_certainty
from sspsam.results import Question

KNOTS = 16
"""Of a calibration, with at least ANSWERS_PER_KNOT each."""
ANSWERS_PER_KNOT = 10
LEAST_ANSWERS = 40
"""Of each kind, without which its calibration is left out."""
BINS = 10


class CalibrationError(ValueError):
    """The model's answers have no certainty to calibrate."""


class Judged(NamedTuple):
    """An answer beside the truth."""

    raw: float
    """`sspsam.checkpoints.notes.raw_certainty` of the first look."""
    iou: float
    """Of the answer after all looks, 0..1; 1 for an empty answer to a phrase without a target."""
    is_empty: bool
    certainty: float
    """`Referent.certainty`: with the notes that the predictor has."""


class Bin(NamedTuple):
    """Answers of about the same certainty: a point of a reliability diagram."""

    answers: int
    certainty: float
    """Mean."""
    iou: float
    """Mean."""


def judge(
    predictor: Predictor, dataset: Dataset, progress: Callable[[int, int], None] | None = None
) -> list[Judged]:
    """Answers every phrase of a data set as the service does, with further looks.

    Args:
        predictor: A model with a presence head.
        dataset: Phrases with their true masks.
        progress: Called with (phrases judged, phrases in the data set).

    Raises:
        CalibrationError: the model has no presence head.
    """
    judged: list[Judged] = []
    for samples in samples_by_image(dataset):
        embedding = predictor.embed(samples[0].image)
        for sample in samples:
            [decoded] = predictor.decode([Question(embedding, sample.phrase)])
            if decoded.presence is None:
                raise CalibrationError(
                    f"{predictor.preset} has no presence head, without which nothing is calibrated"
                )
            first = predictor.finish(decoded)
            [answer] = predictor.predict(embedding, [sample.phrase], image=sample.image)
            union = np.count_nonzero(answer.mask | sample.mask)
            iou = np.count_nonzero(answer.mask & sample.mask) / union if union else 1.0
            raw = raw_certainty(decoded.presence, first.score, first.stability, first.no_target)
            judged.append(Judged(raw, float(iou), first.no_target, answer.certainty))
        if progress is not None:
            progress(len(judged), len(dataset))
    return judged


def calibrated(notes: WeightsNotes, judged: Sequence[Judged]) -> WeightsNotes:
    """The notes with calibrations fitted to answers; a kind with fewer than LEAST_ANSWERS keeps its own."""
    of_mask = _fit([answer for answer in judged if not answer.is_empty])
    of_nothing = _fit([answer for answer in judged if answer.is_empty])
    return replace(
        notes,
        certainty_of_mask=of_mask or notes.certainty_of_mask,
        certainty_of_nothing=of_nothing or notes.certainty_of_nothing,
    )


def with_notes(judged: Sequence[Judged], notes: WeightsNotes) -> list[Judged]:
    """The same answers with the certainties that other notes give; those of kinds that they lack stay."""
    found = []
    for answer in judged:
        calibration = notes.certainty_of_nothing if answer.is_empty else notes.certainty_of_mask
        found.append(answer if calibration is None else answer._replace(certainty=calibration(answer.raw)))
    return found


def reliability(judged: Sequence[Judged], bins: int = BINS) -> list[Bin]:
    """Mean IoU by certainty, in bins of equal width; bins without answers are left out."""
    places = np.minimum((np.array([answer.certainty for answer in judged]) * bins).astype(int), bins - 1)
    found = []
    for place in range(bins):
        inside = [answer for answer, own in zip(judged, places, strict=True) if own == place]
        if inside:
            certainty = float(np.mean([answer.certainty for answer in inside]))
            found.append(Bin(len(inside), certainty, float(np.mean([answer.iou for answer in inside]))))
    return found


def expected_calibration_error(judged: Sequence[Judged], bins: int = BINS) -> float:
    """Mean difference of certainty and IoU over the bins, weighted by their answers, 0..1.

    Source: Naeini et al., Obtaining Well Calibrated Probabilities Using Bayesian Binning (AAAI 2015), with
    the IoU in place of the accuracy.
    """
    found = reliability(judged, bins)
    return sum(one.answers * abs(one.certainty - one.iou) for one in found) / max(1, len(judged))


def _fit(judged: Sequence[Judged]) -> Calibration | None:
    if len(judged) < LEAST_ANSWERS:
        return None
    knots = min(KNOTS, len(judged) // ANSWERS_PER_KNOT)
    return fit_calibration([answer.raw for answer in judged], [answer.iou for answer in judged], knots)
