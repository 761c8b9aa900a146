"""The complete loop on one machine: the service, Label Studio, and a project with sample images."""

import json
import logging
import os
import secrets
import sqlite3
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from rich.console import Console
from rich.panel import Panel

from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.setup import connect_project, probe_webhook
from backend.settings import Settings
from sspsam.files import replacing
from sspsam.instance import published
from sspsam.presets import base_preset
from worker.local.demo_lesson import PHRASE, TAUGHT, lesson_pictures, suggestion_of
from worker.local.demo_photographs import demo_photographs
from worker.local.demo_pictures import Picture, demo_pictures
from worker.local.local_label_studio import Account, label_studio_part
from worker.local.supervisor import Supervisor, private_folder
from worker.local.up import (
    LOOPBACK,
    CannotStartError,
    Port,
    data_dir_lock,
    instance_variables,
    start_redis,
    start_service,
)

logger = logging.getLogger(__name__)

PUBLISHED = ("ssp-sam-224", "ssp-sam-336")
"""Presets for photographs."""
PROJECT_TITLE = "Sticker scenes"
PHOTOGRAPHS_TITLE = "Photographs"
SUGGESTIONS = "suggestions"
"""Field of the demo's tasks: phrases to type on that image."""
_ASSIST = '<View className="assist">\n'
CONFIG = RECOMMENDED_CONFIG.replace(
    _ASSIST, f'{_ASSIST}  <View className="suggest"><Header value="${SUGGESTIONS}" size="6"/></View>\n', 1
)
MODEL = "model"
"""Field of the tasks with photographs: the model that answers."""
PHOTOGRAPHS_CONFIG = CONFIG.replace(
    '<View className="suggest">', f'<View className="suggest"><Header value="${MODEL}" size="6"/>', 1
)
PICTURES = 24
UPLOAD_BATCH = 6
FINETUNE_AFTER = 8
"""Corrected masks that start a fine-tune; the service's default is higher."""
LESSON = f"""\
[bold]5.[/bold] Teach it a word. Images 2 to {TAUGHT + 1} show a pizza, a word it does not know. Choose the
   lowest tool, Auto-Detect, click the pizza, type  [cyan]{PHRASE}[/cyan]  under its mask, and press Submit.
[bold]6.[/bold] After {{corrections}} corrections it is fine-tuned, within minutes; go on meanwhile. Progress:
   {{url}}
[bold]7.[/bold] Promoted? Ask for  [cyan]{PHRASE}[/cyan]  on the images after those. The word was chosen:
   new nouns are learned best from few corrections; places and sizes take many more."""
CORRECTING = """\
[bold]5.[/bold] Correct a mask and press Submit. After {corrections} corrected masks the model is fine-tuned;
   the new weights serve if they are better. Progress: {url}"""
LABEL_STUDIO = "label-studio"
"""Label Studio's folder."""
DATABASE = "label_studio.sqlite3"
TOKEN_QUERY = (
    "SELECT authtoken_token.key FROM authtoken_token JOIN htx_user ON htx_user.id = authtoken_token.user_id "
    "WHERE htx_user.email = ?"
)
EMAIL = "demo@example.com"
PASSWORD = "password"
"""Not a secret: printed for the user, for a server that only this machine can reach."""
BACKEND_USER = "demo"


@dataclass(frozen=True)
class DemoOptions:
    """Options of `sspsam demo`."""

    data_dir: Path
    backend_port: int
    label_studio_port: int
    label_studio: Path
    """Path of the `label-studio` executable."""

    @property
    def backend_url(self) -> str:
        return f"http://{LOOPBACK}:{self.backend_port}"

    @property
    def label_studio_url(self) -> str:
        return f"http://{LOOPBACK}:{self.label_studio_port}"


@dataclass(frozen=True)
class DemoState:
    """State of the demo, kept between starts."""

    token: str
    """The user's API token: legacy tokens have 40 hexadecimal digits."""
    webhook_secret: str
    project: int | None = None
    photographs_project: int | None = None
    backend_password: str = field(default_factory=lambda: secrets.token_urlsafe(12))

    @property
    def basic_auth(self) -> tuple[str, str]:
        """Password for the backend's HTTP basic authentication."""
        return BACKEND_USER, self.backend_password

    @classmethod
    def load(cls, path: Path) -> "DemoState":
        """Reads the state. What is lost or damaged is created again.

        Label Studio keeps the token of its first start, so a lost one is read from its database.
        """
        kept = _kept_state(path)
        token = kept.get("token") or token_of(path.parent / LABEL_STUDIO) or secrets.token_hex(20)
        secret = kept.get("webhook_secret") or secrets.token_urlsafe(24)
        project, photographs = (
            number if isinstance(number := kept.get(name), int) else None
            for name in ("project", "photographs_project")
        )
        state = cls(str(token), str(secret), project, photographs)
        password = kept.get("backend_password")
        return replace(state, backend_password=password) if isinstance(password, str) else state

    def save(self, path: Path) -> None:
        """Writes the state, readable only by its owner."""
        with replacing(path) as staged:
            staged.touch(mode=0o600)
            staged.write_text(json.dumps(asdict(self), indent=2) + "\n")


def _kept_state(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return {}
    except (OSError, ValueError, RecursionError) as error:
        logger.warning("%s cannot be read and is written again: %s", path, error)
        return {}
    texts = ("token", "webhook_secret", "backend_password")
    if not isinstance(found, dict):
        return {}
    return {name: value for name, value in found.items() if name not in texts or isinstance(value, str)}


def token_of(label_studio_dir: Path) -> str | None:
    """The token of the demo's user in Label Studio's database; None if there is none."""
    database = label_studio_dir / DATABASE
    if not database.is_file():
        return None
    try:
        with closing(sqlite3.connect(f"{database.resolve().as_uri()}?mode=ro", uri=True)) as connection:
            row = connection.execute(TOKEN_QUERY, (EMAIL,)).fetchone()
    except sqlite3.Error as error:
        raise CannotStartError(
            f"the demo's state is lost, and Label Studio's database {database} is damaged ({error}): restore "
            "them from a backup, or start a new demo with --data-dir"
        ) from error
    return str(row[0]) if row else None


def demo(options: DemoOptions, console: Console) -> None:
    """Runs everything until it is interrupted or a part ends.

    Raises:
        CannotStartError: a port, the folder or Label Studio is not available; nothing was started.
        SupervisorError: a part failed; all others have been stopped.
        BackendError: Label Studio did not accept the project; all parts have been stopped.
        KeyboardInterrupt: the user stopped it; all parts have been stopped.
    """
    check(options)
    data_dir = options.data_dir.resolve()
    with data_dir_lock(data_dir) as lock, Supervisor(data_dir / "logs") as supervisor:
        state = DemoState.load(data_dir / "demo.json")
        state.save(data_dir / "demo.json")
        redis_url = start(supervisor, options, state, console, lock)
        client = LabelStudioClient(options.label_studio_url, state.token)
        preset = Settings().preset
        if base_preset(preset) in PUBLISHED:
            pictures = demo_photographs()
            project = prepare_photographs(client, state.photographs_project, pictures, preset, console)
            replace(state, photographs_project=project).save(data_dir / "demo.json")
        else:
            pictures = demo_pictures(data_dir / "pictures", PICTURES)
            lesson = lesson_pictures(data_dir / "lesson")
            project = prepare_project(client, state.project, pictures, lesson, console)
            replace(state, project=project).save(data_dir / "demo.json")
        forget_other_backends(client, project, options.backend_url)
        connection = client, project, options.backend_url, state.webhook_secret, state.basic_auth
        connect_project(*connection)
        probe_webhook(*connection)  # lets the start page show that corrections arrive
        environment = service_environment(options, state)
        with published(data_dir, "demo", instance_variables(environment, redis_url, options.backend_port)):
            console.print(guide(options, state, project, pictures, data_dir))
            supervisor.watch()


def check(options: DemoOptions) -> None:
    """Checks the preconditions before anything is started.

    Raises:
        CannotStartError: one is not met; the message says how to fix it.
    """
    Port(options.backend_port, "backend", "--backend-port").require_free()
    Port(options.label_studio_port, "Label Studio", "--label-studio-port").require_free()
    if options.backend_port == options.label_studio_port:
        raise CannotStartError("the backend and Label Studio cannot share a port; see --label-studio-port")
    if not os.access(options.label_studio, os.X_OK):
        raise CannotStartError(
            f"no Label Studio at {options.label_studio}. It needs its own venv: "
            "run `make install`, or give its path with --label-studio."
        )


def start(
    supervisor: Supervisor, options: DemoOptions, state: DemoState, console: Console, lock: int | None = None
) -> str:
    """Starts all parts, waits until they are ready, and returns the URL of Redis."""
    data_dir = options.data_dir.resolve()
    redis_url = start_redis(supervisor, data_dir / "redis", console, lock)
    account = Account(EMAIL, PASSWORD, state.token)
    folder = data_dir / LABEL_STUDIO
    if not folder.exists():
        console.print("Label Studio creates its database on the first start, which takes about a minute.")
    private_folder(folder)
    label_studio = label_studio_part(options.label_studio, options.label_studio_port, folder, account)
    start_service(
        supervisor,
        console,
        service_environment(options, state),
        redis_url,
        options.backend_port,
        label_studio,
    )
    return redis_url


def service_environment(options: DemoOptions, state: DemoState) -> dict[str, str]:
    """The environment of backend, worker and scheduler: ours, pointed at the demo's own parts."""
    own = {
        "LABEL_STUDIO_URL": options.label_studio_url,
        "LABEL_STUDIO_API_KEY": state.token,
        "WEBHOOK_SECRET": state.webhook_secret,
        "MODEL_DIR": str(options.data_dir.resolve() / "models"),
        "VERSIONS_URL": "",
        "HOST": LOOPBACK,
        "PUBLIC_URL": options.backend_url,
        "BASIC_AUTH_USER": state.basic_auth[0],
        "BASIC_AUTH_PASS": state.basic_auth[1],
    }
    return {"FINETUNE_AFTER": str(FINETUNE_AFTER), **os.environ, **own}


def prepare_project(
    client: LabelStudioClient,
    project: int | None,
    pictures: Sequence[Picture],
    lesson: Sequence[Picture],
    console: Console,
) -> int:
    """Finds or creates the demo's project, adds missing images, and returns its id.

    The images of the lesson follow the first one.
    """
    description = "Type a phrase, get that sticker's mask."
    project = find_or_create(client, project, PROJECT_TITLE, CONFIG, description)
    upload_missing(client, project, [*pictures[:1], *lesson, *pictures[1:]], console)
    suggest(client, project, pictures, lesson=lesson)
    return project


def prepare_photographs(
    client: LabelStudioClient,
    project: int | None,
    pictures: Sequence[Picture],
    preset: str,
    console: Console,
) -> int:
    """The same for photographs; their form says which model answers."""
    description = "Type a phrase, get that object's mask."
    project = find_or_create(client, project, PHOTOGRAPHS_TITLE, PHOTOGRAPHS_CONFIG, description)
    upload_missing(client, project, pictures, console)
    suggest(client, project, pictures, {MODEL: f"Answers come from {preset}"})
    return project


def find_or_create(
    client: LabelStudioClient, project: int | None, title: str, config: str, description: str
) -> int:
    """The number of a project that is known, or has the title, or is created."""
    known = {found["id"]: found.get("title") for found in client.projects()}
    if project is None:  # the state was lost
        project = max((number for number, known_as in known.items() if known_as == title), default=None)
    if project is None or project not in known:
        fields = {"show_collab_predictions": False, "description": description}
        project = int(client.create_project(title, config, **fields)["id"])
    return project


def upload_missing(
    client: LabelStudioClient, project: int, pictures: Sequence[Picture], console: Console
) -> None:
    """Uploads the images that no task of the project shows."""
    tasks = list(client.tasks(project))
    missing = [picture.path for picture in pictures if not any(_shows(task, picture) for task in tasks)]
    with console.status("Adding images to the project"):
        for first in range(0, len(missing), UPLOAD_BATCH):
            client.upload_images(project, missing[first : first + UPLOAD_BATCH])
    if missing:
        console.print(f"[green]✓[/green] {len(missing)} images added to the project")


def suggest(
    client: LabelStudioClient,
    project: int,
    pictures: Sequence[Picture],
    more: Mapping[str, str] = MappingProxyType({}),
    lesson: Sequence[Picture] = (),
) -> None:
    """Writes suggested phrases into each task; the labeling config shows them above the image.

    Args:
        client: of the local Label Studio.
        project: number of the demo's project.
        pictures: those of its tasks.
        more: further fields of each task.
        lesson: pictures with suggestions of their own.
    """
    suggestions = [(picture, suggestion_of(number)) for number, picture in enumerate(lesson)]
    for picture in pictures:
        phrases = " · ".join(phrase.text for phrase in picture.phrases)
        suggestions.append((picture, f"Try: {phrases} (which fits nothing)"))
    for task in client.tasks(project):
        data = task["data"]
        said = next((said for picture, said in suggestions if _shows(task, picture)), None)
        if said is None:
            continue
        complete = {SUGGESTIONS: said, **data, **more}
        if complete != data:
            client.update_task(task["id"], complete)


def _shows(task: Mapping[str, Any], picture: Picture) -> bool:
    """Whether a task shows an image: Label Studio prefixes the names of uploaded files."""
    return str(task["data"].get("image", "")).endswith(f"-{picture.path.name}")


def forget_other_backends(client: LabelStudioClient, project: int, backend_url: str) -> None:
    """Removes the connection of an earlier start on another port: the editor always uses the first one."""
    for backend in client.ml_backends(project):
        if backend["url"] != backend_url:
            client.delete_ml_backend(int(backend["id"]))
    for webhook in client.webhooks(project):
        if not webhook["url"].startswith(f"{backend_url}/"):
            client.delete_webhook(int(webhook["id"]))


def guide(
    options: DemoOptions, state: DemoState, project: int, pictures: Sequence[Picture], data_dir: Path
) -> Panel:
    """Instructions for the user."""
    phrases = "\n".join(
        f"         [cyan]{phrase.text}[/cyan]{'' if phrase.targets else '  (which fits nothing)'}"
        for phrase in pictures[0].phrases
    )
    corrections = os.environ.get("FINETUNE_AFTER", FINETUNE_AFTER)
    steps = LESSON if pictures[0].seed is not None else CORRECTING
    steps = steps.format(corrections=corrections, url=f"{options.backend_url}/projects/{project}")
    text = f"""\
[bold]1.[/bold] Open  {options.label_studio_url}/projects/{project}/data
[bold]2.[/bold] Log in as  [cyan]{EMAIL}[/cyan]  with the password  [cyan]{PASSWORD}[/cyan]
[bold]3.[/bold] Click the first image. Below it, switch on [bold]Auto-Annotation[/bold], then
   [bold]Auto-Accept Suggestions[/bold].
[bold]4.[/bold] Type a phrase above the image and press Enter; each image suggests some. For the first one:
{phrases}
{steps}

The model and its versions: {options.backend_url}
(sign in with the password  [cyan]{state.backend_password}[/cyan])
Logs: {data_dir / "logs"}
Ctrl-C stops everything. Data is kept for the next start."""
    return Panel(text, title="SSP-SAM Assist is ready", expand=False)
