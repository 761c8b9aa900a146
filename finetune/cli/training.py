"""`sspsam train`: one stage from a configuration, or the whole recipe of the demo weights."""

from __future__ import annotations

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.output import echo

if TYPE_CHECKING:
    from finetune.training.config import TrainConfig
    from finetune.training.loop import ProgressFn

app = typer.Typer()

PROGRESS_EVERY = 20
"""Steps between lines."""


@app.command()
def train(
    config: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE|NAME",
            help="TOML file whose keys are the fields of finetune.training.config.TrainConfig, or one of the "
            "paper's recipes: pretrain-224, refcoco-224, grefcoco-224, ...",
        ),
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; they override the file.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Train the demo weights from scratch, all stages, in this folder; run again to resume.",
        ),
    ] = None,
    further: Annotated[
        bool, typer.Option("--further", help="With --recipe: continue the training of the packaged weights.")
    ] = False,
) -> None:
    """Train the model; an interrupted run resumes from its last checkpoint.

    Several processes (`torchrun --nproc-per-node 8 --no-python sspsam train ...`) share each batch.

    Example: sspsam train preset=ssp-sam-demo data=stickers/train output_dir=runs/first steps=500

    Example: sspsam train --config refcoco-224 weights=clip.safetensors,sam.safetensors
    """
    from finetune.training.config import make_config, read_config
    from finetune.training.recipe import train_demo, train_further
    from finetune.training.train import train as run
    from finetune.training.train import tune_process

    if further and recipe is None:
        raise typer.BadParameter("--further needs --recipe FOLDER")
    if recipe is not None:
        tune_process(recipe)
        bundle = (train_further if further else train_demo)(recipe, show_progress)
        echo(f"Written to {bundle}")
        return
    overrides = dict(_key_and_value(setting) for setting in settings or [])
    options = make_config(overrides) if config is None else read_config(config, overrides)
    tune_process(options.output_dir)
    result = run(options, show_progress(options))
    if int(os.environ.get("RANK", "0")):
        return
    echo(f"Step {result.steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in result.metrics.items()))
    echo(f"Written to {result.weights}")


def _key_and_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise typer.BadParameter(f"{setting!r} is not KEY=VALUE")
    return key, value


def show_progress(config: TrainConfig) -> ProgressFn:
    """Prints a progress line periodically: stage, step, remaining steps and time, loss terms."""
    begun: list[tuple[int, float]] = []

    def show(step: int, means: dict[str, float]) -> None:
        if not begun:
            begun.append((step, time.monotonic()))
        if step % PROGRESS_EVERY or int(os.environ.get("RANK", "0")):
            return
        first, started = begun[0]
        where = f"{config.stage} {step:6d}/{config.steps}"
        if step > first:
            left_s = (time.monotonic() - started) / (step - first) * (config.steps - step)
            where += f"  {timedelta(seconds=round(left_s))} left"
        echo(f"{where}  " + "  ".join(f"{k} {v:.4f}" for k, v in means.items()), err=True)

    return show
