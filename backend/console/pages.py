"""What all pages share: the services, navigation, policies, errors, and the audit of actions."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from flask import Flask, Response, current_app, flash, g, make_response, render_template, request, session

from backend.console.assets import asset_path
from backend.console.dashboard import minutes, short_time
from backend.console.sessions import TOKEN_FIELD, form_token
from backend.errors import BackendError
from backend.service import Service
from sspsam.version_store.store import VersionError

PAGE_HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; "
    "img-src 'self' data:; connect-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    # With no-referrer, browsers would state no origin with a form.
    "Referrer-Policy": "same-origin",
}
NAVIGATION = (
    ("/", "Overview"),
    ("/projects", "Projects"),
    ("/jobs", "Jobs"),
    ("/settings", "Settings"),
    ("/audit", "Audit log"),
)
RECENT = "sspsam.recent"
"""Extension of the app: `RecentRequests`."""
FLASH_CHARACTERS = 400
"""The message for the next page travels in the session's cookie, which browsers limit to 4 KB."""


def service() -> Service:
    """The services of the current app."""
    parts: Service = current_app.extensions["sspsam"]
    return parts


def prepare_pages(app: Flask) -> None:
    """Makes what the templates use known to them."""
    app.jinja_env.filters.update(short_time=short_time, gigabytes=gigabytes, seconds=seconds, minutes=minutes)
    app.jinja_env.globals.update(asset=asset_path, form_token=form_token, token_field=TOKEN_FIELD)


def gigabytes(size_bytes: float) -> str:
    """A size with its unit."""
    return f"{size_bytes / 1e9:.1f} GB" if size_bytes >= 1e8 else f"{size_bytes / 1e6:.0f} MB"


def seconds(duration_s: float) -> str:
    """A duration with its unit."""
    return f"{1000 * duration_s:.0f} ms" if duration_s < 1 else f"{duration_s:.1f} s"


def page(template: str, status: int = 200, **values: Any) -> Response:
    """Renders a page.

    Args:
        template: Its file.
        status: HTTP status.
        values: For the template.
    """
    text = render_template(
        template,
        navigation=NAVIGATION,
        here=request.path,
        role=role(),
        closed=service().settings.basic_auth is not None,
        **values,
    )
    return make_response(text, status, PAGE_HEADERS)


def role() -> str:
    """The caller's role; empty before the sign-in."""
    return getattr(g, "role", None) or ""


def wants_page() -> bool:
    """Whether a browser asks for something to display."""
    return "text/html" in request.headers.get("Accept", "")


def error_page(status: int, message: str) -> Response:
    return page("error.html", status, code=status, message=message)


@contextmanager
def audited(action: str, subject: str = "") -> Iterator[list[str]]:
    """Records the action of the block and shows its outcome on the next page.

    Yields:
        Lines about the outcome, for the block to fill.
    """
    lines: list[str] = []
    try:
        yield lines
    except (BackendError, VersionError, OSError) as error:
        note_action(action, subject, f"failed: {error}")
        say(str(error), "error")
    except BaseException:
        note_action(action, subject, "failed: see the log")
        raise
    else:
        note_action(action, subject, "; ".join(lines) or "done")
        say("\n".join(lines) or f"{action}: done")


def note_action(action: str, subject: str, outcome: str, sign_in: bool = False) -> None:
    """Adds an entry of the current request to the audit log."""
    service().audit.note(request.remote_addr or "unknown", role(), action, subject, outcome, sign_in)


def say(text: str, category: str = "message") -> None:
    """Shows a message on the next page, in place of an earlier one that was not shown."""
    session.pop("_flashes", None)
    flash(text[:FLASH_CHARACTERS], category)
