"""Sessions of people: a signed cookie that names the role, and the token that each form must carry.

The cookie is signed with a key derived from the credentials, so every process of a backend accepts it, and a
changed password ends all sessions. It is sent to this host only, never along with requests that another site
starts (SameSite=Strict), and scripts cannot read it.
"""

from __future__ import annotations

import hmac
import json
import time
from datetime import timedelta
from secrets import token_bytes, token_urlsafe
from typing import Literal

from flask import Flask, Request, request, session
from flask.sessions import SecureCookieSessionInterface

from backend.errors import ForbiddenError
from backend.settings import Settings
from backend.state.redis_store import RedisStore

Role = Literal["viewer", "operator"]
"""A viewer sees every page; an operator acts as well."""
COOKIE = "sspsam_console"
LIFETIME_S = 12 * 3600
SIGN_IN_COOKIE = "sspsam_sign_in"
"""The token of the sign-in form. It has a cookie of its own: a request that another site's link starts comes
without the session's cookie, and a new one of that name in its answer would sign the person out."""
TOKEN_FIELD = "token"
"""Of every form."""
TOKEN_BYTES = 24


class ConsoleCookie(SecureCookieSessionInterface):
    """Flask's cookie, which browsers send over TLS only if the person signed in over TLS.

    Behind a proxy that ends TLS, only the Origin stated by the browser tells.
    """

    def get_cookie_secure(self, app: Flask) -> bool:
        if session.get("tls"):
            return True
        return request.is_secure or request.headers.get("Origin", "").startswith("https:")


def prepare_sessions(app: Flask, settings: Settings) -> None:
    """Configures the cookie of an app."""
    app.secret_key = _signing_key(settings)
    app.session_interface = ConsoleCookie()
    app.config.update(
        SESSION_COOKIE_NAME=COOKIE,
        SESSION_COOKIE_HTTPONLY=True,
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_REFRESH_EACH_REQUEST=False,
        PERMANENT_SESSION_LIFETIME=timedelta(seconds=LIFETIME_S),
    )


def _signing_key(settings: Settings) -> bytes:
    """Without a password there is nothing to derive it from: forms then expire when the backend restarts."""
    if settings.basic_auth is None:
        return token_bytes(32)
    secret = settings.webhook_secret.get_secret_value()
    parts = [*settings.basic_auth, settings.viewer_pass.get_secret_value(), secret]
    return hmac.digest((secret or settings.basic_auth[1]).encode(), json.dumps(parts).encode(), "sha256")


def password_role(password: str, settings: Settings) -> Role | None:
    """The role that a password opens; None for a wrong one. Compares in constant time."""
    given = password.encode()
    operator = settings.basic_auth_pass.get_secret_value()
    viewer = settings.viewer_pass.get_secret_value()
    is_operator = hmac.compare_digest(given, operator.encode()) and bool(operator)
    is_viewer = hmac.compare_digest(given, viewer.encode()) and bool(viewer)
    return "operator" if is_operator else "viewer" if is_viewer else None


def begin(role: Role) -> None:
    """Starts a session; nothing of an earlier one is kept."""
    session.clear()
    is_tls = request.is_secure or request.headers.get("Origin", "").startswith("https:")
    session.update(role=role, id=token_urlsafe(TOKEN_BYTES), at=int(time.time()), tls=is_tls)
    session.permanent = True
    form_token()


def end(redis_store: RedisStore) -> None:
    """Ends the session: its cookie is worthless from now on, also as a copy."""
    if isinstance(session.get("id"), str):
        redis_store.end_session(session["id"], LIFETIME_S)
    session.clear()


def role(redis_store: RedisStore) -> Role | None:
    """The role of the request's session; None without one, or if it has ended."""
    found, number, began_s = session.get("role"), session.get("id"), session.get("at")
    if found not in ("viewer", "operator") or not isinstance(number, str) or not isinstance(began_s, int):
        return None
    if not 0 <= time.time() - began_s <= LIFETIME_S or redis_store.session_has_ended(number):
        return None
    signed_in: Role = found
    return signed_in


def form_token() -> str:
    """The token of this browser's forms; made on first use."""
    if not isinstance(session.get("csrf"), str):
        session["csrf"] = token_urlsafe(TOKEN_BYTES)
        session.permanent = True
    token: str = session["csrf"]
    return token


def sign_in_token(request: Request) -> str:
    """The token of this browser's sign-in form: of its cookie, or a new one."""
    return request.cookies.get(SIGN_IN_COOKIE) or token_urlsafe(TOKEN_BYTES)


def check_form_token(request: Request) -> None:
    """Checks that a form was made for this browser.

    Raises:
        ForbiddenError: it was not, or is too old.
    """
    _check_token(request, session.get("csrf"))


def check_sign_in_token(request: Request) -> None:
    """Checks that a sign-in form was made for this browser.

    Raises:
        ForbiddenError: it was not.
    """
    _check_token(request, request.cookies.get(SIGN_IN_COOKIE))


def _check_token(request: Request, expected: object) -> None:
    given = request.form.get(TOKEN_FIELD, "")
    is_token = isinstance(expected, str) and expected != ""
    if not is_token or not hmac.compare_digest(given.encode(), str(expected).encode()):
        raise ForbiddenError("this form is out of date: go back, reload the page and try again")
