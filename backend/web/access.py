"""Authentication, rate limits and body limits. Every path but /health requires Basic auth.

Label Studio's webhook cannot send Basic auth: it sends a secret header instead. "Start Training" reaches
/webhook with Basic auth and no secret. Without credentials the backend does not start, unless OPEN_ACCESS is
set; it then listens on loopback only.
"""

from __future__ import annotations

import hmac
import logging

from flask import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter

from backend.errors import AccessError, RequestError, SettingsError, TooManyRequestsError
from backend.events import START_TRAINING
from backend.images.addresses import is_loopback
from backend.labelstudio.client import WEBHOOK_SECRET_HEADER
from backend.settings import Settings

OPEN_PATHS = frozenset({"/health", "/ready"})
WEBHOOK_PATH = "/webhook"
FAILURES_PER_MINUTE = 30
"""Wrong passwords and secrets per address, before it must wait."""
MAX_REQUEST_BYTES = 512 * 2**20
"""A batch contains every task with its annotations, including masks."""
PATH_MAX_BYTES = {"/setup": 16 * 2**20, WEBHOOK_PATH: 128 * 2**20}
"""An annotation event contains each mask twice."""
UNPROVEN_MAX_BYTES = 2**20
"""Limit of a body that is read before authentication."""
CROSS_SITE = frozenset({"cross-site", "same-site"})

logger = logging.getLogger(__name__)


def require_secrets(settings: Settings) -> None:
    """Checks at start that credentials are configured.

    Raises:
        SettingsError: they are missing without OPEN_ACCESS, or HOST accepts other machines.
    """
    missing = []
    if not (settings.basic_auth_user and settings.basic_auth_pass.get_secret_value()):
        missing += ["BASIC_AUTH_USER and BASIC_AUTH_PASS"]
    if not settings.webhook_secret.get_secret_value():
        missing += ["WEBHOOK_SECRET"]
    if not missing:
        return
    names = " and ".join(missing)
    if not settings.open_access:
        raise SettingsError(
            f"set {names} to restrict access (sspsam secrets generates them), or OPEN_ACCESS=true to let "
            "everyone on this machine in"
        )
    if not is_loopback(settings.host):
        raise SettingsError(
            f"HOST={settings.host} accepts connections from other machines, but OPEN_ACCESS is for this "
            f"machine only: set {names}"
        )
    logger.warning("OPEN_ACCESS: without %s, everyone on this machine has access to the backend", names)


class Gate:
    """Admits or refuses requests. Thread-safe.

    Args:
        settings: Credentials and rate limits.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limiter = FixedWindowRateLimiter(MemoryStorage())
        self._requests = RateLimitItemPerMinute(settings.requests_per_minute)
        self._failures = RateLimitItemPerMinute(FAILURES_PER_MINUTE)

    def check(self, request: Request) -> None:
        """Checks a request.

        Raises:
            AccessError: it is not authenticated.
            TooManyRequestsError: its address sent too many requests or wrong passwords.
            RequestError: another site sent it through a user's browser.
        """
        request.max_content_length = PATH_MAX_BYTES.get(request.path, MAX_REQUEST_BYTES)
        if request.path in OPEN_PATHS:
            return
        caller = request.remote_addr or "unknown"
        if not self._limiter.hit(self._requests, "requests", caller):
            raise TooManyRequestsError("too many requests from this address: try again in a minute")
        if not self._limiter.test(self._failures, "failures", caller):
            raise TooManyRequestsError("too many wrong passwords from this address: try again in a minute")
        try:
            check_access(request, self._settings)
        except AccessError:
            self._limiter.hit(self._failures, "failures", caller)
            raise
        if request.method != "GET" and request.headers.get("Sec-Fetch-Site") in CROSS_SITE:
            raise RequestError("requests from pages of other sites are refused")


def check_access(request: Request, settings: Settings) -> None:
    """Checks a request's credentials.

    Raises:
        AccessError: they are missing or wrong.
    """
    if request.path == WEBHOOK_PATH and _shows_secret(request, settings):
        return
    if settings.basic_auth is not None:
        if not _shows_password(request, settings.basic_auth):
            raise AccessError("wrong or missing name and password: see BASIC_AUTH_USER and BASIC_AUTH_PASS")
    elif request.path == WEBHOOK_PATH and settings.webhook_secret.get_secret_value():
        _check_start_training(request)


def _check_start_training(request: Request) -> None:
    """Without Basic auth, "Start Training" has no credentials; it only makes the worker check its policy."""
    if (request.content_length or 0) > UNPROVEN_MAX_BYTES:
        raise AccessError(f"wrong or missing {WEBHOOK_SECRET_HEADER}")
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        body = None
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
    """Compares in constant time."""
    return hmac.compare_digest((given or "").encode(), expected.encode())
