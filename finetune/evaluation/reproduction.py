"""The paper's tables for the data sets on this machine, by the authors' protocol, beside their figures.

Each split's result is kept in a folder with the weights' sha256; a row whose result is missing, or belongs to
other weights, says "not run".
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import quote

from finetune.data.dataset import open_dataset
from finetune.data.sample import Dataset, DatasetError
from finetune.evaluation.report import EVALUATION_JSON

NOT_RUN = "not run"
PAPER = "arXiv 2603.18086"
PROTOCOL = "paper"
PRECISION = ("Pr@0.5", "Pr@0.7", "Pr@0.9")
SPLITS: Mapping[str, tuple[str, ...]] = {
    "refcoco": ("val", "testA", "testB"),
    "refcoco+": ("val", "testA", "testB"),
    "refcocog-umd": ("val", "test"),
    "refcocog-google": ("val",),
    "refclef-unc": ("val", "testA", "testB", "testC"),
    "refclef-berkeley": ("val", "test"),
    "grefcoco": ("val", "testA", "testB"),
    "phrasecut": ("test",),
}
"""Data set -> the splits that are evaluated."""
METRICS: Mapping[str, tuple[str, ...]] = {
    "grefcoco": ("gIoU", "cIoU", "N-acc", "T-acc"),
    "phrasecut": ("mIoU", "oIoU", *PRECISION),
}
USUAL_METRICS = ("mIoU", "oIoU", *PRECISION)
AUTHORS_FIGURES: Mapping[tuple[str, str, str], float] = {}
"""(data set, split, metric) -> percent, as printed in the paper. Empty: the paper's tables are not among this
project's sources, and no figure is taken from anywhere else."""
DIFFERENCES = (
    "N-acc and T-acc are counted per sample; the authors' code derives them from a batch's summed IoU.",
    "RefCOCO, RefCOCO+, RefCOCOg and ReferIt are evaluated with every phrase of a split.",
    "Masks are compared on padded squares of 512 px, sigmoid at 0.5; fewer than 50 px count as empty where "
    "there is no target: as in the authors' code (`--protocol paper`).",
    "Weights are those that you name; the authors trained one checkpoint for each data set.",
)


@dataclass(frozen=True)
class Row:
    """A split, and what is known of it."""

    name: str
    split: str
    figures: Mapping[str, float | None] | None
    """0..1; None if it was not run."""
    reason: str = ""
    """Why it was not run."""

    @property
    def spec(self) -> str:
        """Name of the data set as for `sspsam evaluate`."""
        return f"{self.name}/{self.split}"


def rows_of(results: Path, weights: Mapping[str, str], reasons: Mapping[str, str]) -> list[Row]:
    """The rows of all tables.

    Args:
        results: folder with a folder of `sspsam reproduce` for each split.
        weights: data set -> sha256 of its weights.
        reasons: `name/split` -> why it was not run now.
    """
    rows = []
    for name, splits in SPLITS.items():
        for split in splits:
            figures = _stored(result_folder(results, name, split), weights.get(name, ""))
            reason = "" if figures else reasons.get(f"{name}/{split}", "")
            rows.append(Row(name, split, figures, reason))
    return rows


def result_folder(results: Path, name: str, split: str) -> Path:
    """Folder of a split's result."""
    return results / f"{name}-{split}"


def find_split(name: str, split: str, root: Path) -> Dataset | str:
    """A split, or what is missing of it and where to get it."""
    try:
        samples = open_dataset(f"{name}/{split}?root={quote(str(root))}")
    except DatasetError as error:
        return str(error)
    return samples if len(samples) else f"the file of phrases in {root} has none of this split"


def tables(rows: Sequence[Row]) -> str:
    """Markdown: a table for each kind of metrics, the missing parts, and the protocol's differences."""
    parts = ["# The paper's tables", f"Ours beside the figures of {PAPER}, in percent."]
    kinds = {metrics_of(row.name): None for row in rows}
    for metrics in kinds:
        head = ["data set", *(f"{metric}, {who}" for metric in metrics for who in ("authors", "ours"))]
        lines = [head, ["---"] * len(head)]
        lines += [_cells(row, metrics) for row in rows if metrics_of(row.name) == metrics]
        parts.append("\n".join("| " + " | ".join(line) + " |" for line in lines))
    if any("–" in part for part in parts[2:]):
        parts.append(
            f"–: the paper's figure is not stored here; see the tables of {PAPER}, section on experiments."
        )
    if missing := [f"- {row.spec}: {row.reason}" for row in rows if row.reason]:
        parts.append("## Not run\n\n" + "\n".join(missing))
    parts.append("## Differences of the protocol\n\n" + "\n".join(f"- {line}" for line in DIFFERENCES))
    return "\n\n".join(parts) + "\n"


def metrics_of(name: str) -> tuple[str, ...]:
    """The metrics that are quoted for a data set."""
    return METRICS.get(name, USUAL_METRICS)


def _cells(row: Row, metrics: Sequence[str]) -> list[str]:
    cells = [row.spec]
    for metric in metrics:
        authors = AUTHORS_FIGURES.get((row.name, row.split, metric))
        ours = None if row.figures is None else row.figures.get(metric)
        cells.append("–" if authors is None else f"{authors:.2f}")
        cells.append(NOT_RUN if row.figures is None else "undefined" if ours is None else f"{100 * ours:.2f}")
    return cells


def _stored(folder: Path, sha256: str) -> Mapping[str, float | None] | None:
    """The figures of an earlier run with these weights."""
    try:
        stored = json.loads((folder / EVALUATION_JSON).read_text(encoding="utf-8"))
        known = stored["about"]["weights sha256"], stored["protocol"]
        return dict(stored["overall"]) if sha256 and known == (sha256, PROTOCOL) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
