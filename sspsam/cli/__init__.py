"""The console script `sspsam`: the commands of all installed packages.

Packages register commands under the entry point group "sspsam.commands", each a `typer.Typer`. Errors that
the user can fix are printed as one line, without a traceback, with exit status

    1  it failed: a service is down, a file is damaged, the disk is full
    2  invalid use: a wrong value or name, an unsuitable file

All other errors are bugs and keep their traceback. So does every error if LOG_LEVEL is DEBUG.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points, version
from typing import Annotated, NoReturn

import typer

from sspsam.cli.models import adopt_ready_model
from sspsam.cli.output import echo

DISTRIBUTION = "ssp-sam-assist"
COMMANDS_GROUP = "sspsam.commands"

SAFE_PATH_VARIABLE = "PYTHONSAFEPATH"
"""Prevents imports from the current folder, where a `worker.py` may be an unrelated file."""

FAILED = 1
ASKED_WRONGLY = 2


def main(arguments: Sequence[str] | None = None) -> NoReturn:
    """Runs one command and exits.

    Args:
        arguments: Arguments after `sspsam`; the process's own by default.
    """
    if arguments is None:
        os.environ.setdefault(SAFE_PATH_VARIABLE, "1")  # for children such as multiprocessing's
    command = typer.main.get_command(build_app())
    try:
        adopt_ready_model()
        command.main(None if arguments is None else list(arguments), prog_name="sspsam")
    except Exception as error:
        if not is_expected(error) or os.environ.get("LOG_LEVEL", "").upper() == "DEBUG":
            raise
        echo(f"sspsam: {describe(error)}", fg=typer.colors.RED, err=True)
        sys.exit(exit_code(error))
    sys.exit(0)


def build_app() -> typer.Typer:
    """Builds the command line from the installed packages' commands; none of them loads a model for that."""
    app = typer.Typer(
        name="sspsam",
        help="Type a phrase, get the object's mask; corrections fine-tune the model.",
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    app.callback()(_common_options)
    for entry in sorted(entry_points(group=COMMANDS_GROUP), key=lambda entry: entry.name):
        package: typer.Typer = entry.load()
        app.registered_commands += package.registered_commands
        app.registered_groups += package.registered_groups
    return app


def is_expected(error: Exception) -> bool:
    """Whether the user can fix the error: one defined by our packages, or by the operating system."""
    return isinstance(error, OSError) or _package(type(error)) in _our_packages()


def describe(error: Exception) -> str:
    """The error in one line."""
    text = " ".join(str(error).split())
    if isinstance(error, OSError) and error.strerror and _package(type(error)) == "builtins":
        text = error.strerror + (f": {error.filename}" if error.filename else "")
    return text or type(error).__name__


def exit_code(error: Exception) -> int:
    """`ASKED_WRONGLY` for errors about values and names, `FAILED` for the others."""
    return ASKED_WRONGLY if isinstance(error, ValueError | LookupError) else FAILED


def _package(kind: type[BaseException]) -> str:
    return kind.__module__.partition(".")[0]


def _our_packages() -> set[str]:
    """Packages that add commands; errors defined in them are meant for users."""
    return {entry.module.partition(".")[0] for entry in entry_points(group=COMMANDS_GROUP)}


def _print_version(wanted: bool) -> None:
    if wanted:
        echo(f"sspsam {version(DISTRIBUTION)}")
        raise typer.Exit


def _common_options(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Options before any command."""
