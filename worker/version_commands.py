"""`sspsam versions`: what was trained, how good it is, and which of it serves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.commands import WeightsOption

if TYPE_CHECKING:
    from sspsam.versions import VersionCard, VersionStore

app = typer.Typer(help="Fine-tuned versions: list, show, promote, roll back.", no_args_is_help=True)

ModelDir = Annotated[Path, typer.Option(envvar="MODEL_DIR", help="Folder of the versions.", file_okay=False)]
Preset = Annotated[str, typer.Option(envvar="PRESET", help="Variant of the model.")]
VersionId = Annotated[str, typer.Argument(metavar="VERSION", help="Such as ssp-sam-demo-0001.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

DEFAULT_MODEL_DIR = Path("models")
DEFAULT_PRESET = "ssp-sam-demo"
PLAIN_WIDTH = 200
"""Columns when the output is not a terminal."""


@app.command("list")
def list_versions(
    model_dir: ModelDir = DEFAULT_MODEL_DIR, preset: Preset = DEFAULT_PRESET, as_json: AsJson = False
) -> None:
    """List the versions, each with its figure on held-out corrections and why it serves or not."""
    store = _store(model_dir, preset)
    cards, current = store.list(), store.current()
    if as_json:
        typer.echo(json.dumps([{**asdict(card), "serves": card.version_id == current} for card in cards]))
    else:
        _print_table(cards, current)


@app.command()
def show(
    version: VersionId,
    model_dir: ModelDir = DEFAULT_MODEL_DIR,
    preset: Preset = DEFAULT_PRESET,
    as_json: AsJson = False,
) -> None:
    """Show a version's card and report."""
    store = _store(model_dir, preset)
    card = store.get(version)
    if as_json:
        typer.echo(card.to_json())
        return
    for name, value in asdict(card).items():
        if value not in ("", {}):
            typer.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    if version == store.base_version:
        return
    if (page := store.path(version) / "report.html").is_file():
        typer.echo(f"report: {page}, or /reports/{version}/report.html of the backend")
    if (report := store.path(version) / "report.md").is_file():
        typer.echo("\n" + report.read_text(encoding="utf-8"))


@app.command()
def promote(
    version: VersionId,
    model_dir: ModelDir = DEFAULT_MODEL_DIR,
    preset: Preset = DEFAULT_PRESET,
    weights: WeightsOption = None,
    reason: Annotated[str, typer.Option(help="Kept with the version.")] = "promoted by hand",
) -> None:
    """Let a version serve. Running backends swap to it without a restart."""
    store = _store(model_dir, preset, weights)
    store.promote(version, reason)
    _announce(store)


@app.command()
def rollback(
    model_dir: ModelDir = DEFAULT_MODEL_DIR,
    preset: Preset = DEFAULT_PRESET,
    weights: WeightsOption = None,
    reason: Annotated[str, typer.Option(help="Kept with the version that is left.")] = "rolled back by hand",
) -> None:
    """Go back to the version that served before."""
    store = _store(model_dir, preset, weights)
    store.rollback(reason)
    _announce(store)


def held_out_figure(card: VersionCard) -> str:
    """The figure that decided, incumbent -> candidate, in percent; empty where nothing was measured."""
    metrics = card.metrics
    name = metrics.get("metric", "gIoU")
    before, after = (metrics.get(side, {}).get(name) for side in ("incumbent", "candidate"))
    if before is None or after is None:
        return ""
    counts = f"{metrics.get('held_out_samples')} masks, {metrics.get('held_out_images')} images"
    return f"{name} {100 * before:.1f} -> {100 * after:.1f} % ({counts})"


def _store(model_dir: Path, preset: str, weights: Path | None = None) -> VersionStore:
    from sspsam.presets import get_preset
    from sspsam.versions import VersionStore

    try:
        get_preset(preset)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    return VersionStore(model_dir, preset, weights)


def _print_table(cards: list[VersionCard], current: str) -> None:
    from rich.console import Console
    from rich.table import Table

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    table = Table("version", "serves", "status", "held-out corrections", "why", "made")
    for card in cards:
        serves = "yes" if card.version_id == current else ""
        row = (card.version_id, serves, card.status, held_out_figure(card), card.reason, card.created_at)
        table.add_row(*row)
    console.print(table)


def _announce(store: VersionStore) -> None:
    """Tells running backends at once; those that do not hear it look by themselves every few seconds."""
    from redis.exceptions import RedisError

    from backend.settings import Settings
    from sspsam.versions import VERSIONS_CHANNEL
    from worker.queues import connect

    current = store.current()
    typer.echo(f"{current} serves from now on")
    try:
        connect(Settings().redis_url).publish(VERSIONS_CHANNEL, current)
    except RedisError:
        typer.echo("Redis does not answer, so running backends will notice within a few seconds")
