"""`sspsam train`: one stage from a configuration, or the whole recipe of the demo weights."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from finetune.engine import ProgressFn

app = typer.Typer()


@app.command()
def train(
    config: Annotated[
        Path | None, typer.Option(help="TOML file; keys are the fields of finetune.config.TrainConfig.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Argument(metavar="[KEY=VALUE]...", help="Settings; they win over the file.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            file_okay=False,
            help="Train the demo weights from nothing, all stages, in this folder; run again to go on.",
        ),
    ] = None,
) -> None:
    """Train the model; a run that was stopped goes on from its last checkpoint.

    Example: sspsam train preset=ssp-sam-demo data=stickers/train output_dir=runs/first steps=500
    """
    from finetune.config import make_config, read_config
    from finetune.recipe import train_demo
    from finetune.train import train as run

    if recipe is not None:
        typer.echo(f"Written to {train_demo(recipe, _progress())}")
        return
    overrides = dict(_key_and_value(setting) for setting in settings or [])
    options = make_config(overrides) if config is None else read_config(config, overrides)
    result = run(options, _progress())
    typer.echo(f"Step {result.steps}: " + ", ".join(f"{k} {v:.4f}" for k, v in result.metrics.items()))
    typer.echo(f"Written to {result.weights}")


def _key_and_value(setting: str) -> tuple[str, str]:
    key, equals, value = setting.partition("=")
    if not equals:
        raise typer.BadParameter(f"{setting!r} is not KEY=VALUE")
    return key, value


def _progress(every: int = 20) -> ProgressFn:
    def show(step: int, means: dict[str, float]) -> None:
        if step % every == 0:
            typer.echo(f"{step:6d}  " + "  ".join(f"{k} {v:.4f}" for k, v in means.items()), err=True)

    return show
