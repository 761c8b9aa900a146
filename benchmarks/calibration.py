"""Honesty of certainties: mean IoU by certainty, and the expected calibration error, on unseen scenes.

The calibration is that of the notes of the shipped weights, fitted on scenes of the training split.

    python benchmarks/calibration.py [--scenes 1000]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from common.sections import ROOT, table, write_section

from finetune.data.dataset import open_dataset
from finetune.evaluation.calibration import (
    Bin,
    expected_calibration_error,
    judge,
    reliability,
    with_notes,
)
from finetune.training.train import tune_process
from sspsam import Predictor
from sspsam.checkpoints.notes import NO_NOTES

PRESET = "ssp-sam-demo"
PICTURE = "docs/images/reliability.png"
TARGET = 0.05


def draw(uncalibrated: Sequence[Bin], calibrated: Sequence[Bin]) -> None:
    """Draws the reliability diagram."""
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(4.4, 4), layout="constrained")
    axes.plot([0, 1], [0, 1], color="0.8")
    for bins, name, colour in (
        (uncalibrated, "predicted IoU x stability", "0.6"),
        (calibrated, "calibrated", "tab:blue"),
    ):
        axes.plot([one.certainty for one in bins], [one.iou for one in bins], "o-", color=colour, label=name)
    axes.set(xlabel="certainty", ylabel="mean IoU", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False)
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(ROOT / PICTURE, dpi=110)


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=1000)
    scenes: int = parser.parse_args().scenes
    tune_process()
    predictor = Predictor.from_preset(PRESET, "cpu")
    notes, predictor.notes = predictor.notes, NO_NOTES
    data = f"stickers/val?count={scenes}&phrases=8&nouns=core"
    uncalibrated = judge(
        predictor, open_dataset(data), lambda done, count: print(f"{done} of {count}", end="\r", flush=True)
    )
    calibrated = with_notes(uncalibrated, notes)
    before, after = (expected_calibration_error(judged) for judged in (uncalibrated, calibrated))
    bins = reliability(calibrated)
    draw(reliability(uncalibrated), bins)
    write_section(
        "Certainty",
        f"Certainty of `{PRESET}`'s answers against their IoU after further looks, on {len(calibrated)} "
        f"phrases of {scenes} unseen scenes; an empty answer counts 1 if nothing fits, else 0. The expected "
        f"calibration error is **{100 * after:.1f} %** (target: at most {100 * TARGET:.0f} %). It is "
        f"{100 * before:.1f} % for predicted IoU x stability, the certainty without a calibration "
        "(`sspsam calibrate` fits one).",
        "![Mean IoU against certainty](images/reliability.png)",
        table(
            ["certainty", "answers", "mean IoU"],
            [[f"{one.certainty:.2f}", one.answers, f"{one.iou:.2f}"] for one in bins],
        ),
    )
    if after > TARGET:
        raise SystemExit("missed the target")


if __name__ == "__main__":
    main()
