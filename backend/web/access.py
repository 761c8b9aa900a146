"""Authentication, rate limits, origins and body limits. Every path but /health requires Basic auth.

Label Studio's webhook cannot send Basic auth: it sends a secret header instead. "Start Training" reaches
/webhook with Basic auth and no secret. Without credentials the backend does not start, unless OPEN_ACCESS is
set; it then listens on loopback only.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Mapping
from ipaddress import IPv6Address, ip_address, ip_network

from flask import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from werkzeug.datastructures import Authorization
from werkzeug.exceptions import RequestEntityTooLarge

from backend.errors import AccessError, SettingsError, TooManyRequestsError
from backend.events import START_TRAINING
from backend.images.addresses import is_loopback
from backend.labelstudio.client import WEBHOOK_SECRET_HEADER
from backend.settings import Settings
from backend.web.origins import OriginCheck

OPEN_PATHS = frozenset({"/health", "/ready"})
WEBHOOK_PATH = "/webhook"
FAILURES_PER_MINUTE = 30
"""Wrong passwords per address, and wrong secrets; further ones are not answered before the minute is over."""
COUNTED_CALLERS = 10_000
"""Addresses with counts in memory; beyond that, counting starts again."""
IPV6_HOST_NETWORK = 64
"""Bits of an IPv6 address that identify a caller."""
MAX_REQUEST_BYTES = 512 * 2**20
"""A batch contains every task with its annotations, including masks."""
PATH_MAX_BYTES = {"/setup": 16 * 2**20, WEBHOOK_PATH: 128 * 2**20}
"""An annotation event contains each mask twice."""
UNPROVEN_MAX_BYTES = 2**20
"""Limit of a body that is read before authentication."""
REFUSED_MAX_BYTES = 2**16
"""Of a body with wrong credentials: many clients send it before they read the answer."""

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
        self._origins = OriginCheck(settings)
        self._storage = MemoryStorage()
        self._limiter = FixedWindowRateLimiter(self._storage)
        self._requests = RateLimitItemPerMinute(settings.requests_per_minute)
        self._failures = RateLimitItemPerMinute(FAILURES_PER_MINUTE)

    def check(self, request: Request) -> None:
        """Checks a request.

        Raises:
            AccessError: it is not authenticated.
            TooManyRequestsError: its address sent too many requests, or too many wrong credentials.
            RequestError: another site sent it through a user's browser.
        """
        request.max_content_length = PATH_MAX_BYTES.get(request.path, MAX_REQUEST_BYTES)
        if request.path in OPEN_PATHS:
            return
        self._origins.check(request)
        caller = _caller(request)
        self._bound_memory()
        # Many callers share an address, Label Studio's or a proxy's. What strangers send from it is counted
        # apart, so right credentials are let in however many wrong ones came before.
        try:
            check_access(request, self._settings)
        except AccessError:
            if not self._limiter.hit(self._failures, "failures", caller, _credential(request)):
                raise TooManyRequestsError(
                    "too many wrong passwords from this address: try again in a minute"
                ) from None
            raise
        if not self._limiter.hit(self._requests, "requests", caller):
            raise TooManyRequestsError("too many requests from this address: try again in a minute")

    def _bound_memory(self) -> None:
        if len(self._storage.storage) > COUNTED_CALLERS:
            self._storage.reset()


def _caller(request: Request) -> str:
    """The address whose requests are counted together; of IPv6 the network, which one host may own."""
    try:
        address = ip_address(request.remote_addr or "")
    except ValueError:
        return request.remote_addr or "unknown"
    if isinstance(address, IPv6Address) and address.ipv4_mapped is None:
        return str(ip_network((address, IPV6_HOST_NETWORK), strict=False))
    return str(address)


def _credential(request: Request) -> str:
    """Which credential a request shows: failures of one kind tell nothing about the other."""
    return "secret" if WEBHOOK_SECRET_HEADER in request.headers else "password"


def body_limit(path: str, headers: Mapping[str, str], settings: Settings) -> int:
    """How many bytes of a body the server may read before `Gate` has seen the request.

    Args:
        path: Of the request.
        headers: Of the request, named as in WSGI without HTTP_.
        settings: Credentials.
    """
    limit = PATH_MAX_BYTES.get(path, MAX_REQUEST_BYTES)
    if path == WEBHOOK_PATH and _is_secret(headers.get("X_ML_SECRET"), settings):
        return limit
    if settings.basic_auth is not None:
        given = Authorization.from_header(headers.get("AUTHORIZATION"))
        return limit if _is_password(given, settings.basic_auth) else REFUSED_MAX_BYTES
    return (
        UNPROVEN_MAX_BYTES if path == WEBHOOK_PATH and settings.webhook_secret.get_secret_value() else limit
    )


def check_access(request: Request, settings: Settings) -> None:
    """Checks a request's credentials.

    Raises:
        AccessError: they are missing or wrong.
    """
    if request.path == WEBHOOK_PATH and _is_secret(request.headers.get(WEBHOOK_SECRET_HEADER), settings):
        return
    if settings.basic_auth is not None:
        if not _is_password(request.authorization, settings.basic_auth):
            raise AccessError("wrong or missing name and password: see BASIC_AUTH_USER and BASIC_AUTH_PASS")
    elif request.path == WEBHOOK_PATH and settings.webhook_secret.get_secret_value():
        _check_start_training(request)


def _check_start_training(request: Request) -> None:
    """Without Basic auth, "Start Training" has no credentials; it only makes the worker check its policy."""
    request.max_content_length = UNPROVEN_MAX_BYTES  # also of a body in chunks, whose length is not stated
    try:
        body = request.get_json(force=True, silent=True)
    except RecursionError:
        body = None
    except RequestEntityTooLarge as error:
        raise AccessError(f"wrong or missing {WEBHOOK_SECRET_HEADER}") from error
    if not isinstance(body, dict) or body.get("action") != START_TRAINING:
        raise AccessError(f"wrong or missing {WEBHOOK_SECRET_HEADER}: run sspsam connect, see WEBHOOK_SECRET")


def _is_secret(given: str | None, settings: Settings) -> bool:
    secret = settings.webhook_secret.get_secret_value()
    return bool(secret) and _same(given, secret)


def _is_password(given: Authorization | None, expected: tuple[str, str]) -> bool:
    if given is None or given.type != "basic":
        return False
    user, password = _same(given.username, expected[0]), _same(given.password, expected[1])
    return user and password


def _same(given: str | None, expected: str) -> bool:
    """Compares in constant time."""
    return hmac.compare_digest((given or "").encode(), expected.encode())
