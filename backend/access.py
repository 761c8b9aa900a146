"""Who may ask. With BASIC_AUTH_USER and BASIC_AUTH_PASS set, everybody must send them, but for /health.

Label Studio's webhook cannot send them: it shows a secret header instead. "Start Training" comes to /webhook
by another way, which sends Basic auth and no secret.
"""

from __future__ import annotations

import hmac

from flask import Request

from backend.errors import AccessError
from backend.events import START_TRAINING
from backend.labelstudio.client import WEBHOOK_SECRET_HEADER
from backend.settings import Settings

OPEN_PATHS = frozenset({"/health"})
WEBHOOK_PATH = "/webhook"


def check_access(request: Request, settings: Settings) -> None:
    """Lets a request pass.

    Raises:
        AccessError: it does not show that it may.
    """
    if request.path in OPEN_PATHS:
        return
    if request.path == WEBHOOK_PATH and _shows_secret(request, settings):
        return
    if settings.basic_auth is not None:
        if not _shows_password(request, settings.basic_auth):
            raise AccessError("wrong or missing name and password: see BASIC_AUTH_USER and BASIC_AUTH_PASS")
    elif request.path == WEBHOOK_PATH and settings.webhook_secret.get_secret_value():
        _check_start_training(request)


def _check_start_training(request: Request) -> None:
    """Without Basic auth, "Start Training" has nothing to show; it only makes the worker think about it."""
    body = request.get_json(silent=True)
    if not isinstance(body, dict) or body.get("action") != START_TRAINING:
        raise AccessError(f"wrong or missing {WEBHOOK_SECRET_HEADER}: run sspsam connect, see WEBHOOK_SECRET")


def _shows_secret(request: Request, settings: Settings) -> bool:
    secret = settings.webhook_secret.get_secret_value()
    return bool(secret) and _same(request.headers.get(WEBHOOK_SECRET_HEADER), secret)


def _shows_password(request: Request, expected: tuple[str, str]) -> bool:
    given = request.authorization
    if given is None or given.type != "basic":
        return False
    user, password = _same(given.username, expected[0]), _same(given.password, expected[1])
    return user and password


def _same(given: str | None, expected: str) -> bool:
    """Compares in a time that does not tell how much of it is right."""
    return hmac.compare_digest((given or "").encode(), expected.encode())
