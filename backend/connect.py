"""Connects a Label Studio project to this backend. Everything can be done again without harm."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from backend.errors import LabelingConfigError
from backend.labelstudio.client import WEBHOOK_SECRET_HEADER, LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig

TITLE = "SSP-SAM Assist"
EMPTY_CONFIG = "<View></View>"
"""What Label Studio gives a new project."""


def check_project(client: LabelStudioClient, project_id: int, backend_url: str) -> list[str]:
    """Says what is missing for a project to work with this backend; changes nothing.

    Raises:
        LabelStudioError: Label Studio cannot be asked.
    """
    project = client.project(project_id)
    missing = [f"labeling config: {tag.reason}. Add {tag.xml}" for tag in config_of(project).missing()]
    if project.get("show_collab_predictions"):
        missing.append("the project shows predictions to annotators: every opened task asks the model")
    backend = _of_url(client.ml_backends(project_id), backend_url)
    if backend is None:
        missing.append(f"no ML backend at {backend_url}")
    elif not backend.get("is_interactive"):
        missing.append(f"the ML backend at {backend_url} is not interactive: no Auto-Annotation")
    elif backend.get("state") not in ("CO", "PR"):
        missing.append(f"the ML backend at {backend_url} is {backend.get('readable_state')}")
    webhook = _of_url(client.webhooks(project_id), _webhook_url(backend_url))
    if webhook is None or not webhook.get("is_active"):
        missing.append(f"no active webhook to {_webhook_url(backend_url)}: corrections do not arrive")
    return missing


def connect_project(
    client: LabelStudioClient,
    project_id: int,
    backend_url: str,
    webhook_secret: str = "",
    basic_auth: tuple[str, str] | None = None,
    may_replace_config: Callable[[str], bool] = lambda question: False,
) -> list[str]:
    """Makes a project work with this backend: labeling config, ML backend, webhook.

    Args:
        client: With a key that may change the project.
        project_id: Which one.
        backend_url: As Label Studio reaches it.
        webhook_secret: What the webhook is to show in X-ML-Secret.
        basic_auth: What Label Studio has to send with each call but the webhook's.
        may_replace_config: Asked, with a question, before a labeling config that lacks a needed tag is
            replaced by the recommended one. An empty config is replaced without asking.

    Returns:
        What was done, a line each.

    Raises:
        LabelingConfigError: tags are missing, and the config may not be replaced.
        LabelStudioError: Label Studio does not answer, refuses the key, or cannot reach the backend.
    """
    project = client.project(project_id)
    done = _set_config(client, project, may_replace_config)
    if project.get("show_collab_predictions"):
        client.update_project(project_id, show_collab_predictions=False)
        done.append("predictions are not shown to annotators any more: the model is asked by phrase alone")
    done.append(_connect_backend(client, project_id, backend_url, basic_auth))
    done.append(_connect_webhook(client, project_id, backend_url, webhook_secret))
    return done


def config_of(project: dict[str, Any]) -> LabelingConfig:
    """Parses a project's labeling config.

    Raises:
        LabelingConfigError: it is not XML.
    """
    return LabelingConfig.parse(project.get("label_config") or EMPTY_CONFIG)


def _set_config(
    client: LabelStudioClient, project: dict[str, Any], may_replace_config: Callable[[str], bool]
) -> list[str]:
    needed = [tag for tag in config_of(project).missing() if tag.required]
    if not needed:
        return ["the labeling config has what is needed"]
    reasons = "; ".join(tag.reason for tag in needed)
    is_empty = "name=" not in (project.get("label_config") or "")
    if not is_empty and not may_replace_config(
        f"{reasons}. Replace the labeling config by the recommended one?"
    ):
        additions = "\n".join(tag.xml for tag in needed)
        raise LabelingConfigError(f"labeling config of project {project['id']}: {reasons}. Add:\n{additions}")
    client.update_project(int(project["id"]), label_config=RECOMMENDED_CONFIG)
    return ["the project has the recommended labeling config now"]


def _connect_backend(
    client: LabelStudioClient, project_id: int, url: str, basic_auth: tuple[str, str] | None
) -> str:
    record = _of_url(client.ml_backends(project_id), url)
    if record is None:
        client.connect_ml_backend(project_id, url, TITLE, basic_auth)
        return f"the backend at {url} is connected"
    client.update_ml_backend(record, url, TITLE, basic_auth)
    return f"the backend at {url} was connected before; its record is up to date"


def _connect_webhook(client: LabelStudioClient, project_id: int, backend_url: str, secret: str) -> str:
    """Gives the webhook that Label Studio makes with a backend its secret; makes it if it is gone."""
    url = _webhook_url(backend_url)
    headers = {WEBHOOK_SECRET_HEADER: secret} if secret else {}
    record = _of_url(client.webhooks(project_id), url)
    if record is None:
        client.create_webhook(project_id, url, headers)
        return f"a webhook sends corrections to {url}"
    client.update_webhook(int(record["id"]), headers)
    return f"the webhook to {url} is active{' and shows the secret' if secret else ''}"


def _webhook_url(backend_url: str) -> str:
    return f"{backend_url.rstrip('/')}/webhook"


def _of_url(records: list[dict[str, Any]], url: str) -> dict[str, Any] | None:
    return next((record for record in records if str(record.get("url")).rstrip("/") == url.rstrip("/")), None)
