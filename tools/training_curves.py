"""Plots the logs in docs/images/demo-training, one image for all stages; optionally adds a continued run.

python tools/training_curves.py [--add runs/further/further/log.jsonl --stage ssp]
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import matplotlib

from finetune.training.loop import read_log

matplotlib.use("agg")
from matplotlib import pyplot

LOGS = Path(__file__).parents[1] / "docs/images/demo-training"
STAGES = ("clip", "sam", "rec", "ssp")
FRAME = ("step", "lr", "elapsed_s", "left_s", "total", "image")
"""Columns that are not plotted: not a loss term, or the sum of others."""


def add_run(stage: str, log: Path) -> None:
    """Appends a run's log to that of its stage, with continued step numbers and without times."""
    kept = LOGS / f"{stage}.jsonl"
    before = read_log(kept)[-1]["step"]
    rows = [{k: v for k, v in row.items() if not k.endswith("_s")} for row in read_log(log)]
    with kept.open("a", encoding="utf-8") as file:
        for row in rows:
            file.write(json.dumps(row | {"step": before + row["step"]}) + "\n")


def beginnings(rows: list[dict[str, Any]]) -> list[float]:
    """Steps at which the learning rate rises again, where another run continued."""
    turns = zip(rows, rows[1:], rows[2:], strict=False)
    return [b["step"] for a, b, c in turns if a["lr"] >= b["lr"] < c["lr"]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--add", type=Path)
    parser.add_argument("--stage", choices=STAGES, default="ssp")
    options = parser.parse_args()
    if options.add is not None:
        add_run(options.stage, options.add)
    figure, places = pyplot.subplots(1, len(STAGES), figsize=(14, 3.2), layout="constrained")
    for axes, stage in zip(places, STAGES, strict=True):
        rows = read_log(LOGS / f"{stage}.jsonl")
        for step in beginnings(rows):
            axes.axvline(step, color="0.7", linewidth=0.8)
        for term in dict.fromkeys(key for row in rows for key in row if key not in FRAME):
            shown = [(row["step"], row[term]) for row in rows if term in row]
            axes.plot(*zip(*shown, strict=True), label=term, linewidth=1)
        axes.set(title=stage, xlabel="step", yscale="log")
        axes.legend(fontsize=7, framealpha=0.7)
    figure.savefig(LOGS.with_suffix(".png"), dpi=80)


if __name__ == "__main__":
    main()
