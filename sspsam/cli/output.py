"""Output of commands: phrases, titles, file names and other texts cannot control the terminal."""

from __future__ import annotations

import typer

from sspsam.printable import printable


def echo(text: object = "", err: bool = False, fg: str | None = None, bold: bool | None = None) -> None:
    """Prints text with its control characters escaped, except line feeds.

    Values from others are given through `printable`, which escapes their line feeds as well.
    """
    lines = "\n".join(printable(line) for line in str(text).split("\n"))
    typer.secho(lines, err=err, fg=fg, bold=bold)
