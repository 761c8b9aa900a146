"""Connects a Label Studio project to this backend. Idempotent."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import requests

from backend.errors import (
    LabelingConfigError,
    LabelStudioBlocksError,
    LabelStudioError,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from backend.labelstudio.client import WEBHOOK_SECRET_HEADER, LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.config_patch import completed_config, config_diff, with_role
from backend.labelstudio.regions.controls import Kind

TITLE = "SSP-SAM Assist"
EMPTY_CONFIG = "<View></View>"
"""Labeling config of a new project."""
WEBHOOK_WAIT_S = 5.0
"""Time allowed for a webhook; Label Studio gives it 1 s, after its own queue."""
WEBHOOK_POLL_S = 0.2
BACKEND_TIMEOUT_S = 3.0
_REGIONS: Mapping[Kind, str] = {
    "brush": "a brush mask",
    "bitmask": "a bitmask",
    "polygon": "a polygon for each part",
    "rectangle": "a box",
}


def check_project(client: LabelStudioClient, project_id: int, backend_url: str) -> list[str]:
    """Reports what a project lacks to work with this backend; changes nothing.

    Raises:
        LabelStudioError: Label Studio cannot be queried.
    """
    project = client.project(project_id)
    config = config_of(project)
    if config.unsupported:
        return [f"labeling config: {config.unsupported}"]
    missing = [f"labeling config: {tag.advice}" for tag in config.missing()]
    backends = client.ml_backends(project_id)
    if _asks_unasked(project, backends):
        missing.append(
            "the project shows predictions to annotators: every opened task sends a request to the model"
        )
    backend = _of_url(backends, backend_url)
    if backend is None:
        missing.append(f"no ML backend at {backend_url}")
    elif not backend.get("is_interactive"):
        missing.append(f"the ML backend at {backend_url} is not interactive: no Auto-Annotation")
    elif backend.get("state") not in ("CO", "PR"):
        missing.append(
            f"the ML backend at {backend_url} is {backend.get('readable_state')}: {_why(client, backend)}"
        )
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
    show_diff: Callable[[str], None] = lambda diff: None,
    may_change_config: Callable[[], bool] = lambda: False,
    text_areas: Mapping[str, str] = MappingProxyType({}),
    wishes: Mapping[str, Any] = MappingProxyType({}),
) -> list[str]:
    """Configures a project for this backend: labeling config, ML backend, webhook.

    Args:
        client: Its API key must be allowed to change the project.
        project_id: ID of the project.
        backend_url: URL at which Label Studio reaches the backend.
        webhook_secret: Value of the webhook's X-ML-Secret header.
        basic_auth: Credentials that Label Studio sends with every call except webhooks.
        show_diff: Called with changes of the labeling config before they are made.
        may_change_config: Whether missing parts may be added to the labeling config. An empty config of a new
            project is replaced by the recommended one without asking.
        text_areas: Role, "prompt" or "phrase" -> name of the text area that has it.
        wishes: Extra params of the backend for this project; others stay as they are. `instances`: "apart" or
            "together", a region per object of a phrase, or one. `unsure`: see
            `backend.queries.least_presence`.

    Returns:
        What was done, one line each.

    Raises:
        LabelingConfigError: required tags are missing, and the config may not be changed; or the form cannot
            be worked with, or Label Studio does not accept it with the additions. Nothing is changed then.
        LabelStudioBlocksError: its settings block the backend's address.
        LabelStudioError: Label Studio does not respond, refuses the key, or cannot reach the backend.
    """
    project = client.project(project_id)
    done = _set_config(client, project, show_diff, may_change_config, text_areas)
    if _asks_unasked(project, client.ml_backends(project_id)):
        client.update_project(project_id, show_collab_predictions=False)
        done.append("predictions are no longer shown to annotators: only phrases send requests to the model")
    done.append(_connect_backend(client, project_id, backend_url, basic_auth, wishes))
    done.append(_connect_webhook(client, project_id, backend_url, webhook_secret))
    return done


def answer_of(config: LabelingConfig) -> str:
    """Says what a phrase is answered with; empty for a form without a place for answers."""
    if config.unsupported or config.image is None or not config.masks:
        return ""
    named = [f"{_REGIONS[control.kind]} of “{control.name}”" for control in config.masks]
    if len(config.labels) > 1:
        first = config.choice_for("").label or ""
        label = f", with the label that it names, else “{first}”"
    else:
        label = "".join(f", with the label “{label.written}”" for label in config.labels)
    others = f" (if it names one of their labels, {', '.join(named[1:])})" if named[1:] else ""
    asks = ""
    if config.box is not None:
        asks = (
            f"; boxes of “{config.box.name}” ask for the mask in them and are not exported "
            '(smart="false" makes them labels)'
        )
    return f"a phrase is answered with {named[0]}{others}{label}{asks}"


def _asks_unasked(project: dict[str, Any], backends: list[dict[str, Any]]) -> bool:
    """Whether opening a task sends a request to the model; stored predictions of a version may be shown."""
    live = {None, "", *(backend.get("title") for backend in backends)}
    return bool(project.get("show_collab_predictions")) and project.get("model_version") in live


def config_of(project: dict[str, Any]) -> LabelingConfig:
    """Parses a project's labeling config.

    Raises:
        LabelingConfigError: it is not XML.
    """
    return LabelingConfig.parse(project.get("label_config") or EMPTY_CONFIG)


def probe_webhook(
    client: LabelStudioClient,
    project_id: int,
    backend_url: str,
    webhook_secret: str = "",
    basic_auth: tuple[str, str] | None = None,
    wait_s: float = WEBHOOK_WAIT_S,
) -> str:
    """Triggers the project's webhook in Label Studio and checks whether it arrives.

    Writing the unchanged title back to the project triggers an event.

    Returns:
        The result, one line. An unreachable backend is no error: it may be reachable from Label Studio only.

    Raises:
        LabelStudioError: Label Studio cannot be queried.
    """

    def last_event() -> str:
        answer = requests.get(
            f"{_webhook_url(backend_url)}?project={project_id}",
            headers={WEBHOOK_SECRET_HEADER: webhook_secret} if webhook_secret else {},
            auth=basic_auth,
            timeout=BACKEND_TIMEOUT_S,
        )
        answer.raise_for_status()
        return str(answer.json()["last_event"])

    try:
        before = last_event()
        client.update_project(project_id, title=client.project(project_id).get("title", ""))
        until_s = time.monotonic() + wait_s
        while time.monotonic() < until_s:
            if last_event() != before:
                return "a webhook event arrived"
            time.sleep(WEBHOOK_POLL_S)
    except (requests.RequestException, ValueError, KeyError) as error:
        return f"cannot verify webhook events from this machine: {backend_url} ({type(error).__name__})"
    return (
        f"WARNING: webhook events do not arrive at {_webhook_url(backend_url)}: corrections are found only "
        "by the schedule. Start Label Studio with SSRF_PROTECTION_ENABLED=false; otherwise it drops "
        "webhooks to private addresses and reports it only in its log. WEBHOOK_SECRET must equal the "
        "backend's"
    )


def _why(client: LabelStudioClient, backend: dict[str, Any]) -> str:
    """Why Label Studio cannot use a backend; its own record does not mention blocking settings."""
    try:
        client.ml_backend_versions(int(backend["id"]))
    except LabelStudioBlocksError as error:
        return str(error)
    except LabelStudioError:
        pass
    return str(backend.get("error_message") or "it does not respond to Label Studio at this address")


def _set_config(
    client: LabelStudioClient,
    project: dict[str, Any],
    show_diff: Callable[[str], None],
    may_change_config: Callable[[], bool],
    text_areas: Mapping[str, str],
) -> list[str]:
    config_of(project).require()
    before = project.get("label_config") or EMPTY_CONFIG
    confirmed = before
    for role, name in text_areas.items():
        confirmed = with_role(confirmed, name, role)
    config = LabelingConfig.parse(confirmed)
    missing = config.missing()
    after = completed_config(confirmed) if missing else confirmed
    left = [f"not added to the labeling config: {tag.reason}" for tag in missing if not tag.xml]
    if after == before:
        return left or ["the labeling config is complete"]
    show_diff(config_diff(before, after))
    if config.has_names and not may_change_config():
        needed = [tag for tag in LabelingConfig.parse(before).missing() if tag.required]
        if not needed:
            return [f"the labeling config is unchanged: {tag.reason}" for tag in missing]
        reasons, additions = "; ".join(tag.reason for tag in needed), "\n".join(tag.xml for tag in needed)
        raise LabelingConfigError(f"labeling config of project {project['id']}: {reasons}. Add:\n{additions}")
    _validate(client, int(project["id"]), after)
    client.update_project(int(project["id"]), label_config=after)
    if not config.has_names:
        return ["the project now has the recommended labeling config"]
    given = [f"the {role} is the text area “{name}”" for role, name in text_areas.items()]
    return [*given, *(f"added to the labeling config: {tag.xml}" for tag in missing if tag.xml), *left]


def _validate(client: LabelStudioClient, project_id: int, label_config: str) -> None:
    """Asks Label Studio whether it accepts a form, before it is saved."""
    try:
        client.validate_config(project_id, label_config)
    except (LabelStudioUnavailable, LabelStudioUnauthorized):
        raise
    except LabelStudioError as error:
        raise LabelingConfigError(
            f"Label Studio does not accept the form with the additions, so nothing is changed: {error}"
        ) from error


def _connect_backend(
    client: LabelStudioClient,
    project_id: int,
    url: str,
    basic_auth: tuple[str, str] | None,
    wishes: Mapping[str, Any] = MappingProxyType({}),
) -> str:
    record = _of_url(client.ml_backends(project_id), url)
    params = _with_wishes(record.get("extra_params") if record else None, wishes)
    said = "".join(f"; {_EFFECTS[name](value)}" for name, value in wishes.items())
    if record is None:
        client.connect_ml_backend(project_id, url, TITLE, basic_auth, params)
        return f"connected the backend at {url}{said}"
    client.update_ml_backend(record, url, TITLE, basic_auth, params)
    return f"the backend at {url} was already connected; its record is up to date{said}"


_EFFECTS: Mapping[str, Callable[[Any], str]] = {
    "instances": lambda value: (
        "all objects of a phrase are one region"
        if value == "together"
        else "each object of a phrase is a region"
    ),
    "unsure": lambda value: f"masks are shown from a probability of {value:g} on, improbable ones as unsure",
}
"""Extra param -> what it does, in words."""


def _with_wishes(extra_params: object, wishes: Mapping[str, Any]) -> dict[str, Any] | None:
    """A backend's extra params with wishes; None if they stay as they are.

    Raises:
        LabelStudioError: they are text that is not a JSON object, which would be lost.
    """
    if not wishes:
        return None
    if isinstance(extra_params, str) and extra_params.strip():
        try:
            extra_params = json.loads(extra_params)
        except (ValueError, RecursionError):
            extra_params = [extra_params]
    if extra_params and not isinstance(extra_params, Mapping):
        raise LabelStudioError(
            f"the extra params of the ML backend are not a JSON object ({extra_params!s:.80}): "
            f"{', '.join(f'`{name}`' for name in wishes)} cannot be added"
        )
    known = extra_params if isinstance(extra_params, Mapping) else {}
    return {**known, **wishes}


def _connect_webhook(client: LabelStudioClient, project_id: int, backend_url: str, secret: str) -> str:
    """Sets the secret of the webhook that Label Studio creates with a backend; creates a missing one."""
    url = _webhook_url(backend_url)
    headers = {WEBHOOK_SECRET_HEADER: secret} if secret else {}
    record = _of_url(client.webhooks(project_id), url)
    if record is None:
        client.create_webhook(project_id, url, headers)
        return f"a webhook sends corrections to {url}"
    client.update_webhook(int(record["id"]), headers)
    return f"the webhook to {url} is active{' and sends the secret' if secret else ''}"


def _webhook_url(backend_url: str) -> str:
    return f"{backend_url.rstrip('/')}/webhook"


def _of_url(records: list[dict[str, Any]], url: str) -> dict[str, Any] | None:
    return next((record for record in records if str(record.get("url")).rstrip("/") == url.rstrip("/")), None)
