"""The page of the audit log."""

from __future__ import annotations

from flask import Blueprint, Response

from backend.console.pages import page, service

ENTRIES = 200

audit = Blueprint("audit", __name__)


@audit.get("/audit")
def show() -> Response:
    """The newest actions and sign-ins."""
    return page("audit.html", entries=service().audit.latest(ENTRIES), most=ENTRIES)
