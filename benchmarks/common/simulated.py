"""Simulated models and annotators: masks with errors of known kinds, and labels made by repairing them."""

from __future__ import annotations

import zlib
from collections.abc import Sequence
from dataclasses import dataclass

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
from worker.finetuning.policy import GATE_METRIC, Measurement, Verdict, compares_edges, judge

NOISE_WIDTH_PX = 6.0
"""Correlation length of an edge's error."""
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

    def answer(self, sample: Sample) -> BoolMask:
        """The mask (H, W) for a sample with a target."""
        rng = np.random.default_rng((self.seed, zlib.crc32(sample.sample_id.encode())))
        truth = sample.mask
        mask, kind = _with_moved_edge(truth, self.edge_px, rng), rng.random()
        if kind < self.nothing:
            return np.zeros_like(truth)
        if kind < self.nothing + self.elsewhere:
            return np.asarray(np.roll(mask, [side // 3 for side in truth.shape], (0, 1)), np.bool_)
        if kind < self.nothing + self.elsewhere + self.part:
            return _with_part(mask, truth, rng)
        return mask


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
    rows, columns = np.ogrid[: mask.shape[0], : mask.shape[1]]
    disc = (rows - y) ** 2 + (columns - x) ** 2 <= radius**2
    return np.asarray(mask | disc if rng.random() < 0.5 else mask & ~disc, np.bool_)


@dataclass(frozen=True)
class Rule:
    """Which labels are compared, and how."""

    name: str
    accepted: bool
    """Whether accepted masks are compared too, not only corrected ones."""
    edges: bool | None
    """Whether edges are compared; None: by the gate's rule."""


RULES = (
    Rule("corrected masks, with edges", accepted=False, edges=True),
    Rule("all masks, with edges", accepted=True, edges=True),
    Rule("corrected masks, without edges", accepted=False, edges=False),
    Rule("the gate's", accepted=True, edges=None),
)
"""The first was the gate's rule in release 0.2; the two between change one half of it each."""


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


def label(sample: Sample, proposal: BoolMask, tolerance_px: float) -> RefRecord | None:
    """The record of a sample that an annotator was shown a proposal for; None if no mask is left."""
    mask = repaired(proposal, sample.mask, tolerance_px)
    if not mask.any():
        return None
    image, _, region = sample.sample_id.rpartition("/")
    return RefRecord(
        image_sha256=sample.image_id,
        image_url=f"/data/upload/1/{image}.png",
        image_hw=(mask.shape[0], mask.shape[1]),
        phrase=sample.phrase,
        mask_rle=mask_to_coco_rle(mask),
        project=1,
        task=1,
        annotation=1,
        region=f"{image}-{region}",
        updated_at="2026-01-01T00:00:00Z",
        served_rle=mask_to_coco_rle(proposal) if proposal.any() else None,
    )


def compare_models(
    samples: Sequence[Sample], shown: SimulatedModel, other: SimulatedModel, tolerance_px: float
) -> dict[str, Compared]:
    """Compares a model whose masks annotators repaired with another one. Rule -> its comparison."""
    labelled = [
        (record, sample, answers)
        for sample in samples
        for answers in [(shown.answer(sample), other.answer(sample))]
        if (record := label(sample, answers[0], tolerance_px)) is not None
    ]
    true = np.mean([_iou(b, sample.mask) - _iou(a, sample.mask) for _, sample, (a, b) in labelled])
    compared = {}
    for rule in RULES:
        some = [(record, answers) for record, _, answers in labelled if rule.accepted or record.corrected]
        drawn = drawn_edges(record for record, _ in some)
        edges = compares_edges(drawn) if rule.edges is None else rule.edges
        measurement = _measurement(some, edges, drawn if rule.edges is None else 1.0)
        verdict = judge(measurement, None, tolerance=0.0)
        compared[rule.name] = Compared(measurement.change or 0.0, float(true), verdict)
    return compared


def _measurement(
    labelled: Sequence[tuple[RefRecord, tuple[BoolMask, BoolMask]]], edges: bool, drawn: float
) -> Measurement:
    metrics, changes = (SegmentationMetrics(), SegmentationMetrics()), []
    for record, answers in labelled:
        truth = coco_rle_to_mask(record.mask_rle)
        ignored = None if edges else edge_band(truth)
        before, after = (one.update(mask, truth, ignored) for one, mask in zip(metrics, answers, strict=True))
        changes.append(after - before)
    images = [record.image_sha256 for record, _ in labelled]
    before, after = (one.compute()[GATE_METRIC] for one in metrics)
    interval = bootstrap_interval(changes, images)
    return Measurement(before, after, len(labelled), len(set(images)), interval, drawn)


def _iou(mask: BoolMask, truth: BoolMask) -> float:
    return SegmentationMetrics().update(mask, truth)
