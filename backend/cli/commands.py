"""`sspsam serve`, `sspsam secrets` and `sspsam connect`."""

from __future__ import annotations

from typing import Annotated, Literal

import typer

from sspsam.cli.commands import DataDirOption, SamEncoderOption
from sspsam.cli.models import ModelOption, YesOption, use_model
from sspsam.cli.output import echo
from sspsam.cli.weights import Mirror

app = typer.Typer()

SECRET_BYTES = 24
LEGACY_TOKEN_BYTES = 20
"""Label Studio's legacy tokens are 40 hexadecimal digits."""


@app.command()
def serve(
    model: ModelOption = None,
    mirror: Mirror = "",
    yes: YesOption = False,
    sam_encoder: SamEncoderOption = None,
) -> None:
    """Run the ML backend for Label Studio. Settings come from the environment."""
    from backend.settings import Settings
    from backend.web.access import require_secrets
    from backend.web.serve import serve as run

    if model:
        require_secrets(Settings(sam_encoder=""))  # before a long download
        use_model(model, mirror, yes, sam_encoder)
        sam_encoder = None
    run(Settings(sam_encoder=sam_encoder or ""))


@app.command("try")
def try_phrases(
    model: ModelOption = None,
    port: Annotated[int, typer.Option(help="Port of the page, on 127.0.0.1.", min=1, max=65535)] = 9099,
    mirror: Mirror = "",
    yes: YesOption = False,
    sam_encoder: SamEncoderOption = None,
) -> None:
    """Answer phrases on pictures that you upload to a page on this machine. Needs no Label Studio.

    If BASIC_AUTH_USER and BASIC_AUTH_PASS are set, the page asks for them. Pictures are not stored.

    Example: sspsam try --model photographs
    """
    from backend.service import open_predictor
    from backend.settings import Settings
    from backend.web.trial import create_trial, serve_trial

    if model:
        use_model(model, mirror, yes, sam_encoder)
        sam_encoder = None
    settings = Settings(sam_encoder=sam_encoder or "", host="127.0.0.1", port=port)
    predictor = open_predictor(settings)
    echo(f"Open http://127.0.0.1:{port}/ - Ctrl-C stops it.")
    serve_trial(create_trial(settings, predictor), port)


@app.command()
def secrets(
    label_studio: Annotated[
        bool,
        typer.Option(
            "--label-studio",
            help="Include those of the compose file's Label Studio, and the profile that starts it.",
        ),
    ] = False,
) -> None:
    """Print new secrets for the environment or .env: letters and digits only, so no quoting is needed."""
    from secrets import token_hex

    echo("BASIC_AUTH_USER=sspsam")
    for name in ("BASIC_AUTH_PASS", "WEBHOOK_SECRET", "REDIS_PASSWORD"):
        echo(f"{name}={token_hex(SECRET_BYTES)}")
    if label_studio:
        echo(f"LABEL_STUDIO_PASSWORD={token_hex(SECRET_BYTES)}")
        echo(f"LABEL_STUDIO_API_KEY={token_hex(LEGACY_TOKEN_BYTES)}")
        echo("COMPOSE_PROFILES=label-studio")


@app.command()
def connect(
    project: Annotated[int, typer.Option(help="Id of the Label Studio project: the number in its URL.")],
    check: Annotated[
        bool,
        typer.Option("--check", help="Only say what phrases are answered with and what is missing."),
    ] = False,
    yes: Annotated[
        bool, typer.Option("--yes", "-y", help="Add missing tags to the labeling config without asking.")
    ] = False,
    url: Annotated[
        str,
        typer.Option(
            help="URL of the backend as seen from Label Studio. Default: PUBLIC_URL, or HOST and PORT."
        ),
    ] = "",
    prompt: Annotated[
        str,
        typer.Option(help="Name of the text area into which phrases are typed, if it is not “prompt”."),
    ] = "",
    phrase: Annotated[
        str,
        typer.Option(help="Name of the text area under a region with its phrase, if it is not “phrase”."),
    ] = "",
    instances: Annotated[
        Literal["apart", "together"] | None,
        typer.Option(
            help="Whether each object of a phrase is a region of its own, or all are one region. Default: as "
            "it is; apart at first.",
            show_default=False,
        ),
    ] = None,
    unsure: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Probability of a target from which annotators get a mask; below the model's own threshold "
            "it is marked as unsure. 1 turns unsure masks off. Default: as it is; off at first.",
            show_default=False,
        ),
    ] = None,
    data_dir: DataDirOption = None,
) -> None:
    """Connect a Label Studio project: labeling config, interactive backend, webhook with its secret.

    Idempotent: existing settings are kept. Additions to a labeling config are shown before they are made.
    """
    from backend.cli.instance_settings import service_settings
    from backend.labelstudio import setup as connecting
    from backend.labelstudio.client import LabelStudioClient
    from backend.labelstudio.tested_versions import version_line

    settings = service_settings(data_dir)
    key = settings.label_studio_api_key.get_secret_value()
    client = LabelStudioClient(settings.label_studio_url, key)
    backend_url = (url or settings.backend_url).rstrip("/")
    secret = settings.webhook_secret.get_secret_value()

    def may_change_config() -> bool:
        return yes or typer.confirm("Change the labeling config like this?")

    echo(version_line(client))
    if check:
        lines = connecting.check_project(client, project, backend_url)
        if answer := connecting.answer_of(connecting.config_of(client.project(project))):
            echo(answer)
    else:
        lines = connecting.connect_project(
            client,
            project,
            backend_url,
            secret,
            settings.basic_auth,
            echo,
            may_change_config,
            {role: name for role, name in (("prompt", prompt), ("phrase", phrase)) if name},
            {
                name: value
                for name, value in (("instances", instances), ("unsure", unsure))
                if value is not None
            },
        )
        lines.append(connecting.probe_webhook(client, project, backend_url, secret, settings.basic_auth))
    for line in lines or [f"project {project} is fully connected"]:
        echo(line)
    if check and lines:
        raise typer.Exit(1)
