"""`sspsam weights`: lists, downloads, verifies and converts public weights."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.output import echo

if TYPE_CHECKING:
    from rich.console import Console

    from sspsam.checkpoints.files import WeightsFolder
    from sspsam.checkpoints.hub import Progress
    from sspsam.checkpoints.registry import PublicFile

app = typer.Typer(help="Public weights: list, pull, verify, convert, bundle.", no_args_is_help=True)

SUBFOLDER = "weights"
"""Below MODEL_DIR, for downloads."""

ModelDir = Annotated[
    Path | None,
    typer.Option(
        envvar="MODEL_DIR",
        help="Downloads are stored in its folder `weights`. Default: `./models` if it exists, else "
        "~/.local/share/sspsam/models.",
        file_okay=False,
    ),
]
Mirror = Annotated[
    str,
    typer.Option(
        envvar="WEIGHTS_MIRROR",
        metavar="FOLDER|URL",
        help="Folder or URL to take files from instead of the internet, under their local names.",
    ),
]
Hub = Annotated[str, typer.Option(envvar="HF_ENDPOINT", help="URL of the Hugging Face hub.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]
DEFAULT_HUB = "https://huggingface.co"


@app.command("list")
def list_weights(
    hub_files: Annotated[
        bool, typer.Option("--hub-files", help="List all files of SSP-SAM's authors on the hub.")
    ] = False,
    model_dir: ModelDir = None,
    hub: Hub = DEFAULT_HUB,
    as_json: AsJson = False,
) -> None:
    """List public weights: size, licence, URL, sha256 and its source, and whether they are downloaded."""
    folder = downloads(model_dir, hub=hub)
    files = folder.hub_files() if hub_files else folder.files()
    rows = [
        {**asdict(file), "file": str(folder.path(file)), "here": folder.path(file).is_file()}
        for file in files
    ]
    if as_json:
        echo(json.dumps(rows, indent=2))
        return
    for file, row in zip(files, rows, strict=True):
        echo(file.name, bold=True)
        echo(f"  {file.what}; {_size(file.size_bytes)}; {file.licence}")
        echo(f"  {file.url}")
        echo(f"  sha256 {file.sha256 or 'not in this table'} ({file.sha256_from})")
        echo(f"{'file: ' + str(row['file']) if row['here'] else 'not downloaded'}")


@app.command()
def pull(
    names: Annotated[
        list[str],
        typer.Argument(metavar="NAME...", help="As in the list, or hub:<path>.", show_default=False),
    ],
    model_dir: ModelDir = None,
    mirror: Mirror = "",
    hub: Hub = DEFAULT_HUB,
    own: Annotated[
        Path | None,
        typer.Option(
            "--file",
            metavar="PATH",
            help="Take this file instead of downloading; for one NAME. Its sha256 must be the published one, "
            "where that is known.",
            dir_okay=False,
        ),
    ] = None,
) -> None:
    """Download weights; an interrupted download resumes.

    Example: sspsam weights pull clip-vit-b-16 sam-vit-h ssp-sam-224-grefcoco
    """
    from sspsam.checkpoints.registry import find_public_file

    if own is not None and len(names) != 1:
        raise typer.BadParameter(f"it is one file, and {len(names)} are named", param_hint="--file")
    folder = downloads(model_dir, mirror, hub)
    for file in [find_public_file(name) for name in names]:
        if own is not None:
            record = folder.place(file, own)
        else:
            with show_progress(file) as progress:
                record = folder.pull(file, progress)
        echo(f"{file.name}: {folder.path(file)}")
        echo(f"  sha256 {record.sha256} ({record.sha256_from})")


@app.command()
def verify(
    names: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[NAME|FILE]...",
            help="Names as in the list, or converted files; by default all downloaded ones.",
            show_default=False,
        ),
    ] = None,
    model_dir: ModelDir = None,
) -> None:
    """Verify files by sha256; exit status 1 if one differs or is missing."""
    from sspsam.checkpoints.convert import verify_bundle
    from sspsam.checkpoints.registry import HUB_PREFIX, find_public_file

    folder = downloads(model_dir)
    here = [file.name for file in folder.files() if folder.path(file).is_file()]
    answers = {
        name: verify_bundle(Path(name))
        if name.endswith(".safetensors") and not name.startswith(HUB_PREFIX)
        else folder.verify(find_public_file(name))
        for name in names or here
    }
    for name, condition in answers.items():
        echo(f"{name}: {condition}")
    if not answers:
        echo(f"nothing to verify in {folder.folder}")
    if any(condition != "good" for condition in answers.values()):
        raise typer.Exit(1)


@app.command()
def convert(
    sources: Annotated[
        list[str],
        typer.Argument(
            metavar="SOURCE...",
            help="A checkpoint of SSP-SAM's authors, and CLIP and SAM for missing parts: files, or names of "
            "downloaded ones.",
            show_default=False,
        ),
    ],
    preset: Annotated[str, typer.Option(help="Variant that they belong to.", show_default=False)],
    out: Annotated[
        Path, typer.Option(help="The .safetensors file to write.", dir_okay=False, show_default=False)
    ],
    sam_encoder: Annotated[
        str | None,
        typer.Option(
            envvar="SAM_ENCODER",
            metavar="NAME",
            help="SAM image encoder that replaces the preset's, such as `mobile`; its file is required too.",
        ),
    ] = None,
    for_training: Annotated[
        bool, typer.Option("--for-training", help="Only CLIP and SAM, for training the rest from scratch.")
    ] = False,
    model_dir: ModelDir = None,
) -> None:
    """Write one safetensors file for serving, with a card next to it. No code in a source is run.

    Example: sspsam weights convert ssp-sam-224-grefcoco clip-vit-b-16 sam-vit-h --preset ssp-sam-224
    --out ssp-sam-224.safetensors
    """
    from sspsam.checkpoints.convert import card_path
    from sspsam.checkpoints.convert import convert as convert_files
    from sspsam.presets import with_image_encoder

    preset = with_image_encoder(preset, sam_encoder)
    card = convert_files(_find(sources, downloads(model_dir)), preset, out, for_training)
    echo(f"{out}: {card.tensors} tensors, {_size(card.size_bytes)}, of {card.preset}")
    for source in card.sources:
        echo(f"  {source.tensors} from {source.file} ({source.layout}; {source.licence})")
    echo(f"Card: {card_path(out)}")
    if card.complete:
        echo(f'Try it: sspsam predict IMAGE "PHRASE" --preset {preset} --weights {out}')


def downloads(model_dir: Path | None = None, mirror: str = "", hub: str = DEFAULT_HUB) -> WeightsFolder:
    """The folder of public weights: of MODEL_DIR, or of the user's folder."""
    from sspsam.checkpoints.files import WeightsFolder
    from sspsam.instance import default_model_dir

    told = os.environ.get("MODEL_DIR")
    place = (model_dir or (Path(told) if told else default_model_dir())) / SUBFOLDER
    return WeightsFolder(place, mirror, hub, token=os.environ.get("HF_TOKEN", ""))


def _find(sources: Sequence[str], folder: WeightsFolder) -> list[Path]:
    """Files by path, or by the names of downloaded weights."""
    from sspsam.checkpoints.registry import HUB_PREFIX, find_public_file

    paths = []
    for source in sources:
        path = Path(source)
        if not path.exists() and (not path.suffix or source.startswith(HUB_PREFIX)):
            path = folder.path(find_public_file(source))
            if not path.is_file():
                raise typer.BadParameter(f"{source} is missing: sspsam weights pull {source}")
        paths.append(path)
    return paths


@contextmanager
def show_progress(file: PublicFile) -> Iterator[Progress]:
    """Shows a download on stderr: a bar on a terminal, else a line for each tenth."""
    from rich.console import Console

    console = Console(stderr=True)
    if console.is_terminal:
        with _bar(file, console) as progress:
            yield progress
    else:
        yield _lines(file)


def _lines(file: PublicFile) -> Progress:
    shown = 0

    def progress(done: int, total: int | None) -> None:
        nonlocal shown
        tenth = 10 * done // total if total else 0
        if tenth > shown:
            shown = tenth
            echo(f"{file.name}: {10 * tenth} % of {_size(total)}", err=True)

    return progress


@contextmanager
def _bar(file: PublicFile, console: Console) -> Iterator[Progress]:
    from rich.progress import BarColumn, DownloadColumn, TextColumn, TimeRemainingColumn, TransferSpeedColumn
    from rich.progress import Progress as Bars

    columns = (
        TextColumn("{task.description}"), BarColumn(), DownloadColumn(binary_units=False),
        TransferSpeedColumn(), TimeRemainingColumn(),
    )  # fmt: skip
    with Bars(*columns, console=console, transient=True) as bars:
        task = bars.add_task(file.name, total=file.size_bytes)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def _size(size_bytes: int | None) -> str:
    return "size unknown" if size_bytes is None else f"{size_bytes / 1e6:,.0f} MB"
