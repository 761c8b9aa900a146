"""Candidate and incumbent on the same data: what the gate decides by, and what the report shows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from worker.finetuning.policy import GATE_METRIC, Measurement, Verdict, judge

if TYPE_CHECKING:
    import torch
    from PIL import Image

    from finetune.data.sample import Dataset
    from finetune.evaluation.evaluate import EvaluationResult
    from finetune.evaluation.html_report import MeasuredOn
    from sspsam import Predictor

HELD_OUT_TITLE = "Held-out corrections"
BASE_TITLE = "Base validation set"

State = Mapping[str, "torch.Tensor"]


@dataclass(frozen=True)
class Measured:
    """What was found."""

    held_out: MeasuredOn
    base: MeasuredOn | None
    """None where nothing says what the model knew before."""
    pictures: Mapping[str, Image.Image]
    """Sample id -> both answers, of the held-out samples that changed most."""

    @property
    def sections(self) -> list[MeasuredOn]:
        return [self.held_out] if self.base is None else [self.held_out, self.base]


def measure(
    predictor: Predictor, incumbent: State, candidate: State, held_out: Dataset, base: Dataset | None
) -> Measured:
    """Asks both versions about both data sets, and draws what changed most.

    Args:
        predictor: Of the preset; holds the candidate's tensors when this returns.
        incumbent: Trainable tensors of the version that serves.
        candidate: Those that may follow it.
        held_out: Corrections that neither was trained on.
        base: What the model knew before; None where that is not at hand.
    """
    from finetune.evaluation.changes import draw_changes, list_changes, most_changed
    from finetune.evaluation.evaluate import evaluate
    from finetune.evaluation.html_report import MeasuredOn

    data_sets = {HELD_OUT_TITLE: held_out} | ({} if base is None else {BASE_TITLE: base})
    results: list[dict[str, EvaluationResult]] = []
    for state in (incumbent, candidate):
        predictor.load_trainable(state)
        results.append({title: evaluate(predictor, data) for title, data in data_sets.items()})
    before, after = results
    on = {title: MeasuredOn(title, before[title], after[title]) for title in data_sets}
    best, worst = most_changed(list_changes(before[HELD_OUT_TITLE], after[HELD_OUT_TITLE]))
    shown = [change.sample_id for change in (*best, *worst)]
    pictures = draw_changes(predictor, incumbent, candidate, held_out, shown)
    return Measured(on[HELD_OUT_TITLE], on.get(BASE_TITLE), pictures)


def to_metrics(measured: Measured, base_data: str | None, tolerance: float) -> dict[str, Any]:
    """What a version's card says: all that `verdict_of` needs, in JSON."""
    metrics = {"metric": GATE_METRIC, **_figures(measured.held_out, "held_out_samples", "held_out_images")}
    if measured.base is not None:
        base = _figures(measured.base, "samples", "images")
        metrics["base_validation"] = {"data": base_data, "tolerance": tolerance, **base}
    return metrics


def verdict_of(metrics: Mapping[str, Any]) -> Verdict:
    """Applies the policy to the figures of a card."""
    base: Mapping[str, Any] | None = metrics.get("base_validation")
    return judge(
        _measurement(metrics, "held_out_samples", "held_out_images"),
        None if base is None else _measurement(base, "samples", "images"),
        tolerance=0.0 if base is None else float(base["tolerance"]),
    )


def _figures(on: MeasuredOn, samples_key: str, images_key: str) -> dict[str, Any]:
    from finetune.evaluation.report import compare

    comparison = compare(on.incumbent, on.candidate)
    return {
        "incumbent": on.incumbent.overall,
        "candidate": on.candidate.overall,
        "interval": comparison.interval,
        samples_key: comparison.samples,
        images_key: comparison.images,
    }


def _measurement(figures: Mapping[str, Any], samples_key: str, images_key: str) -> Measurement:
    interval = figures.get("interval")
    return Measurement(
        before=figures["incumbent"].get(GATE_METRIC),
        after=figures["candidate"].get(GATE_METRIC),
        samples=int(figures[samples_key]),
        images=int(figures[images_key]),
        interval=None if interval is None else (float(interval[0]), float(interval[1])),
    )
