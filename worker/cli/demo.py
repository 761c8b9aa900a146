"""`sspsam up` and `sspsam demo`."""

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

from sspsam.cli.models import ModelOption, YesOption, use_model
from sspsam.cli.output import echo
from sspsam.cli.weights import Mirror

app = typer.Typer()

INTERRUPTED = 130
"""Exit status of a program stopped with Ctrl-C."""

BackendPort = Annotated[
    int, typer.Option(envvar="PORT", help="Port of the backend, on 127.0.0.1.", min=1, max=65535)
]


LabelStudioPort = Annotated[int, typer.Option(help="Port of Label Studio, on 127.0.0.1.", min=1, max=65535)]
ServiceDataDir = Annotated[Path, typer.Option(help="Folder for Redis data, models and logs.")]
DemoDataDir = Annotated[Path, typer.Option(help="Folder for all data, reused by the next start.")]
LabelStudioProgram = Annotated[
    Path, typer.Option(help="Path of the label-studio executable, in its own venv.", envvar="LABEL_STUDIO")
]


@app.command()
def up(
    model: ModelOption = None,
    backend_port: BackendPort = 9090,
    data_dir: ServiceDataDir = Path(".sspsam"),
    mirror: Mirror = "",
    yes: YesOption = False,
) -> None:
    """Run the backend, a worker and the scheduler, with an embedded Redis.

    LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY name your own Label Studio. If REDIS_URL is set, that Redis is
    used. Ctrl-C, SIGTERM or the failure of any part stops everything.
    """

    def run() -> None:
        from rich.console import Console

        from worker.local.up import Port, check_up, up

        port = Port(backend_port, "backend", "--backend-port")
        check_up(port)
        use_model(model, mirror, yes, os.environ.get("SAM_ENCODER"))
        up(data_dir, port, Console())

    explain_failures(data_dir, run)


@app.command()
def demo(
    model: ModelOption = None,
    backend_port: BackendPort = 9090,
    label_studio_port: LabelStudioPort = 8080,
    data_dir: DemoDataDir = Path(".demo"),
    label_studio: LabelStudioProgram = Path(".venv-label-studio/bin/label-studio"),
    mirror: Mirror = "",
    yes: YesOption = False,
) -> None:
    """Run the complete loop on this machine: the service, Label Studio, and a project with images.

    Prints the pages to open and phrases to type once everything is ready. Ctrl-C, SIGTERM or the failure of
    any part stops everything.
    """

    def run() -> None:
        from rich.console import Console

        from worker.local.demo import DemoOptions, check, demo

        options = DemoOptions(data_dir, backend_port, label_studio_port, label_studio)
        check(options)
        use_model(model, mirror, yes, os.environ.get("SAM_ENCODER"))
        demo(options, Console())

    explain_failures(data_dir, run)


def explain_failures(data_dir: Path, run: Callable[[], None]) -> None:
    """Runs the service; on failure, reports which part failed and how.

    The exit status is 0 after SIGTERM, with which service managers stop a program, and 130 after Ctrl-C.
    """
    from worker.local.stop_signals import StopRequested, StopSignals

    try:
        with StopSignals():  # before the imports, which take a while
            from worker.local.supervisor import SupervisorError

            try:
                run()
            except SupervisorError as error:
                echo(
                    f"{error}; all other parts have been stopped. Last lines of its log:", fg="red", err=True
                )
                echo("\n".join(f"    {line}" for line in error.last_lines), err=True)
                echo(f"Full log: {data_dir / 'logs' / error.part}.log", err=True)
                raise typer.Exit(1) from error
    except StopRequested as stop:
        echo("Everything has been stopped.")
        raise typer.Exit(0 if stop.number == signal.SIGTERM else INTERRUPTED) from None
