"""Evaluation reports in JSON and Markdown, and comparisons of two models."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from finetune.evaluation.evaluate import ALL_OBJECTS, NOTHING, EvaluationResult, SampleResult
from finetune.metrics import Figures

EVALUATION_JSON = "evaluation.json"
EVALUATION_MARKDOWN = "evaluation.md"

BOOTSTRAP_ROUNDS = 2000
BOOTSTRAP_SEED = 0
CONFIDENCE = 0.90
"""Confidence level of the bootstrap interval. Whether a version is better is a one-sided question: with
95 % confidence its change is above the lower end.
"""
SAME_IOU = 1e-3
"""Samples whose IoU changed by no more than this count as unchanged."""

PROTOCOLS_IN_WORDS = {
    "original": "at the images' own size (protocol `original`)",
    "paper": "on padded squares of 512 px, with fewer than 50 px counting as empty (protocol `paper`)",
}

FAMILY_COLUMNS = ("mIoU", "oIoU", "Pr@0.5", "Pr@0.9", "N-acc", "T-acc")


class ComparisonError(ValueError):
    """Two evaluations on different samples."""


@dataclass(frozen=True)
class Comparison:
    """A candidate compared with the incumbent, on the same samples."""

    incumbent: Figures
    candidate: Figures
    difference: float
    """Candidate's mean IoU minus the incumbent's, -1..1."""
    interval: tuple[float, float] | None
    """90 % confidence interval of the difference, by paired bootstrap over images; None for one image."""
    samples: int
    images: int
    better: int
    """Number of samples on which the candidate is better."""
    worse: int
    same: int

    def to_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return asdict(self)


def compare(incumbent: EvaluationResult, candidate: EvaluationResult) -> Comparison:
    """Compares two evaluations sample by sample.

    Raises:
        ComparisonError: they have different samples, or none.
    """
    pairs = paired_samples(incumbent, candidate)
    changes = np.array([after.iou - before.iou for before, after in pairs])
    image_ids = [before.image_id for before, _ in pairs]
    better, worse = int((changes > SAME_IOU).sum()), int((changes < -SAME_IOU).sum())
    return Comparison(
        incumbent=incumbent.overall,
        candidate=candidate.overall,
        difference=float(changes.mean()),
        interval=bootstrap_interval(changes, image_ids),
        samples=len(changes),
        images=len(set(image_ids)),
        better=better,
        worse=worse,
        same=len(changes) - better - worse,
    )


def paired_samples(
    incumbent: EvaluationResult, candidate: EvaluationResult
) -> list[tuple[SampleResult, SampleResult]]:
    """Each sample with both models' answers, in the incumbent's order.

    Raises:
        ComparisonError: they have different samples, or none.
    """
    before = {result.sample_id: result for result in incumbent.per_sample}
    after = {result.sample_id: result for result in candidate.per_sample}
    if not before or before.keys() != after.keys():
        raise ComparisonError(
            f"the incumbent was measured on {len(before)} samples and the candidate on {len(after)}, "
            f"{len(before.keys() & after.keys())} of them the same"
        )
    return [(result, after[sample_id]) for sample_id, result in before.items()]


def bootstrap_interval(
    changes: Sequence[float] | np.ndarray[Any, np.dtype[np.float64]], image_ids: Sequence[str]
) -> tuple[float, float] | None:
    """Bootstrap interval of the mean change.

    Whole images are drawn with replacement: phrases of one image share its difficulty and are not independent
    evidence.

    Args:
        changes: N changes, one per sample.
        image_ids: N image IDs.

    Returns:
        (low, high), or None for fewer than two images.
    """
    ids, positions = np.unique(np.asarray(image_ids), return_inverse=True)
    if len(ids) < 2:
        return None
    sums = np.bincount(positions, weights=np.asarray(changes, dtype=float))  # (images,)
    counts = np.bincount(positions)
    # A fixed seed: the same two evaluations always give the same verdict.
    drawn = np.random.default_rng(BOOTSTRAP_SEED).integers(len(ids), size=(BOOTSTRAP_ROUNDS, len(ids)))
    # A ratio of sums, not a mean of means: a resampled set weighs each sample equally, as gIoU does.
    return interval_of(sums[drawn].sum(1) / counts[drawn].sum(1))


def interval_of(means: np.ndarray[Any, np.dtype[np.float64]]) -> tuple[float, float]:
    """(low, high) of the means of (BOOTSTRAP_ROUNDS,) resampled sets."""
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return float(low), float(high)


def write_evaluation(folder: Path, result: EvaluationResult, about: Mapping[str, str]) -> None:
    """Writes `evaluation.json` and `evaluation.md` into a folder, creating it if needed.

    Args:
        folder: Output folder.
        result: The evaluation.
        about: Its data and model, e.g. {"data set": "stickers/val", "model": "..."}.
    """
    folder.mkdir(parents=True, exist_ok=True)
    values = {"about": dict(about), **result.to_dict()}
    (folder / EVALUATION_JSON).write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
    (folder / EVALUATION_MARKDOWN).write_text(evaluation_to_markdown(result, about), encoding="utf-8")


def evaluation_to_markdown(result: EvaluationResult, about: Mapping[str, str]) -> str:
    """One evaluation as Markdown: setup, metrics, by family, baselines, times. Percent."""
    counts = result.counts
    lines = [
        "# Evaluation",
        "",
        *(f"- {name}: {value}" for name, value in about.items()),
        f"- masks compared {PROTOCOLS_IN_WORDS[result.protocol]}",
        f"- {counts['samples']} phrases on {counts['images']} images, {counts['no target']} of them "
        "without a target",
        "",
        *_markdown_table(("figure", "%"), [(name, percent(value)) for name, value in result.overall.items()]),
        "",
        *_markdown_table(*family_table(result)),
        "",
        *_markdown_table(("time", "ms"), [(name, f"{ms:.1f}") for name, ms in result.timings_ms.items()]),
    ]
    if result.refused:
        lines += ["", "Phrases that the model cannot read, counted as empty answers:", ""]
        lines += [f"- {sample_id}: {reason}" for sample_id, reason in result.refused.items()]
    return "\n".join(lines) + "\n"


def comparison_to_markdown(comparison: Comparison, incumbent_name: str, candidate_name: str) -> str:
    """A comparison as Markdown, in percent: the difference as a sentence, then all metrics."""
    rows = [
        (
            name,
            percent(comparison.incumbent.get(name)),
            percent(value),
            _change(comparison.incumbent.get(name), value),
        )
        for name, value in comparison.candidate.items()
    ]
    return "\n".join(
        [
            f"# {candidate_name} against {incumbent_name}",
            "",
            difference_in_words(comparison),
            "",
            *_markdown_table(("figure, %", incumbent_name, candidate_name, "change"), rows),
            "",
        ]
    )


def difference_in_words(comparison: Comparison) -> str:
    """One sentence: size and confidence of the difference, and the sample size."""
    text = f"mIoU {percent(comparison.incumbent['mIoU'])} % -> {percent(comparison.candidate['mIoU'])} % "
    text += f"({100 * comparison.difference:+.1f} points"
    if comparison.interval is not None:
        low, high = comparison.interval
        text += f", 90 % interval {100 * low:+.1f} to {100 * high:+.1f}"
    return (
        f"{text}) on {comparison.samples} phrases of {comparison.images} images: {comparison.better} "
        f"better, {comparison.worse} worse, {comparison.same} unchanged."
    )


BASELINE_COLUMNS = (ALL_OBJECTS, NOTHING)
"""Trivial baselines, whose mIoU is listed next to the model's."""


def family_table(result: EvaluationResult) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
    """Header and rows: each family, then all phrases. Percent, as text; mIoU of the available baselines."""
    measured = set(result.baselines).union(*result.family_baselines.values())
    known = [baseline for baseline in BASELINE_COLUMNS if baseline in measured]
    rows = [
        (family, result.family_samples[family], figures, result.family_baselines.get(family, {}))
        for family, figures in result.by_family.items()
    ]
    rows.append(("all", result.counts["samples"], result.overall, result.baselines))
    return ("phrases", "n", *FAMILY_COLUMNS, *known), [
        (
            name,
            str(count),
            *(percent(figures.get(column)) for column in FAMILY_COLUMNS),
            *(percent(baselines.get(baseline, {}).get("mIoU")) for baseline in known),
        )
        for name, count, figures, baselines in rows
    ]


def percent(value: float | None) -> str:
    """0..1 as percent with one decimal; a dash if undefined."""
    return "–" if value is None else f"{100 * value:.1f}"


def _change(before: float | None, after: float | None) -> str:
    return "–" if before is None or after is None else f"{100 * (after - before):+.1f}"


def _markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    alignment = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, alignment, *rows)]
