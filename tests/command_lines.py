"""Checks that command lines in documents and deployment files are valid."""

from __future__ import annotations

from collections.abc import Sequence

import typer.main

from sspsam.cli import build_app


def check_command(arguments: Sequence[str]) -> None:
    """Parses what follows `sspsam` on a command line, without running it.

    Raises:
        AssertionError: there is no such command.
        Exception: the command line parser's, for an option or a value that it refuses.
    """
    command = typer.main.get_command(build_app())
    words = list(arguments)
    name = "sspsam"
    while hasattr(command, "commands"):
        name = words.pop(0)
        assert name in command.commands, f"no command {name!r} in: {' '.join(arguments)}"
        command = command.commands[name]
    command.make_context(name, words)
