"""`sspsam evaluate`, `sspsam gallery` and other commands on training and its data."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from finetune.cli.calibration import app as calibration_app
from finetune.cli.reproduction import app as reproduction_app
from finetune.cli.reproduction import evaluate_with_progress
from finetune.cli.scenes import app as data_app
from finetune.cli.training import app as training_app
from sspsam.cli.commands import (
    DEFAULT_PRESET,
    DeviceOption,
    ModelDirOption,
    PresetOption,
    SamEncoderOption,
    VersionOption,
    WeightsOption,
    open_predictor,
)
from sspsam.cli.output import echo
from sspsam.printable import printable

if TYPE_CHECKING:
    from finetune.evaluation.evaluate import EvaluationResult

app = typer.Typer()
app.registered_commands += [*reproduction_app.registered_commands]
app.registered_commands += [*data_app.registered_commands, *training_app.registered_commands]
app.registered_commands += [*calibration_app.registered_commands]


@app.command()
def evaluate(
    dataset: Annotated[
        str,
        typer.Option(
            metavar="NAME",
            help="stickers/val?count=200 (scenes); refcoco/testA, grefcoco/val, phrasecut/test, ..., under "
            "SSPSAM_DATA or ?root=FOLDER; or records:FILE.jsonl?images=FOLDER.",
            show_default=False,
        ),
    ],
    preset: PresetOption = None,
    version: VersionOption = None,
    weights: WeightsOption = None,
    sam_encoder: SamEncoderOption = None,
    protocol: Annotated[
        str,
        typer.Option(
            help="How masks are compared: `original`, at the images' own size; `paper`, on 512 px squares as "
            "in the paper's code. The figures differ."
        ),
    ] = "original",
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for evaluation.json and evaluation.md.", file_okay=False),
    ] = None,
    model_dir: ModelDirOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Evaluate a model on a data set, with trivial baselines.

    Several processes (`torchrun --nproc-per-node 8 --no-python sspsam evaluate ...`) share the samples.

    Example: sspsam evaluate --dataset refcoco/testA --protocol paper --out reports/testA
    """
    from finetune.data.dataset import open_dataset
    from finetune.evaluation.protocols import PROTOCOLS
    from finetune.evaluation.report import write_evaluation
    from finetune.training.ranks import join_ranks
    from finetune.training.train import tune_process

    if protocol not in PROTOCOLS:
        raise typer.BadParameter(f"{protocol!r}: expected one of {', '.join(PROTOCOLS)}")
    tune_process()
    samples = open_dataset(dataset)
    processes = join_ranks(device)
    predictor = open_predictor(
        preset, processes.device_name(device), version, model_dir, weights, sam_encoder
    )
    result = evaluate_with_progress(predictor, samples, protocol, processes)
    if not processes.is_first:
        return
    base = f"{preset or DEFAULT_PRESET}-base" if weights is None else predictor.preset
    about = {"model": version or base, "data set": dataset, "device": str(predictor.device)}
    if weights is not None:
        about["weights"] = str(weights)
    _print_result(result, about)
    if out is not None:
        write_evaluation(out, result, about)
        echo(f"Written to {out}")


@app.command()
def gallery(
    out: Annotated[Path, typer.Option(help="Image file to write.", dir_okay=False, show_default=False)],
    dataset: Annotated[
        str, typer.Option(metavar="NAME", help="As for evaluate; the first phrase of each image is used.")
    ] = "stickers/test?count=24&phrases=1",
    failures: Annotated[
        int | None, typer.Option(help="Draw this number of first wrong answers, and no right ones.", min=1)
    ] = None,
    preset: PresetOption = None,
    version: VersionOption = None,
    weights: WeightsOption = None,
    sam_encoder: SamEncoderOption = None,
    model_dir: ModelDirOption = None,
    device: DeviceOption = "auto",
) -> None:
    """Draw a model's answers side by side: right ones framed green, wrong ones red.

    Example: sspsam gallery --out gallery.png
    """
    from finetune.data.dataset import open_dataset
    from finetune.evaluation.gallery import draw_gallery
    from sspsam.images.image_io import write_picture

    samples = open_dataset(dataset)
    predictor = open_predictor(preset, device, version, model_dir, weights, sam_encoder)
    write_picture(draw_gallery(predictor, samples, failures=failures), out)
    echo(f"Written to {out}")


def _print_result(result: EvaluationResult, about: dict[str, str]) -> None:
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from finetune.evaluation.report import family_table, percent

    counts = result.counts
    table = Table(
        box=SIMPLE,
        padding=(0, 0, 0, 1),
        pad_edge=False,
        title=Text(printable(", ".join([*about.values(), result.protocol])), style="table.title"),
        caption=f"percent; {counts['samples']} phrases on {counts['images']} images, {counts['no target']} "
        "without a target",
    )
    header, rows = family_table(result)
    for index, name in enumerate(header):
        table.add_column(name, justify="right" if index else "left", no_wrap=True)
    for row in rows:
        cells, is_last = (Text(printable(cell)) for cell in row), row[0] == "all"
        table.add_row(*cells, style="bold" if is_last else "", end_section=is_last)
    console = Console()
    console.print(table)
    figures = ("Pr@0.6", "Pr@0.7", "Pr@0.8", "gIoU", "cIoU", "Acc@0.5")
    console.print(
        ", ".join(f"{name} {percent(result.overall.get(name))}" for name in figures), highlight=False
    )
    times = ", ".join(f"{name} {ms:.0f} ms" for name, ms in result.timings_ms.items())
    console.print(f"Median times: {times}", highlight=False, soft_wrap=True)
    for sample_id, reason in result.refused.items():
        console.print(
            printable(f"Unreadable phrase, counted as an empty answer: {sample_id}: {reason}"),
            markup=False,
            emoji=False,
            highlight=False,
            soft_wrap=True,
        )
