"""The pages of the settings, without secrets and with the log level, and of the audit log."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, get_args

from flask import Blueprint, Response, redirect, request
from pydantic import SecretStr
from werkzeug.wrappers import Response as AnyResponse

from backend.console.pages import audited, page, service
from backend.errors import RequestError
from backend.settings import Settings
from sspsam.instance import shown

LEVELS: tuple[str, ...] = get_args(Settings.model_fields["log_level"].annotation)

AUDIT_ENTRIES = 200

administration = Blueprint("administration", __name__)


@dataclass(frozen=True)
class SettingRow:
    """A setting."""

    name: str
    """Of the environment variable."""
    value: str
    source: str


@administration.get("/settings")
def settings() -> Response:
    level = logging.getLevelName(logging.getLogger().getEffectiveLevel())
    return page("settings.html", rows=setting_rows(service().settings), level=level, levels=LEVELS)


@administration.post("/settings/log-level")
def set_level() -> AnyResponse:
    level = request.form.get("level", "")
    with audited("set the log level", level[:20]) as lines:
        if level not in LEVELS:
            raise RequestError(f"expected one of {', '.join(LEVELS)}")
        logging.getLogger().setLevel(level)
        lines.append(f"this process logs {level} and above until it restarts")
    return redirect("/settings", 303)


@administration.get("/audit")
def audit() -> Response:
    """The newest actions and sign-ins."""
    return page("audit.html", entries=service().audit.latest(AUDIT_ENTRIES), most=AUDIT_ENTRIES)


def setting_rows(settings: Settings) -> Sequence[SettingRow]:
    """All settings, by name."""
    return [
        SettingRow(name.upper(), _in_words(getattr(settings, name)), _source(settings, name))
        for name in sorted(Settings.model_fields)
    ]


def _source(settings: Settings, name: str) -> str:
    return "set" if name in settings.model_fields_set else "default"


def _in_words(value: Any) -> str:
    if isinstance(value, SecretStr):
        return "set, hidden" if value.get_secret_value() else "not set"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "none"
    text = "" if value is None else str(value)
    return shown(text) or "none"
