"""`sspsam reproduce`: the paper's tables for the data sets on this machine."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.commands import DeviceOption
from sspsam.cli.output import echo

if TYPE_CHECKING:
    from finetune.data.sample import Dataset
    from finetune.evaluation.evaluate import EvaluationResult
    from finetune.training.ranks import Ranks
    from sspsam import Predictor

app = typer.Typer()

EVERY = "all"


@app.command()
def reproduce(
    data: Annotated[
        Path,
        typer.Option(help="Folder of the published data sets, as in docs/training.md.", file_okay=False),
    ],
    weights: Annotated[
        list[str] | None,
        typer.Option(
            metavar="[DATASET=]FILE",
            help="Bundle of `sspsam weights convert` or `bundle` for a data set, such as "
            "refcoco=refcoco-224.safetensors, or for all that have none of their own. Repeatable.",
        ),
    ] = None,
    out: Annotated[
        Path, typer.Option(help="Folder of results; splits with a result there are not run again.")
    ] = Path("reports/paper"),
    device: DeviceOption = "auto",
) -> None:
    """Evaluate every published split in the folder, and print the paper's tables beside ours.

    What is missing is named with its source. Without weights nothing is evaluated; the cells say "not run".

    Example: sspsam reproduce --data /data --weights grefcoco=photographs.safetensors
    """
    from finetune.evaluation.reproduction import SPLITS, find_split, rows_of, tables
    from finetune.training.train import tune_process
    from sspsam.files import sha256_of_file

    given = _by_data_set(weights or [], list(SPLITS))
    sha256 = {path: sha256_of_file(path) for path in set(given.values())}
    known = {name: sha256[path] for name, path in given.items()}
    tune_process()
    reasons = {}
    for row in rows_of(out, known, {}):
        if row.figures is not None:
            continue
        samples = find_split(row.name, row.split, data)
        if isinstance(samples, str):
            reasons[row.spec] = samples
        elif row.name not in given:
            reasons[row.spec] = f"no weights: name a bundle with --weights {row.name}=FILE"
        else:
            _evaluate(row.name, row.split, samples, given[row.name], known[row.name], out, device)
    text = tables(rows_of(out, known, reasons))
    out.mkdir(parents=True, exist_ok=True)
    (out / "tables.md").write_text(text, encoding="utf-8")
    echo(text)


def _by_data_set(given: Sequence[str], names: Sequence[str]) -> dict[str, Path]:
    """Data set -> file."""
    found: dict[str, Path] = {}
    for entry in given:
        prefix, equals, path = entry.partition("=")
        name = prefix if equals and prefix in names else EVERY
        file = Path(entry if name == EVERY else path)  # whose path may have "=" as well
        if not file.is_file():
            hint = f"; {prefix!r} is none of {', '.join(names)}" if equals and name == EVERY else ""
            raise typer.BadParameter(f"no file {file}{hint}", param_hint="--weights")
        found[name] = file
    return {name: found.get(name) or found[EVERY] for name in names if name in found or EVERY in found}


def _evaluate(
    name: str, split: str, samples: Dataset, weights: Path, sha256: str, out: Path, device: str
) -> None:
    from finetune.evaluation.report import write_evaluation
    from finetune.evaluation.reproduction import PROTOCOL, result_folder
    from finetune.training.ranks import Ranks
    from sspsam import Predictor
    from sspsam.checkpoints.ready_models import of_file

    echo(f"{name}/{split}", err=True)
    model = of_file(weights)
    predictor = Predictor.from_preset(model.preset, device, model.weights)
    result = evaluate_with_progress(predictor, samples, PROTOCOL, Ranks())
    about = {
        "model": model.preset, "weights": str(weights), "weights sha256": sha256,
        "data set": f"{name}/{split}", "device": str(predictor.device),
    }  # fmt: skip
    write_evaluation(result_folder(out, name, split), result, about)


def evaluate_with_progress(
    predictor: Predictor, dataset: Dataset, protocol: str, processes: Ranks
) -> EvaluationResult:
    """Evaluates with a progress bar on stderr."""
    from rich.console import Console
    from rich.progress import Progress

    from finetune.evaluation import evaluate as evaluation

    with Progress(console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("measuring", total=len(dataset))
        return evaluation.evaluate(
            predictor,
            dataset,
            lambda done, total: bar.update(task, completed=done, total=total),
            protocol=protocol,
            processes=processes,
        )
