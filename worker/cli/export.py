"""`sspsam export`."""

from __future__ import annotations

import sys
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.output import echo
from sspsam.printable import printable
from worker.export.writing import FOLDER_FORMATS, Format, Target, export_to_stream, remarks, write_export

if TYPE_CHECKING:
    from backend.labelstudio.client import LabelStudioClient
    from worker.export.reader import ProjectReader, Summary

app = typer.Typer()

STANDARD_OUTPUT = Path("-")
SHOWN_PROBLEMS = 50
DATE_FORMATS = ["%Y-%m-%d", "%Y-%m-%dT%H:%M:%S"]


@app.command()
def export(
    project: Annotated[
        int, typer.Option(help="Number of the Label Studio project.", min=1, show_default=False)
    ],
    out: Annotated[
        Path,
        typer.Option(
            help="File to write, or folder for refcoco, png and yolo. - is standard output: the file, or a "
            "tar archive of the folder or of several files.",
            allow_dash=True,
            show_default=False,
        ),
    ],
    file_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="coco: exact masks as RLE; coco-polygons: as polygons; refcoco: RefCOCO's and gRefCOCO's "
            "layout; png: an image of each mask; yolo: outlines, with the pictures; yolo-detect: boxes.",
        ),
    ] = "coco",
    since: Annotated[
        datetime | None,
        typer.Option(formats=DATE_FORMATS, help="Only annotations saved at or after this time, UTC."),
    ] = None,
    until: Annotated[
        datetime | None,
        typer.Option(formats=DATE_FORMATS, help="Only annotations saved before this time, UTC."),
    ] = None,
    annotator: Annotated[
        list[str] | None, typer.Option(help="Only this user's annotations, by e-mail or id. Repeatable.")
    ] = None,
    ground_truth: Annotated[
        bool, typer.Option("--ground-truth", help="Only annotations that are marked as ground truth.")
    ] = False,
    images: Annotated[
        Path | None,
        typer.Option(help="Folder for the pictures, under the names in the export.", show_default=False),
    ] = None,
    split: Annotated[
        str,
        typer.Option(
            help="Shares of train, val and test, such as 0.8,0.1,0.1, by picture. A name is the split of "
            "everything."
        ),
    ] = "train",
    label_maps: Annotated[
        bool, typer.Option("--label-maps", help="For png: also one image of label numbers per picture.")
    ] = False,
    data_dir: DataDirOption = None,
) -> None:
    """Export a project's labels: exact masks, each with its phrase, and the phrases that were confirmed
    to be absent.

    If several people annotated a task, each annotation is written; they are never merged. YOLO's layout has
    one: the ground truth, else the latest. Labels are read
    from the Label Studio at LABEL_STUDIO_URL, with LABEL_STUDIO_API_KEY; else from that of the running
    `sspsam up` or `sspsam demo`.
    """
    from backend.cli.instance_settings import service_settings
    from worker.export.reader import ProjectReader, Selection
    from worker.export.splits import parse_split
    from worker.services import Services

    if label_maps and file_format != "png":
        raise typer.BadParameter("only for --format png", param_hint="--label-maps")
    if out.is_dir() and file_format not in FOLDER_FORMATS:
        raise typer.BadParameter(f"{out} is a folder, but {file_format} is a single file", param_hint="--out")
    services = Services(service_settings(data_dir))
    selection = Selection(
        since.replace(tzinfo=UTC) if since else None,
        until.replace(tzinfo=UTC) if until else None,
        _user_ids(services.label_studio, annotator or []),
        ground_truth,
    )
    target = Target(file_format, out, images, parse_split(split), label_maps)
    reader = ProjectReader(
        services.label_studio,
        project,
        services.image_hw,
        selection,
        services.settings.image_max_pixels,
        pictures=services.images,
        with_pictures=target.needs_pictures,
        split=target.split,
        one_each=target.is_yolo,
    )
    if out == STANDARD_OUTPUT:
        summary = export_to_stream(sys.stdout.buffer, target, reader, _run)
    else:
        summary = _run(reader, target)
    _report(summary, target)


def _report(summary: Summary, target: Target) -> None:
    """Prints problems and counts."""
    warn = partial(echo, fg=typer.colors.YELLOW, err=True)
    for problem in summary.problems[:SHOWN_PROBLEMS]:
        warn(printable(problem))
    if summary.problem_count > SHOWN_PROBLEMS:
        warn(f"and {summary.problem_count - SHOWN_PROBLEMS} more")
    for remark in remarks(summary):
        warn(printable(remark))
    counts = (
        f"masks: {summary.masks}, images: {summary.images}, phrases without a target: {summary.no_target}"
    )
    echo(f"{target.out}: {counts}", err=target.out == STANDARD_OUTPUT)
    if target.split.by_content:
        shares = ", ".join(f"{name}: {summary.splits[name]}" for name in target.split.names)
        echo(f"images of each split: {shares}", err=target.out == STANDARD_OUTPUT)


def _run(reader: ProjectReader, target: Target) -> Summary:
    """Exports with a progress bar."""
    from rich import progress
    from rich.console import Console

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("Tasks", total=reader.task_count or None)
        return write_export(reader, target, lambda: shown.advance(bar))


def _user_ids(client: LabelStudioClient, annotators: list[str]) -> frozenset[int]:
    """Returns the ids of users given by id or e-mail.

    Raises:
        typer.BadParameter: Label Studio has no such user.
    """
    if not annotators:
        return frozenset()
    by_email = {str(user.get("email", "")).casefold(): int(user["id"]) for user in client.users()}
    unknown = [name for name in annotators if not name.isdecimal() and name.casefold() not in by_email]
    if unknown:
        known = ", ".join(sorted(by_email))
        raise typer.BadParameter(
            f"no user {', '.join(unknown)}; known users: {known}", param_hint="--annotator"
        )
    return frozenset(int(name) if name.isdecimal() else by_email[name.casefold()] for name in annotators)
