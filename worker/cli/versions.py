"""`sspsam versions`: the fine-tuned versions, their metrics, and which one serves."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.version_store.lines import DEFAULT_LINE
from sspsam.version_store.places import VERSIONS_URL_VARIABLE
from sspsam.version_store.pruning import KEEP_LATEST, plan_pruning
from sspsam.version_store.pruning import prune as remove_versions

if TYPE_CHECKING:
    from sspsam import VersionStore
    from sspsam.version_store.store import VersionCard

app = typer.Typer(help="Fine-tuned versions: list, show, promote, roll back, prune.", no_args_is_help=True)

ModelDir = Annotated[
    Path | None, typer.Option(help="Folder of the versions; default: MODEL_DIR.", file_okay=False)
]
VersionsUrl = Annotated[
    str | None,
    typer.Option(
        help=f"URL of the versions instead, such as s3://bucket/folder; default: {VERSIONS_URL_VARIABLE}."
    ),
]
Preset = Annotated[str | None, typer.Option(help="Variant of the model; default: PRESET.")]
Weights = Annotated[
    Path | None,
    typer.Option(metavar="FILE", dir_okay=False, help="The preset's weights; default: WEIGHTS."),
]
VersionId = Annotated[str, typer.Argument(metavar="VERSION", help="For example ssp-sam-demo-0001.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PLAIN_WIDTH = 200
"""Width in columns if the output is not a terminal."""


@app.command("list")
def list_versions(
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    versions_url: VersionsUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the versions, each with its metric on held-out corrections and the reason for its status."""
    store = _open(data_dir, model_dir, preset, versions_url)[0]
    cards, current = store.list(), store.current()
    if as_json:
        typer.echo(json.dumps([{**asdict(card), "serves": card.version_id == current} for card in cards]))
    else:
        _print_table(cards, current)


@app.command()
def show(
    version: VersionId,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    versions_url: VersionsUrl = None,
    as_json: AsJson = False,
) -> None:
    """Show a version's card and report."""
    store = _open(data_dir, model_dir, preset, versions_url)[0]
    card = store.get(version)
    if as_json:
        typer.echo(card.to_json())
        return
    for name, value in asdict(card).items():
        if value not in ("", {}):
            typer.echo(f"{name}: {value if isinstance(value, str) else json.dumps(value)}")
    if version == store.base_version:
        return
    if (page := store.file(version, "report.html")) is not None:
        typer.echo(f"report: {page}, or /reports/{version}/report.html of the backend")
    if (report := store.file(version, "report.md")) is not None:
        typer.echo("\n" + report.read_text(encoding="utf-8"))


@app.command()
def promote(
    version: VersionId,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
    reason: Annotated[str, typer.Option(help="Stored with the version.")] = "promoted by hand",
) -> None:
    """Make a version serve. Running backends swap to it without a restart."""
    store, redis_url = _open(data_dir, model_dir, preset, versions_url, weights)
    store.promote(version, reason)
    _announce(store, store.get(version).line, redis_url)


@app.command()
def rollback(
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
    reason: Annotated[
        str, typer.Option(help="Stored with the version that is replaced.")
    ] = "rolled back by hand",
) -> None:
    """Return to the version that served before."""
    store, redis_url = _open(data_dir, model_dir, preset, versions_url, weights)
    store.rollback(reason)
    _announce(store, DEFAULT_LINE, redis_url)


@app.command()
def prune(
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    versions_url: VersionsUrl = None,
    keep: Annotated[int, typer.Option(help="Always keep this many of the latest.", min=0)] = KEEP_LATEST,
    yes: Annotated[
        bool, typer.Option("--yes", help="Remove them; otherwise only list what would be removed.")
    ] = False,
) -> None:
    """Remove unused versions: neither the one that serves nor those that a rollback can return to."""
    store = _open(data_dir, model_dir, preset, versions_url)[0]
    plan = plan_pruning(store, keep)
    for version_id, why in sorted(plan.kept.items()):
        typer.echo(f"{version_id} stays: {why}")
    verb = "goes" if yes else "would go"
    for version_id, size_bytes in plan.removed.items():
        typer.echo(f"{version_id} {verb}: {_megabytes(size_bytes)}, {store.get(version_id).reason}")
    for name, size_bytes in plan.leftovers.items():
        typer.echo(f"{name} {verb}: {_megabytes(size_bytes)}, left by an interrupted writer")
    if yes:
        remove_versions(store, plan)
    typer.echo(f"{_megabytes(plan.bytes_freed)} {'freed' if yes else 'would be freed; --yes does it'}")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def held_out_figure(card: VersionCard) -> str:
    """The gate's metric, incumbent -> candidate, in percent; empty if it was not measured."""
    metrics = card.metrics
    name = metrics.get("metric", "gIoU")
    before, after = (metrics.get(side, {}).get(name) for side in ("incumbent", "candidate"))
    if before is None or after is None:
        return ""
    counts = f"{metrics.get('held_out_samples')} masks, {metrics.get('held_out_images')} images"
    return f"{name} {100 * before:.1f} -> {100 * after:.1f} % ({counts})"


def _open(
    data_dir: Path | None,
    model_dir: Path | None,
    preset: str | None,
    versions_url: str | None,
    weights: Path | None = None,
) -> tuple[VersionStore, str]:
    """Returns the selected store and the Redis of the backends that serve from it; prints which."""
    from backend.cli.instance_settings import versions_settings
    from sspsam import VersionStore
    from sspsam.presets import get_preset

    options = {
        "MODEL_DIR": model_dir,
        "PRESET": preset,
        "WEIGHTS": weights,
        VERSIONS_URL_VARIABLE: versions_url,
    }
    try:
        settings = versions_settings(data_dir, options)
        get_preset(settings.preset)
    except ValueError as error:
        raise typer.BadParameter(str(error)) from error
    store = VersionStore(settings.model_dir, settings.preset, settings.weights, settings.versions_url)
    return store, settings.redis_url


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


def _announce(store: VersionStore, line: str, redis_url: str) -> None:
    """Notifies running backends; those that miss the message poll every few seconds."""
    from redis.exceptions import RedisError

    from backend.shared_redis import announce_version, connect

    current = store.current(line)
    typer.echo(f"{current} serves from now on")
    try:
        announce_version(connect(redis_url), line, current)
    except RedisError:
        typer.echo("Redis does not respond; running backends will notice within a few seconds")
