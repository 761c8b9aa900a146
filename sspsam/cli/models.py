"""`--model` of the commands that load or serve one: makes it ready and selects it for this process."""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from sspsam.cli.output import echo
from sspsam.cli.weights import DEFAULT_HUB, Mirror, downloads, show_progress
from sspsam.cli.weights import app as weights_app

if TYPE_CHECKING:
    from sspsam.checkpoints.hub import Progress
    from sspsam.checkpoints.ready_models import PublishedModel, ReadyModel
    from sspsam.checkpoints.registry import PublicFile

VARIABLE = "MODEL"
SELECTING = ("PRESET", "WEIGHTS")
"""Variables that select a model by its parts."""
CHOICE_POLL_S = 2.0

ModelOption = Annotated[
    str | None,
    typer.Option(
        "--model",
        envvar=VARIABLE,
        metavar="NAME|FILE",
        help="stickers (in the package); photographs (ssp-sam-224, with MobileSAM's image encoder unless "
        "there is a large GPU); ssp-sam-224, ssp-sam-336, or either with -with-mobile; or a file written by "
        "`sspsam weights bundle`. What is missing is downloaded and converted, once.",
        show_default=False,
    ),
]
YesOption = Annotated[
    bool, typer.Option("--yes", "-y", help="Start although disk or memory do not suffice for the model.")
]


def use_model(
    name: str | None,
    mirror: str = "",
    yes: bool = False,
    sam_encoder: str | None = None,
    follow: bool = False,
) -> Callable[[], bool]:
    """Makes a model ready, and selects it by variables of this process and of those that it starts.

    Args:
        name: as for ModelOption; None changes nothing.
        mirror: folder or URL to take files from instead of the internet.
        yes: start although something does not suffice.
        sam_encoder: replaces the model's SAM image encoder.
        follow: another process chooses the model for photographs; wait for it.

    Returns:
        Whether the process that is followed has chosen another model since: this one should then end, to be
        started again. Always False for a process that follows none.

    Raises:
        NotEnoughError, DownloadError, ModelError: as for `preparing.prepare`.
        typer.BadParameter: another model is selected by its parts.
    """
    if not name:
        return lambda: False
    from sspsam.checkpoints.ready_models import PHOTOGRAPHS, noted_choice

    name = _with_encoder(name, sam_encoder)
    _check_alone(name)
    ready = make_ready(name, mirror, yes, follow=follow)
    os.environ.update(ready.variables)
    os.environ.pop(VARIABLE, None)
    folder = downloads(None).folder

    def has_changed() -> bool:
        chosen = noted_choice(folder) if follow and name == PHOTOGRAPHS else None
        return chosen is not None and chosen.preset != ready.preset

    return has_changed


def make_ready(
    name: str, mirror: str = "", yes: bool = False, to_serve: bool = True, follow: bool = False
) -> ReadyModel:
    """Makes a model ready: at once where nothing is missing.

    Args:
        name: as for ModelOption.
        mirror: folder or URL to take files from instead of the internet.
        yes: start although something does not suffice.
        to_serve: whether it is to be loaded on this machine.
        follow: as for `use_model`.

    Raises:
        NotEnoughError, DownloadError, ModelError: as for `preparing.prepare`.
    """
    from sspsam.checkpoints.ready_models import (
        PACKAGED,
        PHOTOGRAPHS,
        find_model,
        is_file_name,
        note_choice,
        noted_choice,
        ready_without_choosing,
    )

    folder = downloads(None, mirror, os.environ.get("HF_ENDPOINT") or DEFAULT_HUB)
    if name == PACKAGED or is_file_name(name):
        ready = ready_without_choosing(name, folder.folder)
        assert ready is not None
        return ready
    chosen = name == PHOTOGRAPHS
    if chosen and follow:
        return _choice_of_another(folder.folder)
    model = _chosen() if chosen else find_model(name)
    if chosen and (to_serve or noted_choice(folder.folder) is None):
        # Before it is prepared: those that follow must not start with an earlier choice meanwhile.
        note_choice(model.preset, folder.folder)

    from sspsam.checkpoints.preparing import Machine, prepare

    machine = Machine.here(folder.folder, _device())
    return prepare(model, folder, machine, TerminalReporter(), _always if yes else _confirmed, to_serve)


def adopt_ready_model() -> None:
    """Selects the model that MODEL names, if it is ready, for commands without an option for it.

    Other programs use a variable of this name as well: an unknown value is left to the commands that have the
    option.
    """
    name = os.environ.get(VARIABLE)
    if not name or any(os.environ.get(variable) for variable in SELECTING):
        return
    from sspsam.checkpoints.ready_models import ModelError, ready_without_choosing

    try:
        named = _with_encoder(name, os.environ.get("SAM_ENCODER"))
        ready = ready_without_choosing(named, downloads(None).folder)
    except (ModelError, typer.BadParameter):
        return
    if ready:
        os.environ.update(ready.variables)


class TerminalReporter:
    """Shows progress on stderr: stdout belongs to the command's result."""

    def say(self, line: str) -> None:
        echo(line, err=True)

    @contextmanager
    def downloading(self, file: PublicFile) -> Iterator[Progress]:
        with show_progress(file) as progress:
            yield progress


def _check_alone(name: str) -> None:
    """Raises typer.BadParameter if variables select another model by its parts.

    They may be those that `adopt_ready_model` has set.
    """
    given = {variable: os.environ[variable] for variable in SELECTING if os.environ.get(variable)}
    if not given:
        return
    from sspsam.checkpoints.ready_models import ready_without_choosing

    ready = ready_without_choosing(name, downloads().folder)
    own = ready.variables if ready else {}
    for variable, value in given.items():
        if own.get(variable) != value:
            raise typer.BadParameter(
                f"{variable}={value} selects another model: unset it, or leave --model out",
                param_hint="--model",
            )


def _with_encoder(name: str, sam_encoder: str | None) -> str:
    """The name of the model with another image encoder."""
    if not sam_encoder:
        return name
    from sspsam.checkpoints.ready_models import MODELS, PHOTOGRAPHS, WITH_GPU
    from sspsam.presets import with_image_encoder

    base = WITH_GPU if name == PHOTOGRAPHS else name
    if base not in MODELS:
        raise typer.BadParameter(f"model {name} has its own image encoder", param_hint="--sam-encoder")
    try:
        return with_image_encoder(base, sam_encoder)
    except ValueError as error:
        raise typer.BadParameter(str(error), param_hint="--sam-encoder") from error


def _chosen() -> PublishedModel:
    from sspsam.checkpoints.preparing import choose
    from sspsam.runtime.capacity import gpu_memory_bytes

    model, reason = choose(gpu_memory_bytes(_device()))
    echo(f"Model for photographs: {model.preset} ({reason})", err=True)
    return model


def _choice_of_another(folder: Path) -> ReadyModel:
    """Waits until the backend has chosen and prepared a model: others may run on machines without its GPU."""
    from sspsam.checkpoints.ready_models import PHOTOGRAPHS, ready_without_choosing

    if (ready := ready_without_choosing(PHOTOGRAPHS, folder)) is None:
        echo(
            f"Waiting for the backend to choose and prepare the model for photographs in {folder}. If it has "
            "another MODEL_DIR, set MODEL to the name that it prints.",
            err=True,
        )
    while ready is None:
        time.sleep(CHOICE_POLL_S)
        ready = ready_without_choosing(PHOTOGRAPHS, folder)
    return ready


def _device() -> str:
    return os.environ.get("DEVICE") or "auto"


def _always(short: Sequence[str]) -> bool:
    return True


def _confirmed(short: Sequence[str]) -> bool:
    """Asks a person; without one, the answer is no."""
    if not sys.stdin.isatty():
        return False
    for line in short:
        echo(f"Not enough {line}", fg=typer.colors.YELLOW, err=True)
    return typer.confirm("Start nevertheless?", err=True)


@weights_app.command()
def bundle(
    out: Annotated[
        Path, typer.Option(help="The .safetensors file to write.", dir_okay=False, show_default=False)
    ],
    model: Annotated[
        str, typer.Argument(metavar="[MODEL]", help="As for `sspsam up --model`.")
    ] = "photographs",
    mirror: Mirror = "",
    yes: YesOption = False,
) -> None:
    """Write all weights of a model to one file, to carry to a machine without internet.

    There, `sspsam up --model FILE` serves it. The card next to it, `.json`, has its sha256: if both are
    carried, they are compared.
    """
    from sspsam.checkpoints.preparing import copy_bundle

    sha256 = copy_bundle(make_ready(model, mirror, yes, to_serve=False), out)
    echo(f"{out}: sha256 {sha256}")
    echo(f"Serve it: sspsam up --model {out}")
