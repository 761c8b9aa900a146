"""`sspsam calibrate`: what the certainties of weights mean."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from sspsam.cli.commands import DEFAULT_PRESET, DeviceOption, PresetOption, SamEncoderOption, open_predictor
from sspsam.cli.output import echo

app = typer.Typer()


@app.command()
def calibrate(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="As for evaluate; not of the evaluation. A few thousand phrases, some without a target.",
            show_default=False,
        ),
    ],
    weights: Annotated[
        Path,
        typer.Option(
            help="Weights as for serve; the calibration is written to the notes beside them.",
            exists=True,
            dir_okay=False,
            show_default=False,
        ),
    ],
    preset: PresetOption = None,
    sam_encoder: SamEncoderOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Fit the certainty of answers to their true quality on labelled images.

    Certainty is what annotators see of an unsure mask, and what `sspsam rank` orders tasks by.

    Example: sspsam calibrate --weights weights.safetensors --dataset "stickers/train?count=500&phrases=8"
    """
    from finetune.data.dataset import open_dataset
    from finetune.evaluation.calibration import (
        LEAST_ANSWERS,
        calibrated,
        expected_calibration_error,
        judge,
        with_notes,
    )
    from finetune.training.train import tune_process
    from sspsam.checkpoints.notes import NO_NOTES, notes_path, write_notes

    tune_process()
    samples = open_dataset(dataset)
    predictor = open_predictor(preset or DEFAULT_PRESET, device, None, None, weights, sam_encoder)
    judged = judge(predictor, samples)
    half = len(judged) // 2
    notes = calibrated(NO_NOTES, judged[:half])
    if notes == NO_NOTES:
        raise typer.BadParameter(
            f"{dataset}: too few answers, expected {2 * LEAST_ANSWERS} or more with a mask, or without one"
        )
    before = expected_calibration_error(judged[half:])
    after = expected_calibration_error(with_notes(judged[half:], notes))
    write_notes(weights, calibrated(predictor.notes, judged))
    echo(f"Expected calibration error of the second half: {100 * before:.1f} %")
    echo(f"With a calibration by the first half: {100 * after:.1f} %")
    echo(f"Written to {notes_path(weights)}")
