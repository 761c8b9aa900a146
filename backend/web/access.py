"""Authentication, roles, rate limits, origins and body limits.

Every path but /health, /ready, the sign-in page and its style requires Basic auth or, for pages, a session.

Label Studio's webhook cannot send Basic auth: it sends a secret header instead. "Start Training" reaches
/webhook with Basic auth and no secret. Without credentials the backend does not start, unless OPEN_ACCESS is
set; it then listens on loopback only.
"""

from __future__ import annotations

import hmac
import logging
from collections.abc import Collection, Mapping
from ipaddress import IPv6Address, ip_address, ip_network

from flask import Request
from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import FixedWindowRateLimiter
from werkzeug.datastructures import Authorization
from werkzeug.exceptions import RequestEntityTooLarge

from backend.console import sessions
from backend.console.assets import ASSETS_PATH
from backend.console.sessions import Role, password_role
from backend.errors import AccessError, ForbiddenError, SettingsError, TooManyRequestsError
from backend.events import START_TRAINING
from backend.images.addresses import is_loopback
from backend.labelstudio.client import WEBHOOK_SECRET_HEADER
from backend.settings import Settings
from backend.state.redis_store import RedisStore
from backend.web.origins import SAFE_METHODS, OriginCheck

OPEN_PATHS = frozenset({"/health", "/ready"})
WEBHOOK_PATH = "/webhook"
SIGN_IN_PATH = "/sign-in"
SIGN_OUT_PATH = "/sign-out"
FAILURES_PER_MINUTE = 30
"""Wrong passwords per address, and wrong secrets; further ones are not answered before the minute is over."""
COUNTED_CALLERS = 10_000
"""Addresses with counts in memory; beyond that, counting starts again."""
IPV6_HOST_NETWORK = 64
"""Bits of an IPv6 address that identify a caller."""
MAX_REQUEST_BYTES = 512 * 2**20
"""A batch contains every task with its annotations, including masks."""
PATH_MAX_BYTES = {"/predict": MAX_REQUEST_BYTES, "/setup": 16 * 2**20, WEBHOOK_PATH: 128 * 2**20}
"""An annotation event contains each mask twice."""
FORM_MAX_BYTES = 2**16
"""Of all other paths: they take forms alone."""
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
        redis_store: Knows the sessions that have ended.
        pages: Blueprints of the console, whose forms a session may send.
    """

    def __init__(self, settings: Settings, redis_store: RedisStore, pages: Collection[str]) -> None:
        self._settings = settings
        self._redis_store = redis_store
        self._pages = frozenset(pages)
        self._origins = OriginCheck(settings)
        self._storage = MemoryStorage()
        self._limiter = FixedWindowRateLimiter(self._storage)
        self._requests = RateLimitItemPerMinute(settings.requests_per_minute)
        self._failures = RateLimitItemPerMinute(FAILURES_PER_MINUTE)

    def check(self, request: Request) -> Role | None:
        """Checks a request.

        Returns:
            The caller's role; None for what is open to everyone.

        Raises:
            AccessError: it is not authenticated.
            ForbiddenError: a viewer's request would change something, or a form lacks its token.
            TooManyRequestsError: its address sent too many requests, or too many wrong credentials.
            RequestError: another site sent it through a user's browser.
        """
        request.max_content_length = PATH_MAX_BYTES.get(request.path, FORM_MAX_BYTES)
        if request.path in OPEN_PATHS or request.path.startswith(ASSETS_PATH):
            return None
        self._origins.check(request)
        caller = _caller(request)
        self._bound_memory()
        # Many callers share an address, Label Studio's or a proxy's. What strangers send from it is counted
        # apart, so right credentials are let in however many wrong ones came before.
        if request.path == SIGN_IN_PATH:  # as everywhere, only wrong passwords are counted
            if request.method not in SAFE_METHODS:
                sessions.check_sign_in_token(request)
            return None
        try:
            role = self._session_role(request) or check_access(request, self._settings)
        except AccessError:
            if credential := _credential(request):  # who shows none guesses nothing
                self._count_failure(caller, credential)
            raise
        self._limit(caller, "requests")
        self._check_action(request, role)
        return role

    def sign_in(self, request: Request, password: str) -> Role:
        """The role that a password opens.

        Raises:
            AccessError: it is wrong.
            TooManyRequestsError: its address sent too many wrong ones.
        """
        role = password_role(password, self._settings)
        if role is None:
            self._count_failure(_caller(request), "password")
            raise AccessError("wrong password")
        return role

    def _session_role(self, request: Request) -> Role | None:
        """A session opens what changes nothing, and the console's forms: not Label Studio's routes."""
        if request.method in SAFE_METHODS or request.blueprint in self._pages:
            return sessions.role(self._redis_store)
        return None

    def _check_action(self, request: Request, role: Role) -> None:
        if request.method in SAFE_METHODS or request.blueprint not in self._pages:
            return
        sessions.check_form_token(request)
        if role != "operator" and request.path != SIGN_OUT_PATH:
            raise ForbiddenError("this password lets you look, not act: sign in with the operator's password")

    def _limit(self, caller: str, kind: str) -> None:
        if not self._limiter.hit(self._requests, kind, caller):
            raise TooManyRequestsError("too many requests from this address: try again in a minute")

    def _count_failure(self, caller: str, credential: str) -> None:
        if not self._limiter.hit(self._failures, "failures", caller, credential):
            raise TooManyRequestsError("too many wrong passwords from this address: try again in a minute")

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
    """Which credential a request shows, if any: failures of one kind tell nothing about the other."""
    if WEBHOOK_SECRET_HEADER in request.headers:
        return "secret"
    return "password" if "Authorization" in request.headers else ""


def body_limit(path: str, headers: Mapping[str, str], settings: Settings) -> int:
    """How many bytes of a body the server may read before `Gate` has seen the request.

    Args:
        path: Of the request.
        headers: Of the request, named as in WSGI without HTTP_.
        settings: Credentials.
    """
    limit = PATH_MAX_BYTES.get(path, FORM_MAX_BYTES)
    if path == WEBHOOK_PATH and _is_secret(headers.get("X_ML_SECRET"), settings):
        return limit
    if settings.basic_auth is not None:
        given = Authorization.from_header(headers.get("AUTHORIZATION"))
        return limit if _is_password(given, settings.basic_auth) else min(limit, REFUSED_MAX_BYTES)
    return (
        UNPROVEN_MAX_BYTES if path == WEBHOOK_PATH and settings.webhook_secret.get_secret_value() else limit
    )


def check_access(request: Request, settings: Settings) -> Role:
    """Checks a request's credentials; all of them let programs act.

    Raises:
        AccessError: they are missing or wrong.
    """
    if request.path == WEBHOOK_PATH and _is_secret(request.headers.get(WEBHOOK_SECRET_HEADER), settings):
        return "operator"
    if settings.basic_auth is not None:
        if not _is_password(request.authorization, settings.basic_auth):
            raise AccessError("wrong or missing name and password: see BASIC_AUTH_USER and BASIC_AUTH_PASS")
    elif request.path == WEBHOOK_PATH and settings.webhook_secret.get_secret_value():
        _check_start_training(request)
    return "operator"


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
