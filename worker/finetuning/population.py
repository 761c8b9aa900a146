"""What the gate's mean stands for: all phrases that annotators asked in the projects of a line.

The labels of the held-out images are a sample of them, with two deviations:

- By chance: the few held-out images have other shares of accepted, corrected and unfound phrases than the
  project. So each of these strata counts by its share of the project's phrases (post-stratification).
- By selection: for a phrase without an answer ("nothing found"), there is a label only if an annotator drew
  or confirmed something. The failures of the version that was asked are missing more often than those of any
  other version. So both versions are asked the unanswered phrases as well, and the labels of the stratum for
  which the two found something, or nothing, alike stand for them. Where neither finds anything, nothing
  changes, whatever the truth is.

The second needs confirmed absences: without any, labels cannot tell an object that was found from an invented
one, and the unanswered phrases count for neither version.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.records import RefRecord
from finetune.evaluation.report import BOOTSTRAP_ROUNDS, BOOTSTRAP_SEED, interval_of

ACCEPTED, CORRECTED, ADDED, ABSENT, UNANSWERED = "accepted", "corrected", "added", "absent", "unanswered"
NOTHING_FOUND = (ADDED, ABSENT, UNANSWERED)
"""Kinds of phrases for which nothing was found: one stratum."""
STRATA = ((ACCEPTED,), (CORRECTED,), NOTHING_FOUND)
ENOUGH_IOU = 0.9
"""IoU from which on an answer agrees with a label, if edges are not compared: annotators accept masks with
errors of that size."""

Asked = Mapping[str, Mapping[str, int]]
"""Project -> kind of phrase -> number of phrases."""
Sums = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Phrase:
    """A phrase, asked of both versions."""

    project: str
    kind: str
    image_id: str
    before: float = 0.0
    """Score of the incumbent's answer, 0..1; ignored for an unanswered phrase, as is the next."""
    after: float = 0.0
    found: tuple[bool, bool] = (True, True)
    """Whether incumbent and candidate found something."""


@dataclass(frozen=True)
class Estimate:
    """Mean scores over all phrases asked, 0..1."""

    before: float
    after: float
    interval: tuple[float, float] | None
    """90 % confidence interval of after - before, by bootstrap over images; None for one image."""
    asked: int
    """Number of phrases that the means stand for."""
    unanswered: int
    """Number of unanswered phrases that were asked of both versions."""


def kind_of(record: RefRecord) -> str:
    """Kind of a phrase by what the model had answered. A mask that the annotator deleted, confirming the
    phrase's absence, was corrected.
    """
    if record.is_unanswered:
        return UNANSWERED
    return CORRECTED if record.kind == ABSENT and record.served_rle is not None else record.kind


def count_asked(records: Iterable[RefRecord]) -> dict[str, dict[str, int]]:
    """Counts the phrases of projects."""
    counts: dict[str, Counter[str]] = {}
    for record in records:
        counts.setdefault(str(record.project), Counter())[kind_of(record)] += 1
    return {project: dict(sorted(kinds.items())) for project, kinds in sorted(counts.items())}


def agreement(iou: float, edges: bool) -> float:
    """Score of an answer with that IoU with its label, by whether edges are compared."""
    return iou if edges else min(1.0, iou / ENOUGH_IOU)


def estimate(phrases: Sequence[Phrase], asked: Asked) -> Estimate:
    """Estimates the mean scores of two versions over all phrases asked.

    Args:
        phrases: The phrases on the held-out images, at least one of them with a label.
        asked: All phrases of the projects, on either side of the split.
    """
    confirming = {phrase.project for phrase in phrases if phrase.kind == ABSENT}
    phrases = [it for it in phrases if it.kind != UNANSWERED or it.project in confirming]
    strata = [(project, kinds) for project in sorted({it.project for it in phrases}) for kinds in STRATA]
    shares = np.array(
        [_count(asked.get(project, {}), kinds, confirming, project) for project, kinds in strata]
    )
    images, image_of = np.unique([it.image_id for it in phrases], return_inverse=True)
    shape = len(images), len(strata), 4
    before, after, labels, all_phrases = np.zeros((4, *shape))  # (images, strata, answers)
    of_kind = {(project, kind): at for at, (project, kinds) in enumerate(strata) for kind in kinds}
    for image, phrase in zip(image_of, phrases, strict=True):
        at = image, of_kind[phrase.project, phrase.kind], 2 * phrase.found[0] + phrase.found[1]
        all_phrases[at] += 1
        if phrase.kind != UNANSWERED:
            labels[at] += 1
            before[at] += phrase.before
            after[at] += phrase.after

    def mean(scores: Sums, drawn: Sums) -> Sums:
        """Means over images that are drawn the given numbers of times, (R, images) -> (R,)."""
        score, label, phrase = (
            (drawn @ sums.reshape(len(images), -1)).reshape(-1, *shape[1:])
            for sums in (scores, labels, all_phrases)
        )  # (R, strata, answers)
        of_answer = score / np.maximum(label, 1)
        of_stratum = (phrase * of_answer).sum(2) / np.maximum(phrase.sum(2), 1)
        weights = shares * (phrase.sum(2) > 0)  # a stratum without a phrase is left out
        return np.asarray((weights * of_stratum).sum(1) / np.maximum(weights.sum(1), 1))

    once = np.ones((1, len(images)))
    return Estimate(
        before=float(mean(before, once)[0]),
        after=float(mean(after, once)[0]),
        interval=interval_of(mean(after - before, _resampled(len(images)))) if len(images) > 1 else None,
        asked=int(shares.sum()),
        unanswered=sum(it.kind == UNANSWERED for it in phrases),
    )


def _count(asked: Mapping[str, int], kinds: Sequence[str], confirming: set[str], project: str) -> int:
    return sum(asked.get(kind, 0) for kind in kinds if kind != UNANSWERED or project in confirming)


def _resampled(images: int) -> Sums:
    """How often each image is drawn, (BOOTSTRAP_ROUNDS, images). A fixed seed: the same answers always
    give the same verdict.
    """
    drawn: npt.NDArray[Any] = np.random.default_rng(BOOTSTRAP_SEED).multinomial(
        images, np.full(images, 1 / images), size=BOOTSTRAP_ROUNDS
    )
    return drawn.astype(np.float64)
