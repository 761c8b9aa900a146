"""`sspsam export`."""

from __future__ import annotations

import shutil
import sys
import tarfile
import tempfile
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, TYPE_CHECKING, Annotated, Literal

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.output import echo
from sspsam.printable import printable

if TYPE_CHECKING:
    from backend.labelstudio.client import LabelStudioClient
    from worker.export.reader import ProjectReader, Summary, Writer

app = typer.Typer()

Format = Literal["coco", "coco-polygons", "refcoco", "png"]
FOLDER_FORMATS = ("refcoco", "png")
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
            help="File to write, or folder for refcoco and png. - is standard output: the file, or a tar "
            "archive of the folder.",
            allow_dash=True,
            show_default=False,
        ),
    ],
    file_format: Annotated[
        Format,
        typer.Option(
            "--format",
            help="coco: exact masks as RLE; coco-polygons: as polygons; refcoco: RefCOCO's and gRefCOCO's "
            "layout; png: an image of each mask.",
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
    split: Annotated[str, typer.Option(help="For refcoco: the split of every phrase.")] = "train",
    data_dir: DataDirOption = None,
) -> None:
    """Export a project's labels: exact masks, each with its phrase, and the phrases that were confirmed
    to be absent.

    If several people annotated a task, each annotation is written; they are never merged. Labels are read
    from the Label Studio at LABEL_STUDIO_URL, with LABEL_STUDIO_API_KEY; else from that of the running
    `sspsam up` or `sspsam demo`.
    """
    from backend.cli.instance_settings import service_settings
    from worker.export.reader import ProjectReader, Selection
    from worker.services import Services

    services = Services(service_settings(data_dir))
    selection = Selection(
        since.replace(tzinfo=UTC) if since else None,
        until.replace(tzinfo=UTC) if until else None,
        _user_ids(services.label_studio, annotator or []),
        ground_truth,
    )
    reader = ProjectReader(
        services.label_studio, project, services.image_hw, selection, services.settings.image_max_pixels
    )
    if out == STANDARD_OUTPUT:
        summary = _export_to(sys.stdout.buffer, file_format, reader, split)
    else:
        summary = _run(reader, _writer(file_format, out, reader, split))
    for problem in summary.problems[:SHOWN_PROBLEMS]:
        echo(printable(problem), fg=typer.colors.YELLOW, err=True)
    if summary.problem_count > SHOWN_PROBLEMS:
        more = summary.problem_count - SHOWN_PROBLEMS
        echo(f"and {more} more", fg=typer.colors.YELLOW, err=True)
    if summary.several:
        echo(
            f"{summary.several} images have several annotations; each is written. Tell them apart by "
            "`label_studio_annotation` and `completed_by`",
            fg=typer.colors.YELLOW,
            err=True,
        )
    if summary.unconfirmed:
        echo(
            f"{summary.unconfirmed} phrases left in the prompt box are not exported: their absence is not "
            "confirmed",
            fg=typer.colors.YELLOW,
            err=True,
        )
    echo(
        f"{out}: masks: {summary.masks}, images: {summary.images}, "
        f"phrases without a target: {summary.no_target}",
        err=out == STANDARD_OUTPUT,
    )


def _export_to(stream: IO[bytes], file_format: Format, reader: ProjectReader, split: str) -> Summary:
    """Exports to a temporary folder and copies the complete result into the stream."""
    with tempfile.TemporaryDirectory(prefix="sspsam-export-") as folder:
        path = Path(folder) / "labels"
        summary = _run(reader, _writer(file_format, path, reader, split))
        if file_format in FOLDER_FORMATS:
            with tarfile.open(fileobj=stream, mode="w|") as archive:
                for entry in sorted(path.iterdir()):
                    archive.add(entry, entry.name)
        else:
            with path.open("rb") as source:
                shutil.copyfileobj(source, stream)
    stream.flush()
    return summary


def _run(reader: ProjectReader, writer: Writer) -> Summary:
    """Exports with a progress bar."""
    from rich import progress
    from rich.console import Console

    from worker.export.reader import export

    columns = (
        progress.TextColumn("{task.description}"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=Console(stderr=True), transient=True) as shown:
        bar = shown.add_task("Tasks", total=reader.task_count or None)
        return export(reader, writer, lambda: shown.advance(bar))


def _writer(file_format: Format, out: Path, reader: ProjectReader, split: str) -> Writer:
    from worker.export.coco import CocoWriter, RefCocoWriter
    from worker.export.png import PngWriter

    if file_format == "refcoco":
        return RefCocoWriter(out, reader, split)
    if file_format == "png":
        return PngWriter(out)
    if out.is_dir():
        raise typer.BadParameter(f"{out} is a folder, but {file_format} is a single file", param_hint="--out")
    return CocoWriter(out, reader, polygons=file_format == "coco-polygons")


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
