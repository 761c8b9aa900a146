"""Command lines that documents and deployment files hold: whether they would be understood."""

from __future__ import annotations

from collections.abc import Sequence

import click
import typer.main

from sspsam.cli import build_app


def check_command(arguments: Sequence[str]) -> None:
    """Parses what follows `sspsam` on a command line, without running it.

    Raises:
        click.UsageError: there is no such command, option or value.
    """
    command: click.Command = typer.main.get_command(build_app())
    words = list(arguments)
    context = click.Context(command, info_name="sspsam")
    while isinstance(command, click.Group):
        name, found, words = command.resolve_command(context, words)
        assert found is not None
        context = click.Context(found, info_name=name, parent=context)
        command = found
    if not {"--help", "-h"} & set(words):
        command.make_context(context.info_name, words, parent=context.parent)
