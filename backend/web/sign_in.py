"""Sign-in and sign-out."""

from __future__ import annotations

from urllib.parse import urlsplit

from flask import Blueprint, Response, current_app, g, redirect, request
from werkzeug.wrappers import Response as AnyResponse

from backend.console import sessions
from backend.console.pages import note_action, page, service
from backend.errors import AccessError
from backend.web.access import SIGN_IN_PATH, SIGN_OUT_PATH, Gate

GATE = "sspsam.gate"
"""Extension of the app."""

sign_in = Blueprint("sign_in", __name__)


@sign_in.get(SIGN_IN_PATH)
def form() -> AnyResponse:
    if service().settings.basic_auth is None:
        return redirect("/")
    return _form(after=_own_path(request.args.get("after", "")))


@sign_in.post(SIGN_IN_PATH)
def enter() -> AnyResponse:
    gate: Gate = current_app.extensions[GATE]
    after = _own_path(request.form.get("after", ""))
    try:
        g.role = gate.sign_in(request, request.form.get("password", ""))
    except AccessError as error:
        return _form(error.status, after=after, problem=str(error))
    sessions.begin(g.role)
    note_action("sign in", "", "done", sign_in=True)
    return redirect(after, 303)


@sign_in.post(SIGN_OUT_PATH)
def leave() -> Response | AnyResponse:
    note_action("sign out", "", "done", sign_in=True)
    sessions.end(service().redis_store)
    return redirect(SIGN_IN_PATH, 303)


def _form(status: int = 200, **values: str) -> Response:
    token = sessions.sign_in_token(request)
    answer = page("sign-in.html", status, token=token, **values)
    answer.set_cookie(
        sessions.SIGN_IN_COOKIE, token, secure=request.is_secure, httponly=True, samesite="Strict"
    )
    return answer


def _own_path(path: str) -> str:
    """A path of this server; the start page for anything else."""
    try:
        parts = urlsplit(path)
    except ValueError:
        return "/"
    is_own = not (parts.scheme or parts.netloc) and path.isascii() and path.isprintable()
    return path if is_own and path.startswith("/") and path[1:2] not in ("/", "\\") else "/"
