"""Sign-in, roles and sessions."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask
from redis import Redis

from backend.console import sessions
from backend.console.sessions import COOKIE, LIFETIME_S
from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.backend.console.browser import PASSWORD, VIEWER_PASSWORD, Person, closed, form_paths
from tests.facts import untold

MakeApp = Callable[..., Flask]


@pytest.fixture
def make_app(settings: Settings, redis_server: Redis) -> MakeApp:
    def make(**changes: Any) -> Flask:
        return create_app(closed(settings, **changes), redis_server, ColourPredictor())

    return make


def test_a_browser_is_led_to_the_sign_in_page_and_back(make_app: MakeApp) -> None:
    person = Person(make_app())

    led = person.open("/audit?x=1")
    assert (led.status_code, led.headers["Location"]) == (303, "/sign-in?after=%2Faudit%3Fx%3D1")
    assert "WWW-Authenticate" not in led.headers, "browsers would ask in a window of their own"
    assert person.page(led.headers["Location"]).values("input", "value")[1] == "/audit?x=1"

    wrong = person.sign_in("wrong", after="/audit?x=1")
    assert wrong.status_code == 401
    assert "Wrong password" in wrong.text
    assert person.open("/audit").status_code == 303

    right = person.sign_in(after="/audit?x=1")
    assert (right.status_code, right.headers["Location"]) == (303, "/audit?x=1")
    assert untold(person.page("/audit").text, "Audit log", "operator", "sign in", "127.0.0.1") == []


@pytest.mark.parametrize(
    "after",
    ["//evil.example", "https://evil.example/", "/\\evil.example", "javascript:alert(1)", "", "/\r\nX: y"],
)
def test_nobody_is_led_elsewhere_after_the_sign_in(make_app: MakeApp, after: str) -> None:
    assert Person(make_app()).sign_in(after=after).headers["Location"] == "/"


def test_the_cookie_is_for_this_site_alone(make_app: MakeApp) -> None:
    answer = Person(make_app()).sign_in()
    cookie = answer.headers["Set-Cookie"]
    assert cookie.startswith(f"{COOKIE}=")
    assert untold(cookie, "HttpOnly", "SameSite=Strict", "Path=/") == []
    assert "Secure" not in cookie
    assert PASSWORD not in cookie


@pytest.mark.parametrize("path", ["/", "/sign-in", "/jobs"])
def test_a_link_of_another_site_ends_no_session(make_app: MakeApp, path: str) -> None:
    """The browser sends it without cookies, which are for this site alone, but keeps those of the answer."""
    person = Person(make_app())
    person.sign_in()
    followed = Person(person.client.application)
    place = followed.open(path).headers.get("Location", path)
    (cookie,) = followed.open(place).headers.getlist("Set-Cookie")
    assert untold(cookie, "HttpOnly", "SameSite=Strict") == []
    name, _, value = cookie.partition(";")[0].partition("=")
    person.client.set_cookie(name, value)
    assert person.open("/").status_code == 200


def test_the_cookie_of_a_tls_site_stays_with_tls(make_app: MakeApp) -> None:
    """A proxy ends TLS: only the browser knows."""
    person = Person(make_app(allowed_hosts="localhost"))
    person.open("/sign-in")
    answer = person.send("/sign-in", origin="https://localhost", password=PASSWORD)
    assert "Secure" in answer.headers["Set-Cookie"]


def test_a_viewer_sees_pages_and_changes_nothing(make_app: MakeApp) -> None:
    app = make_app()
    person = Person(app)
    assert person.sign_in(VIEWER_PASSWORD).status_code == 303
    assert "viewer" in person.page("/").text
    for path in form_paths(app):
        if not path.startswith("/sign-"):
            assert person.send(path).status_code == 403, path
    assert person.send("/sign-out").status_code == 303
    assert person.open("/").status_code == 303


def test_a_session_opens_pages_and_not_label_studios_routes(make_app: MakeApp) -> None:
    person = Person(make_app())
    person.sign_in()
    for path in ("/predict", "/setup", "/webhook"):
        assert person.client.post(path, json={"action": "START_TRAINING"}).status_code == 401
    assert person.client.get("/versions").status_code == 200


def test_a_signed_out_cookie_is_worthless(make_app: MakeApp) -> None:
    person = Person(make_app())
    person.sign_in()
    cookie = person.client.get_cookie(COOKIE)
    assert cookie is not None
    person.send("/sign-out")
    person.client.set_cookie(COOKIE, cookie.value)
    assert person.open("/").status_code == 303


def test_a_session_ends_after_its_time(make_app: MakeApp, monkeypatch: pytest.MonkeyPatch) -> None:
    person = Person(make_app())
    person.sign_in()
    assert person.open("/").status_code == 200
    began_s = time.time()
    monkeypatch.setattr(sessions.time, "time", lambda: began_s + LIFETIME_S + 5)
    assert person.open("/").status_code == 303


def test_sessions_outlive_a_restart_and_end_with_the_password(make_app: MakeApp) -> None:
    person = Person(make_app())
    person.sign_in()
    cookie = person.client.get_cookie(COOKIE)
    assert cookie is not None
    for changes, status in (
        ({}, 200),
        ({"basic_auth_pass": "changed"}, 303),
        ({"viewer_pass": "x" * 9}, 303),
    ):
        other = Person(make_app(**changes))
        other.client.set_cookie(COOKIE, cookie.value)
        assert other.open("/").status_code == status


def test_open_access_needs_no_sign_in_but_its_forms_need_their_token(settings: Settings, app: Flask) -> None:
    person = Person(app)
    assert person.open("/sign-in").headers["Location"] == "/"
    person.page("/audit")
    assert person.send("/sign-out", token="wrong").status_code == 403


@pytest.mark.parametrize(
    "changes", [{"viewer_pass": PASSWORD}, {"basic_auth_user": "", "basic_auth_pass": ""}]
)
def test_a_viewers_password_stands_beside_another_one(settings: Settings, changes: dict[str, str]) -> None:
    with pytest.raises(ValueError, match="VIEWER_PASS"):
        closed(settings, **changes)


def test_a_page_that_polls_leads_to_the_sign_in_page_when_the_session_has_ended(make_app: MakeApp) -> None:
    answer = Person(make_app()).open("/audit", **{"HX-Request": "true"})
    assert answer.headers["HX-Redirect"] == "/sign-in"
    assert "WWW-Authenticate" not in answer.headers
