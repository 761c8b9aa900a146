"""A person at the console: the test client as a browser would use it."""

from __future__ import annotations

import re
from typing import Any

from flask import Flask
from flask.testing import FlaskClient
from werkzeug.test import TestResponse

from backend.console.sessions import SIGN_IN_COOKIE, TOKEN_FIELD
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from tests.html_page import Page

PASSWORD = "right-password"
VIEWER_PASSWORD = "look-password"
SECRET = "right-secret"
ACCEPT = "text/html,application/xhtml+xml,*/*;q=0.8"
HOST = "http://localhost"
NO_FORMS = {"api", "assets"}
"""Blueprints without forms."""


def closed(settings: Settings, **changes: Any) -> Settings:
    """Settings with both passwords."""
    own = {
        "basic_auth_user": "user",
        "basic_auth_pass": PASSWORD,
        "viewer_pass": VIEWER_PASSWORD,
        "webhook_secret": SECRET,
        "open_access": False,
    }
    return Settings.model_validate(settings.model_dump() | own | changes)


def form_paths(app: Flask) -> list[str]:
    """Every route that takes a form, with values for its parts."""
    paths = (
        str(rule)
        for rule in app.url_map.iter_rules()
        if "POST" in (rule.methods or ()) and rule.endpoint.partition(".")[0] not in NO_FORMS
    )
    return [re.sub(r"<any\((\w+)[^>]*>", r"\1", path.replace("<int:project>", "7")) for path in paths]


def at_project(app: Flask) -> Person:
    """Somebody who has opened project 7, which Label Studio has connected."""
    person = Person(app)
    person.client.post("/setup", json={"project": "7.1", "schema": RECOMMENDED_CONFIG})
    person.page("/projects/7")
    return person


class Person:
    """Opens pages, fills in forms and follows redirects."""

    def __init__(self, app: Flask, address: str = "127.0.0.1") -> None:
        self.client: FlaskClient = app.test_client()
        self._environ = {"REMOTE_ADDR": address}

    def open(self, path: str, **headers: str) -> TestResponse:
        return self.client.get(path, headers={"Accept": ACCEPT, **headers}, environ_base=self._environ)

    def page(self, path: str) -> Page:
        """A page that must be there."""
        answer = self.open(path)
        assert answer.status_code == 200, (answer.status_code, answer.text[:500])
        return Page(answer.text)

    def token(self, path: str = "") -> str:
        """Of this browser's forms, or of its sign-in form."""
        if path == "/sign-in":
            cookie = self.client.get_cookie(SIGN_IN_COOKIE)
            return cookie.value if cookie else ""
        with self.client.session_transaction() as session:
            return str(session.get("csrf", ""))

    def send(self, path: str, token: str | None = None, origin: str = HOST, **fields: Any) -> TestResponse:
        """Sends a form; by default with the browser's token, which a page must have made before."""
        values = {TOKEN_FIELD: self.token(path) if token is None else token, **fields}
        headers = {"Accept": ACCEPT, "Origin": origin}
        return self.client.post(path, data=values, headers=headers, environ_base=self._environ)

    def sign_in(self, password: str = PASSWORD, **fields: str) -> TestResponse:
        self.open("/sign-in")
        return self.send("/sign-in", password=password, **fields)
