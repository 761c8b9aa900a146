"""`sspsam up` and `sspsam demo`."""

import signal
from collections.abc import Callable
from pathlib import Path
from typing import Annotated

import typer

app = typer.Typer()

INTERRUPTED = 130
"""The exit status of a program ended with Ctrl-C."""

BackendPort = Annotated[
    int, typer.Option(envvar="PORT", help="Port of the backend, on 127.0.0.1.", min=1, max=65535)
]


LabelStudioPort = Annotated[int, typer.Option(help="Port of Label Studio, on 127.0.0.1.", min=1, max=65535)]
ServiceDataDir = Annotated[Path, typer.Option(help="Where Redis's data, the models and the logs are kept.")]
DemoDataDir = Annotated[Path, typer.Option(help="Where everything is kept, for the next start to find.")]
LabelStudioProgram = Annotated[
    Path, typer.Option(help="The program label-studio, in a venv of its own.", envvar="LABEL_STUDIO")
]


@app.command()
def up(backend_port: BackendPort = 9090, data_dir: ServiceDataDir = Path(".sspsam")) -> None:
    """Run the backend, a worker and the schedule, with an embedded Redis.

    Your own Label Studio is found by LABEL_STUDIO_URL and LABEL_STUDIO_API_KEY. With REDIS_URL set, that
    Redis is used. Everything ends with Ctrl-C or SIGTERM, or when one part fails.
    """

    def run() -> None:
        from rich.console import Console

        from worker.local.up import Port, up

        up(data_dir, Port(backend_port, "backend", "--backend-port"), Console())

    explain_failures(data_dir, run)


@app.command()
def demo(
    backend_port: BackendPort = 9090,
    label_studio_port: LabelStudioPort = 8080,
    data_dir: DemoDataDir = Path(".demo"),
    label_studio: LabelStudioProgram = Path(".venv-label-studio/bin/label-studio"),
) -> None:
    """Run the whole loop on this machine: the service, a Label Studio, and a project of pictures.

    Ends with what to open and what to type. Everything ends with Ctrl-C or SIGTERM, or when one part fails.
    """

    def run() -> None:
        from rich.console import Console

        from worker.local.demo import DemoOptions, demo

        demo(DemoOptions(data_dir, backend_port, label_studio_port, label_studio), Console())

    explain_failures(data_dir, run)


def explain_failures(data_dir: Path, run: Callable[[], None]) -> None:
    """Runs the service; says which part failed, and how, if one did.

    SIGTERM is how service managers stop a program: the exit status is 0 then, and 130 after Ctrl-C.
    """
    from worker.local.supervisor import StopRequested, StopSignals

    try:
        with StopSignals():  # from the first moment: importing the parts takes a while
            from worker.local.supervisor import SupervisorError

            try:
                run()
            except SupervisorError as error:
                typer.secho(f"{error}; everything else has been ended. Its last lines:", fg="red", err=True)
                typer.echo("\n".join(f"    {line}" for line in error.last_lines), err=True)
                typer.echo(f"The whole log: {data_dir / 'logs' / error.part}.log", err=True)
                raise typer.Exit(1) from error
    except StopRequested as stop:
        typer.echo("Everything has been ended.")
        raise typer.Exit(0 if stop.number == signal.SIGTERM else INTERRUPTED) from None
