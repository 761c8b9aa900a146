"""Simulated models and annotators: masks with errors of known kinds, and labels made by repairing them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np

from finetune.data.records import RefRecord
from finetune.data.sample import Sample
from finetune.evaluation.edge_bands import edge_band
from finetune.evaluation.report import bootstrap_interval
from finetune.metrics import SegmentationMetrics
from sspsam import coco_rle_to_mask, mask_to_coco_rle
from sspsam.images.masks import BoolMask
from worker.finetuning.measuring import drawn_edges
from worker.finetuning.policy import Measurement, Verdict, compares_edges, judge
from worker.finetuning.population import Asked, Phrase, agreement, count_asked, estimate, kind_of

NOISE_WIDTH_PX = 6.0
"""Correlation length of an edge's error."""
ANNOTATOR_SEED = 41
LOST_IOU = 0.3
"""An annotator redraws a mask below this IoU, and repairs the others."""


@dataclass(frozen=True)
class SimulatedModel:
    """Answers with the true mask and errors that depend on model and sample alone.

    Every mask has an inaccurate edge; some have a gross error. Probabilities are 0..1.
    """

    seed: int
    nothing: float = 0.1
    """Probability of an empty answer."""
    elsewhere: float = 0.1
    """Probability of a mask in another place."""
    part: float = 0.3
    """Probability of a missing or a surplus part."""
    edge_px: float = 1.5
    """Standard deviation of the edge's displacement."""
    invented: float = 0.1
    """Probability of a mask for a phrase without a target."""

    def answer(self, sample: Sample) -> BoolMask:
        """The mask (H, W) for a sample."""
        rng = _random(self.seed, sample)
        truth = sample.mask
        if not truth.any():
            return _invented(truth, rng) if rng.random() < self.invented else np.zeros_like(truth)
        mask, kind = _with_moved_edge(truth, self.edge_px, rng), rng.random()
        if kind < self.nothing:
            return np.zeros_like(truth)
        if kind < self.nothing + self.elsewhere:
            return np.asarray(np.roll(mask, [side // 3 for side in truth.shape], (0, 1)), np.bool_)
        if kind < self.nothing + self.elsewhere + self.part:
            return _with_part(mask, truth, rng)
        return mask


@dataclass(frozen=True)
class Annotators:
    """What annotators do with answers."""

    tolerance_px: float = 4.0
    """Errors no further than this from the true edge are not repaired."""
    drawn: float = 1.0
    """Share of the phrases with nothing found falsely that they draw, 0..1. The others stay unanswered."""
    confirmed: float = 1.0
    """Share of the phrases without a target that they confirm, 0..1."""

    def label(self, sample: Sample, proposal: BoolMask) -> RefRecord | None:
        """The record of a sample with that proposal; None if it is deleted without another answer."""
        answers = _random(ANNOTATOR_SEED, sample).random() < (
            self.drawn if sample.has_target else self.confirmed
        )
        if sample.has_target and proposal.any():
            mask = repaired(proposal, sample.mask, self.tolerance_px)
            return _record(sample, mask, proposal) if mask.any() else None
        if proposal.any() and not answers:
            return None
        record = _record(sample, sample.mask if answers else np.zeros_like(sample.mask), proposal)
        return replace(record, confirmed=answers)


def repaired(proposal: BoolMask, truth: BoolMask, tolerance_px: float) -> BoolMask:
    """The label of an annotator who accepts small errors of a proposal and repairs the others with a brush.

    Args:
        proposal: (H, W), as shown.
        truth: (H, W), what the annotator sees in the image.
        tolerance_px: Errors no further than this from the true edge stay.
    """
    if (proposal & truth).sum() < LOST_IOU * (proposal | truth).sum():
        return truth
    distance = cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5)
    distance += cv2.distanceTransform((~truth).astype(np.uint8), cv2.DIST_L2, 5)
    gross = (proposal != truth) & (distance > tolerance_px)
    if not gross.any():
        return proposal
    brush = cv2.distanceTransform((~gross).astype(np.uint8), cv2.DIST_L2, 5) <= tolerance_px + 1
    return np.where(brush, truth, proposal)


def _with_moved_edge(mask: BoolMask, sd_px: float, rng: np.random.Generator) -> BoolMask:
    signed = cv2.distanceTransform(mask.astype(np.uint8), cv2.DIST_L2, 5)
    signed -= cv2.distanceTransform((~mask).astype(np.uint8), cv2.DIST_L2, 5)
    noise = cv2.GaussianBlur(rng.standard_normal(mask.shape, np.float32), (0, 0), NOISE_WIDTH_PX)
    return np.asarray(signed + noise * (sd_px / noise.std()) > 0, np.bool_)


def _with_part(mask: BoolMask, truth: BoolMask, rng: np.random.Generator) -> BoolMask:
    """Removes or adds a disc at a point of the edge."""
    edge = np.argwhere(truth & (cv2.distanceTransform(truth.astype(np.uint8), cv2.DIST_L2, 5) <= 1))
    y, x = edge[rng.integers(len(edge))]
    radius = float(np.sqrt(truth.sum())) * rng.uniform(0.2, 0.5)
    disc = _disc(mask, y, x, radius)
    return np.asarray(mask | disc if rng.random() < 0.5 else mask & ~disc, np.bool_)


def _invented(truth: BoolMask, rng: np.random.Generator) -> BoolMask:
    """A disc anywhere."""
    height, width = truth.shape
    radius = rng.uniform(0.08, 0.17) * min(height, width)
    return _disc(truth, rng.uniform(0.3, 0.7) * height, rng.uniform(0.3, 0.7) * width, radius)


def _disc(like: BoolMask, y: float, x: float, radius: float) -> BoolMask:
    rows, columns = np.ogrid[: like.shape[0], : like.shape[1]]
    return np.asarray((rows - y) ** 2 + (columns - x) ** 2 <= radius**2, np.bool_)


def _random(seed: int, sample: Sample) -> np.random.Generator:
    return np.random.default_rng((seed, zlib.crc32(sample.sample_id.encode())))


@dataclass(frozen=True)
class Rule:
    """Which labels are compared, and how."""

    name: str
    accepted: bool = True
    """Whether accepted masks are compared too, not only corrected ones."""
    edges: bool | None = None
    """Whether edges are compared; None: by the gate's rule."""
    asked: bool = False
    """Whether the labels stand for all phrases asked, or for themselves."""


RULES = (
    Rule("corrected masks, with edges", accepted=False, edges=True),
    Rule("all labels, with edges", edges=True),
    Rule("corrected masks, without edges", accepted=False, edges=False),
    Rule("all labels, without edges"),
    Rule("the gate's", asked=True),
)
"""The first was the gate's rule in release 0.2; the next two change one half of it each."""


@dataclass(frozen=True)
class Compared:
    """A comparison of two models on labels that repair the first one's masks."""

    measured: float
    """Difference of gIoU by the rule, -1..1."""
    true: float
    """The same on the true masks of all samples."""
    verdict: Verdict

    @property
    def bias(self) -> float:
        return self.measured - self.true


@dataclass(frozen=True)
class _Labelled:
    """A sample with what an annotator made of the first model's answer."""

    record: RefRecord
    answers: tuple[BoolMask, BoolMask]


def compare_models(
    samples: Sequence[Sample],
    shown: SimulatedModel,
    other: SimulatedModel,
    annotators: Annotators,
    held_out: float = 1.0,
) -> dict[str, Compared]:
    """Compares a model whose masks annotators repaired with another one.

    Args:
        samples: All phrases of a project.
        shown: The model that was asked.
        other: The other one.
        annotators: Who repaired its masks.
        held_out: Share of the images, the first ones, whose labels are compared.

    Returns:
        Rule -> its comparison.
    """
    answers = [(shown.answer(sample), other.answer(sample)) for sample in samples]
    true = np.mean([_iou(b, it.mask) - _iou(a, it.mask) for it, (a, b) in zip(samples, answers, strict=True)])
    labelled = [
        _Labelled(record, pair)
        for sample, pair in zip(samples, answers, strict=True)
        if (record := annotators.label(sample, pair[0])) is not None
    ]
    images = list(dict.fromkeys(sample.image_id for sample in samples))
    compared_images = set(images[: round(held_out * len(images))])
    some = [it for it in labelled if it.record.image_sha256 in compared_images]
    asked = count_asked(it.record for it in labelled)
    return {rule.name: _compare(rule, some, asked, float(true)) for rule in RULES}


def _compare(rule: Rule, labelled: Sequence[_Labelled], asked: Asked, true: float) -> Compared:
    labels = [it for it in labelled if not it.record.is_unanswered]
    labels = [it for it in labels if rule.accepted or it.record.corrected]
    drawn = drawn_edges(it.record for it in labels) if rule.edges is None else float(rule.edges)
    edges = compares_edges(drawn)
    phrases = [_phrase(it, edges, rule) for it in (labelled if rule.asked else labels)]
    images = [phrase.image_id for phrase in phrases]
    if rule.asked:
        found = estimate(phrases, asked)
        before, after, interval = found.before, found.after, found.interval
    else:
        before, after = (
            float(np.mean([getattr(it, side) for it in phrases])) for side in ("before", "after")
        )
        interval = bootstrap_interval([phrase.after - phrase.before for phrase in phrases], images)
    measurement = Measurement(before, after, len(labels), len(set(images)), interval, drawn)
    return Compared(after - before, true, judge(measurement, None, tolerance=0.0))


def _phrase(labelled: _Labelled, edges: bool, rule: Rule) -> Phrase:
    record = labelled.record
    truth = (
        np.zeros(record.image_hw, np.bool_) if record.mask_rle is None else coco_rle_to_mask(record.mask_rle)
    )
    ignored = None if edges else edge_band(truth)
    before, after = (SegmentationMetrics().update(mask, truth, ignored) for mask in labelled.answers)
    if rule.asked:
        before, after = agreement(before, edges), agreement(after, edges)
    found = (bool(labelled.answers[0].any()), bool(labelled.answers[1].any()))
    return Phrase("1", kind_of(record), record.image_sha256, before, after, found)


def _record(sample: Sample, mask: BoolMask, proposal: BoolMask) -> RefRecord:
    image, _, region = sample.sample_id.rpartition("/")
    return RefRecord(
        image_sha256=sample.image_id,
        image_url=f"/data/upload/1/{image}.png",
        image_hw=(mask.shape[0], mask.shape[1]),
        phrase=sample.phrase,
        mask_rle=mask_to_coco_rle(mask) if mask.any() else None,
        project=1,
        task=1,
        annotation=1,
        region=f"{image}-{region}",
        updated_at="2026-01-01T00:00:00Z",
        served_rle=mask_to_coco_rle(proposal) if proposal.any() else None,
    )


def _iou(mask: BoolMask, truth: BoolMask) -> float:
    return SegmentationMetrics().update(mask, truth)
