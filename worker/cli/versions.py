"""`sspsam versions`: the fine-tuned versions, their metrics, and which one serves which projects."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.output import echo
from sspsam.printable import printable
from sspsam.version_store.lines import MOST_DIGITS, SHARED_LINE, line_of_project, project_of_line
from sspsam.version_store.places import VERSIONS_URL_VARIABLE
from sspsam.version_store.pruning import KEEP_LATEST, plan_pruning
from sspsam.version_store.pruning import prune as remove_versions

if TYPE_CHECKING:
    from sspsam import VersionStore
    from sspsam.version_store.lines import StoreState
    from sspsam.version_store.store import VersionCard

app = typer.Typer(
    help="Fine-tuned versions: list, show, promote, roll back, adopt, share, unshare, prune.",
    no_args_is_help=True,
)

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
ProjectOption = Annotated[
    int | None, typer.Option("--project", help="Number of a project: act on the line that serves it.", min=1)
]
Projects = Annotated[str, typer.Option(help="Numbers of the projects, with commas between them.")]
VersionId = Annotated[str, typer.Argument(metavar="VERSION", help="For example ssp-sam-demo-0001.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]

PLAIN_WIDTH = 200
"""Width in columns if the output is not a terminal."""


@app.command("list")
def list_versions(
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    versions_url: VersionsUrl = None,
    as_json: AsJson = False,
) -> None:
    """List the versions, each with its metric on held-out corrections and the reason for its status."""
    store = _open(data_dir, model_dir, preset, versions_url).store
    line = None if project is None else store.line_of(project)
    cards, state = store.list(line), store.state()
    serves = {card.version_id: served_lines(state, card.version_id, line) for card in cards}
    if as_json:
        rows = [(card, serves[card.version_id]) for card in cards]
        echo(json.dumps([{**asdict(card), "serves": bool(ls), "serves_lines": ls} for card, ls in rows]))
    else:
        _print_table(cards, serves)


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
    store = _open(data_dir, model_dir, preset, versions_url).store
    card = store.get(version)
    if as_json:
        echo(card.to_json())
        return
    for name, value in asdict(card).items():
        if value not in ("", {}):
            echo(f"{name}: {printable(value) if isinstance(value, str) else json.dumps(value)}")
    if version == store.base_version:
        return
    if (page := store.file(version, "report.html")) is not None:
        echo(f"report: {page}, or /reports/{version}/report.html of the backend")
    if (report := store.file(version, "report.md")) is not None:
        echo("\n" + report.read_text(encoding="utf-8"))


@app.command()
def promote(
    version: VersionId,
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
    reason: Annotated[str, typer.Option(help="Stored with the version.")] = "promoted by hand",
) -> None:
    """Make a version serve its line. Running backends swap to it without a restart."""
    opened = _open(data_dir, model_dir, preset, versions_url, weights)
    line = _line_of(opened.store, version) if project is None else opened.store.line_of(project)
    opened.store.promote(version, reason, line)
    _announce(opened, line)


@app.command()
def rollback(
    project: ProjectOption = None,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
    reason: Annotated[
        str, typer.Option(help="Stored with the version that is replaced.")
    ] = "rolled back by hand",
) -> None:
    """Return to the version that served before. Without --project, there must be one line alone."""
    opened = _open(data_dir, model_dir, preset, versions_url, weights)
    line = _only_line(opened.store.state()) if project is None else opened.store.line_of(project)
    opened.store.rollback(reason, line)
    _announce(opened, line)


@app.command()
def adopt(
    project: Annotated[int, typer.Option(help="Project that is to start from another's version.", min=1)],
    source: Annotated[int, typer.Option("--from", help="Project whose version it starts from.", min=1)],
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
) -> None:
    """Start a project from the version that serves another. From then on, their lines are apart again."""
    from sspsam.version_store.sharing import ADOPTED
    from worker.lines import adopt_version

    opened = _open(data_dir, model_dir, preset, versions_url, weights)
    line, other = opened.store.line_of(project), opened.store.line_of(source)
    card = adopt_version(opened.store, opened.model_dir, line, other)
    if original := card.data.get(ADOPTED):
        echo(f"{card.version_id} is a copy of {original}")
    else:
        echo(f"project {source} has no version of its own")
    _announce(opened, line)


@app.command()
def share(
    projects: Projects,
    name: Annotated[
        str, typer.Option(help="Name of the line; default: projects-3-7 for projects 3 and 7.")
    ] = "",
    source: Annotated[
        int | None,
        typer.Option(
            "--from",
            help="Project whose version the line starts with; default: the first with a version of its own.",
            min=1,
        ),
    ] = None,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
) -> None:
    """Let projects share a line of versions: it learns from the corrections of all of them."""
    from worker.lines import share_line

    opened, numbers = _open(data_dir, model_dir, preset, versions_url, weights), _numbers(projects)
    store = opened.store
    other = None if source is None else store.line_of(source)
    line = share_line(store, opened.model_dir, numbers, name, other)
    echo(f"projects {', '.join(map(str, store.state().groups[line]))} share the line {line}")
    _announce(opened, line)


@app.command()
def unshare(
    projects: Projects,
    data_dir: DataDirOption = None,
    model_dir: ModelDir = None,
    preset: Preset = None,
    weights: Weights = None,
    versions_url: VersionsUrl = None,
) -> None:
    """Give projects lines of their own again; each goes on with a copy of the version that serves it."""
    from worker.lines import unshare_line

    opened, numbers = _open(data_dir, model_dir, preset, versions_url, weights), _numbers(projects)
    unshare_line(opened.store, opened.model_dir, numbers)
    for number in numbers:
        _announce(opened, line_of_project(number))


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
    store = _open(data_dir, model_dir, preset, versions_url).store
    plan = plan_pruning(store, keep)
    for version_id, why in sorted(plan.kept.items()):
        echo(f"{version_id} stays: {why}")
    verb = "goes" if yes else "would go"
    for version_id, size_bytes in plan.removed.items():
        echo(f"{version_id} {verb}: {_megabytes(size_bytes)}, {store.get(version_id).reason}")
    for name, size_bytes in plan.leftovers.items():
        echo(f"{name} {verb}: {_megabytes(size_bytes)}, left by an interrupted writer")
    if yes:
        remove_versions(store, plan)
    echo(f"{_megabytes(plan.bytes_freed)} {'freed' if yes else 'would be freed; --yes does it'}")


def _megabytes(size_bytes: int) -> str:
    return f"{size_bytes / 1e6:.1f} MB"


def held_out_figure(card: VersionCard) -> str:
    """The gate's metric, incumbent -> candidate, in percent; empty if it was not measured."""
    metrics = card.metrics
    name = metrics.get("metric", "gIoU")
    try:
        before, after = (float(metrics[side][name]) for side in ("incumbent", "candidate"))
    except (LookupError, TypeError, ValueError, OverflowError):  # not measured, or damaged
        return ""
    counts = f"{metrics.get('held_out_samples')} labels, {metrics.get('held_out_images')} images"
    return f"{name} {100 * before:.1f} -> {100 * after:.1f} % ({counts})"


def served_lines(state: StoreState, version_id: str, line: str | None = None) -> list[str]:
    """The lines that a version serves, of all or of one; `default` stands for lines without their own."""
    if line is not None:
        return [line] if state.current(line) == version_id else []
    own = [name for name, each in state.lines.items() if each.version_id == version_id]
    return [*own, *(["default"] if state.default.version_id == version_id else [])]


def _line_of(store: VersionStore, version_id: str) -> str:
    """The line of a version, if it serves anybody."""
    line, state = store.get(version_id).line, store.state()
    project = project_of_line(line)
    if project is not None and (serving := state.line_of(project)) != line:
        way = "" if serving == SHARED_LINE else f": `sspsam versions unshare --projects {project}` first"
        raise typer.BadParameter(
            f"{version_id} belongs to {line}, but the line {serving} serves project {project}{way}"
        )
    return line


def _only_line(state: StoreState) -> str:
    """The line to act on if no project is named."""
    from sspsam.version_store.store import VersionStateError

    try:
        return state.only_line()
    except VersionStateError as error:
        raise typer.BadParameter(f"{error} with --project") from error


def _numbers(projects: str) -> list[int]:
    """Parses numbers of projects with commas between them."""
    numbers = [number.strip() for number in projects.split(",")]
    if not all(number.isdecimal() and 0 < int(number) < 10**MOST_DIGITS for number in numbers):
        raise typer.BadParameter(f"expected numbers of projects such as 3,7, got {projects!r}")
    return [int(number) for number in numbers]


@dataclass(frozen=True)
class _Opened:
    """The versions that a command acts on."""

    store: VersionStore
    redis_url: str
    """Redis of the backends that serve from them."""
    model_dir: Path


def _open(
    data_dir: Path | None,
    model_dir: Path | None,
    preset: str | None,
    versions_url: str | None,
    weights: Path | None = None,
) -> _Opened:
    """Opens the selected store; prints which."""
    from backend.cli.instance_settings import versions_settings
    from backend.service import version_store
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
    return _Opened(version_store(settings), settings.redis_url, settings.model_dir)


def _print_table(cards: list[VersionCard], serves: Mapping[str, list[str]]) -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    console = Console()
    if not console.is_terminal:
        console = Console(width=PLAIN_WIDTH)
    rest = "all others" if {*chain(*serves.values())} - {"default"} else "yes"
    table = Table("version", "line", "serves", "status", "held-out corrections", "why", "made")
    for card in cards:
        lines = ", ".join(name.replace("default", rest) for name in serves[card.version_id])
        figure = held_out_figure(card)
        cells = (card.version_id, card.line, lines, card.status, figure, card.reason, card.created_at)
        table.add_row(*(Text(printable(cell)) for cell in cells))  # Text: brackets are no markup
    console.print(table)


def _announce(opened: _Opened, line: str) -> None:
    """Notifies running backends; those that miss the message poll every few seconds."""
    from redis.exceptions import RedisError

    from backend.shared_redis import announce_version, connect

    current = opened.store.current(line)
    echo(f"{current} serves {line or 'every line without a version of its own'} from now on")
    try:
        announce_version(connect(opened.redis_url), line, current)
    except RedisError:
        echo("Redis does not respond; running backends will notice within a few seconds")
