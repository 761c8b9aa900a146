"""`sspsam serve` and `sspsam connect`."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def serve() -> None:
    """Run the backend that Label Studio asks for masks. Settings come from the environment."""
    from backend.serve import serve as run
    from backend.settings import Settings

    run(Settings())


@app.command()
def connect(
    project: Annotated[int, typer.Option(help="Id of the Label Studio project: the number in its URL.")],
    check: Annotated[bool, typer.Option("--check", help="Only say what is missing; change nothing.")] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Replace a labeling config that lacks a needed tag.")
    ] = False,
    url: Annotated[
        str,
        typer.Option(help="The backend, as Label Studio reaches it. Default: PUBLIC_URL, or HOST and PORT."),
    ] = "",
) -> None:
    """Connect a Label Studio project: labeling config, interactive backend, webhook with its secret."""
    from backend import connect as connecting
    from backend.labelstudio.client import LabelStudioClient
    from backend.settings import Settings

    settings = Settings()
    key = settings.label_studio_api_key.get_secret_value()
    client = LabelStudioClient(settings.label_studio_url, key)
    backend_url = (url or settings.backend_url).rstrip("/")
    if check:
        lines = connecting.check_project(client, project, backend_url)
    else:
        lines = connecting.connect_project(
            client,
            project,
            backend_url,
            settings.webhook_secret.get_secret_value(),
            settings.basic_auth,
            may_replace_config=lambda question: yes or typer.confirm(question),
        )
    for line in lines or [f"project {project} has all that it needs"]:
        typer.echo(line)
    if check and lines:
        raise typer.Exit(1)
