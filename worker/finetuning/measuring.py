"""Evaluates candidate and incumbent on the same data, for the promotion gate and the report."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import mean
from typing import TYPE_CHECKING, Any

from finetune.data.records import RefRecord
from sspsam import coco_rle_to_mask
from sspsam.images.masks import MaskFormatError
from worker.finetuning.policy import (
    BOX_METRIC,
    FEW_IMAGES,
    GATE_METRIC,
    Measurement,
    Verdict,
    compares_edges,
    judge,
)
from worker.finetuning.population import UNANSWERED, Asked, Estimate, Phrase, agreement, estimate
from worker.finetuning.runs import Run

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from finetune.data.sample import Dataset
    from finetune.evaluation.evaluate import EvaluationResult, SampleResult
    from finetune.evaluation.html_report import MeasuredOn
    from sspsam import Predictor

logger = logging.getLogger(__name__)

HELD_OUT_TITLE = "Held-out labels"
BASE_TITLE = "Base validation set"
UNANSWERED_TITLE = "Unanswered phrases"
BOXES = "held_out_boxes"

State = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Measured:
    """Evaluation results of both versions."""

    held_out: MeasuredOn
    base: MeasuredOn | None
    """None without a base validation set."""
    pictures: Mapping[str, Image.Image]
    """Sample id -> image of both answers, for the held-out samples that changed most."""
    drawn_edges: float = 1.0
    """Fraction of the held-out masks' edges that annotators drew, 0..1."""
    kinds: Mapping[str, str] = field(default_factory=dict)
    """Sample id of a held-out label -> its kind: see `population.kind_of`."""
    unanswered: MeasuredOn | None = None
    """Of the unanswered phrases on the held-out images; scores are meaningless."""

    @property
    def sections(self) -> list[MeasuredOn]:
        return [self.held_out] if self.base is None else [self.held_out, self.base]


def measure(
    predictor: Predictor,
    incumbent: State,
    candidate: State,
    held_out: Dataset,
    base: Dataset | None,
    drawn_edges: float = 1.0,
    kinds: Mapping[str, str] | None = None,
    unanswered: Dataset | None = None,
) -> Measured:
    """Evaluates both versions on both data sets and draws the answers that changed most.

    Args:
        predictor: The preset's predictor; holds the candidate's tensors on return.
        incumbent: Trainable tensors of the serving version.
        candidate: Trainable tensors of its possible successor.
        held_out: Labels that neither version was trained on.
        base: Base validation set, which measures forgetting; None if there is none.
        drawn_edges: Fraction of the edges of the held-out masks that annotators drew, which decides whether
            edges are compared.
        kinds: Sample id of each held-out label -> its kind.
        unanswered: Unanswered phrases on the held-out images; None if there are none.
    """
    from finetune.evaluation.changes import draw_changes, list_changes, most_changed
    from finetune.evaluation.evaluate import evaluate
    from finetune.evaluation.html_report import MeasuredOn

    data_sets = {HELD_OUT_TITLE: held_out} | ({} if base is None else {BASE_TITLE: base})
    data_sets |= {} if unanswered is None else {UNANSWERED_TITLE: unanswered}
    edges = {HELD_OUT_TITLE: compares_edges(drawn_edges)}
    results: list[dict[str, EvaluationResult]] = []
    for state in (incumbent, candidate):
        predictor.load_trainable(state)
        results.append(
            {
                title: evaluate(predictor, data, edges=edges.get(title, True))
                for title, data in data_sets.items()
            }
        )
    before, after = results
    on = {title: MeasuredOn(title, before[title], after[title]) for title in data_sets}
    best, worst = most_changed(list_changes(before[HELD_OUT_TITLE], after[HELD_OUT_TITLE]))
    shown = [change.sample_id for change in (*best, *worst)]
    pictures = draw_changes(predictor, incumbent, candidate, held_out, shown)
    return Measured(
        held_out=on[HELD_OUT_TITLE],
        base=on.get(BASE_TITLE),
        pictures=pictures,
        drawn_edges=drawn_edges,
        kinds=kinds or {},
        unanswered=on.get(UNANSWERED_TITLE),
    )


def drawn_edges(records: Iterable[RefRecord]) -> float:
    """The fraction of the edges of masks that annotators drew, each mask counting equally, 0..1.

    A mask without a known proposal was drawn by hand. Without any mask, the fraction is 1.
    """
    masks = [record for record in records if record.mask_rle is not None and not record.is_box]
    fractions = [_drawn_fraction(record) for record in masks]
    return sum(fractions) / len(fractions) if fractions else 1.0


def _drawn_fraction(record: RefRecord) -> float:
    """The same of one mask. A proposal that does not fit the image is unknown."""
    from finetune.evaluation.edge_bands import drawn_fraction

    mask, served = record.mask_rle, record.served_rle
    if mask is None or served is None or tuple(served["size"]) != record.image_hw:
        return 1.0
    try:
        return drawn_fraction(coco_rle_to_mask(mask), coco_rle_to_mask(served))
    except MaskFormatError as error:
        logger.warning("sample %s: its proposal is unknown: %s", record.sample_id, error)
        return 1.0


def to_metrics(
    measured: Measured, base_data: str | None, tolerance: float, run: Run | None = None
) -> dict[str, Any]:
    """Metrics for the version's card: everything that `verdict_of` needs, as JSON.

    Args:
        measured: Results of both versions.
        base_data: Name of the base validation set.
        tolerance: Setting VALIDATION_TOLERANCE.
        run: The run: which projects share its line, whether it restarts from another version, and the phrases
            that were asked.
    """
    labels, phrases = measured.held_out.candidate.per_sample, _phrases(measured)
    asked = {} if run is None else run.asked
    metric = BOX_METRIC if all(label.is_box for label in labels) else GATE_METRIC
    estimated = _estimated(_estimate(phrases, asked), metric)
    metrics = {
        "metric": metric,
        **_boxes(labels),
        "tolerance": tolerance,
        **_figures(measured.held_out, "held_out_samples", "held_out_images", estimated),
        "drawn_edges": round(measured.drawn_edges, 4),
    }
    if measured.base is not None:
        base = _figures(measured.base, "samples", "images")
        metrics["base_validation"] = {"data": base_data, "tolerance": tolerance, **base}
    if run is not None and run.restarts:
        metrics["restarts"] = True
    if run is not None and len(run.projects) > 1:
        metrics["projects"] = _by_project(measured.held_out, phrases, asked)
    return metrics


def verdict_of(metrics: Mapping[str, Any]) -> Verdict:
    """Applies the policy to the metrics of a card."""
    base: Mapping[str, Any] | None = metrics.get("base_validation")
    return judge(
        _measurement(metrics, "held_out_samples", "held_out_images"),
        None if base is None else _measurement(base, "samples", "images"),
        tolerance=float((metrics if base is None else base).get("tolerance", 0.0)),
        projects={
            str(project): _measurement(figures, "samples", "images")
            for project, figures in metrics.get("projects", {}).items()
        },
        restarts=bool(metrics.get("restarts", False)),
    )


def _phrases(measured: Measured) -> list[Phrase]:
    """The phrases on the held-out images; none if the kinds of labels are unknown."""
    from finetune.evaluation.report import paired_samples

    if not measured.kinds:
        return []
    edges, left = compares_edges(measured.drawn_edges), measured.unanswered
    labels = [
        _phrase(pair, measured.kinds[pair[0].sample_id], edges)
        for pair in paired_samples(measured.held_out.incumbent, measured.held_out.candidate)
    ]
    unanswered = [] if left is None else paired_samples(left.incumbent, left.candidate)
    return [*labels, *(_phrase(pair, UNANSWERED, edges) for pair in unanswered)]


def _phrase(pair: tuple[SampleResult, SampleResult], kind: str, edges: bool) -> Phrase:
    before, after = pair
    exactly = edges or before.is_box
    return Phrase(
        project=_project_of(before),
        kind=kind,
        image_id=before.image_id,
        before=agreement(before.iou, exactly),
        after=agreement(after.iou, exactly),
        found=(before.found, after.found),
    )


def _estimate(phrases: Sequence[Phrase], asked: Asked) -> Estimate | None:
    """For all phrases asked. None where that is unknown, and on few images, which are no sample of anything:
    their labels stand for themselves.
    """
    labels = [phrase for phrase in phrases if phrase.kind != UNANSWERED]
    if not asked or len({label.image_id for label in labels}) < FEW_IMAGES:
        return None
    return estimate(phrases, asked)


def _project_of(sample: SampleResult) -> str:
    """The project of a label: its sample id begins with its id."""
    return sample.sample_id.partition("/")[0]


def _by_project(on: MeasuredOn, phrases: Sequence[Phrase], asked: Asked) -> dict[str, Any]:
    """Figures of each project whose corrections are held out."""
    from finetune.evaluation.report import paired_samples

    pairs: dict[str, list[tuple[SampleResult, SampleResult]]] = {}
    for pair in paired_samples(on.incumbent, on.candidate):
        pairs.setdefault(_project_of(pair[0]), []).append(pair)
    estimates = {
        project: _estimate([phrase for phrase in phrases if phrase.project == project], asked)
        for project in pairs
    }
    return {
        project: {
            "incumbent": {GATE_METRIC: mean(before.iou for before, _ in answers)},
            "candidate": {GATE_METRIC: mean(after.iou for _, after in answers)},
            "samples": len(answers),
            "images": len({before.image_id for before, _ in answers}),
            **_boxes(before for before, _ in answers),
            **_estimated(estimates[project]),
        }
        for project, answers in sorted(pairs.items())
    }


def _boxes(labels: Iterable[SampleResult]) -> dict[str, int]:
    """How many labels are boxes, if any is."""
    count = sum(label.is_box for label in labels)
    return {BOXES: count} if count else {}


def _figures(
    on: MeasuredOn, samples_key: str, images_key: str, estimated: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """The figures of both versions; what is estimated replaces what was measured."""
    from finetune.evaluation.report import compare

    comparison, figures = compare(on.incumbent, on.candidate), estimated or {}
    return {
        "interval": comparison.interval,
        samples_key: comparison.samples,
        images_key: comparison.images,
        **figures,
        "incumbent": {**on.incumbent.overall, **figures.get("incumbent", {})},
        "candidate": {**on.candidate.overall, **figures.get("candidate", {})},
    }


def _estimated(estimated: Estimate | None, metric: str = GATE_METRIC) -> dict[str, Any]:
    if estimated is None:
        return {}
    return {
        "incumbent": {GATE_METRIC: estimated.before, metric: estimated.before},
        "candidate": {GATE_METRIC: estimated.after, metric: estimated.after},
        "interval": estimated.interval,
        "asked": estimated.asked,
        "unanswered": estimated.unanswered,
    }


def _measurement(figures: Mapping[str, Any], samples_key: str, images_key: str) -> Measurement:
    interval = figures.get("interval")
    return Measurement(
        before=figures["incumbent"].get(GATE_METRIC),
        after=figures["candidate"].get(GATE_METRIC),
        samples=int(figures[samples_key]),
        images=int(figures[images_key]),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
        drawn_edges=float(figures.get("drawn_edges", 1)),
        boxes=int(figures.get(BOXES, 0)),
        asked=int(figures.get("asked", 0)),
        unanswered=int(figures.get("unanswered", 0)),
    )
