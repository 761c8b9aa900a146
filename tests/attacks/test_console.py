"""The console's forms: who may send them, with what, and how much work they are."""

from __future__ import annotations

import itsdangerous
import pytest
from flask import Flask
from flask.sessions import SecureCookieSessionInterface
from redis import Redis

from backend.console.sessions import COOKIE, SIGN_IN_COOKIE
from backend.settings import Settings
from backend.state.audit import ACTIONS, READ_BYTES
from backend.web.access import FAILURES_PER_MINUTE, FORM_MAX_BYTES
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.backend.console.browser import PASSWORD, VIEWER_PASSWORD, Person, closed, form_paths


@pytest.fixture
def app(settings: Settings, redis_server: Redis) -> Flask:
    return create_app(closed(settings), redis_server, ColourPredictor())


def test_forms_of_other_sites_are_refused(app: Flask) -> None:
    """With the right cookie and even the right token."""
    person = Person(app)
    person.sign_in()
    assert len(form_paths(app)) >= 12
    for path in form_paths(app):
        for origin in ("http://evil.example", "null", "http://localhost:8080"):
            assert person.send(path, origin=origin, password=PASSWORD).status_code == 400, path


@pytest.mark.parametrize("token", ["", "wrong", "x" * 10_000, "\u00e4"])
def test_forms_without_their_token_are_refused(app: Flask, token: str) -> None:
    person = Person(app)
    person.sign_in()
    for path in form_paths(app):
        assert person.send(path, token=token, password=PASSWORD).status_code == 403, path
    assert person.open("/").status_code == 200, "the session is as before"


def test_the_token_of_another_browser_is_refused(app: Flask) -> None:
    person, other = Person(app), Person(app)
    person.sign_in()
    other.sign_in()
    assert person.send("/sign-out", token=other.token()).status_code == 403


def test_a_session_made_before_the_sign_in_is_not_taken_over(app: Flask) -> None:
    """Session fixation: what an attacker planted is replaced."""
    person = Person(app)
    person.sign_in(VIEWER_PASSWORD)
    planted = person.token()
    person.sign_in(PASSWORD)
    person.open("/audit")
    assert person.token() not in ("", planted)


def test_the_sign_in_form_needs_its_token(app: Flask) -> None:
    person = Person(app)
    assert person.send("/sign-in", password=PASSWORD).status_code == 403, "without a cookie"
    person.client.set_cookie(SIGN_IN_COOKIE, "")
    assert person.send("/sign-in", token="", password=PASSWORD).status_code == 403
    person.open("/sign-in")
    assert person.send("/sign-in", token="another", password=PASSWORD).status_code == 403


@pytest.mark.parametrize("key", ["", "right-password", "right-secret", "secret", "dev"])
def test_forged_cookies_open_nothing(app: Flask, key: str) -> None:
    forger = Flask("forger")
    forger.secret_key = key or "x"
    serializer = SecureCookieSessionInterface().get_signing_serializer(forger)
    assert isinstance(serializer, itsdangerous.URLSafeTimedSerializer)
    content = {"role": "operator", "id": "x", "at": 2**40, "csrf": "x"}
    person = Person(app)
    for value in (serializer.dumps(content), serializer.dumps(content)[:-1], "x", "." * 3000):
        person.client.set_cookie(COOKIE, value)
        assert person.open("/").status_code == 303


def test_a_viewer_does_not_become_an_operator(app: Flask) -> None:
    person = Person(app)
    person.sign_in(VIEWER_PASSWORD)
    for fields in ({"role": "operator"}, {"password": "wrong"}):
        person.send("/sign-in", **fields)
        assert "viewer" in person.page("/").text


def test_guessing_at_the_sign_in_page_is_stopped_and_locks_no_one_out(app: Flask) -> None:
    person = Person(app)
    statuses = [person.sign_in(f"guess {number}").status_code for number in range(FAILURES_PER_MINUTE + 5)]
    assert statuses == [401] * FAILURES_PER_MINUTE + [429] * 5
    assert person.sign_in(PASSWORD).status_code == 303


def test_requests_of_strangers_do_not_close_the_sign_in_page(settings: Settings, redis_server: Redis) -> None:
    """Behind a proxy, they have the address of everybody else."""
    few = closed(settings).model_copy(update={"requests_per_minute": 5})
    app = create_app(few, redis_server, ColourPredictor())
    stranger, person = Person(app), Person(app)
    for _ in range(30):
        stranger.open("/sign-in")
        stranger.send("/sign-in", password="guess")
    assert person.sign_in(PASSWORD).status_code == 303


@pytest.mark.parametrize(
    "damage", [b"[" * 100_000, b"\xff\n", b"[]\n7\n{}\n", b'{"at": []', b'{"at":' * 50_000]
)
def test_a_damaged_audit_log_is_shown_as_far_as_it_can_be_read(
    app: Flask, settings: Settings, damage: bytes
) -> None:
    app.extensions["sspsam"].audit.note("address", "operator", "a good entry", "", "done")
    with (settings.model_dir / "audit" / ACTIONS).open("ab") as file:
        file.write(damage)
    person = Person(app)
    person.sign_in()
    page = person.page("/audit").text
    assert ("a good entry" in page) == (len(damage) < READ_BYTES)


def test_guesses_are_counted_with_those_of_basic_auth(app: Flask) -> None:
    person = Person(app)
    for number in range(FAILURES_PER_MINUTE):
        person.client.get("/versions", auth=("user", f"guess {number}"))
    assert person.sign_in("guess").status_code == 429


def test_guesses_are_in_no_audit_log(app: Flask) -> None:
    person = Person(app)
    for number in range(5):
        person.sign_in(f"guess {number}")
    assert app.extensions["sspsam"].audit.latest(10) == []


def test_large_forms_are_not_read(app: Flask) -> None:
    person = Person(app)
    person.sign_in()
    for path in form_paths(app):
        answer = person.send(path, password="x" * (FORM_MAX_BYTES + 1))
        assert answer.status_code == 413, path


def test_pages_escape_what_others_wrote(app: Flask) -> None:
    person = Person(app)
    hostile = "<script>alert(1)</script>'\"&"
    app.extensions["sspsam"].audit.note(hostile, hostile, hostile, hostile, hostile)
    person.sign_in()
    answer = person.open("/audit")
    assert "<script>alert" not in answer.text
    assert hostile in person.page("/audit").text
    refused = person.open(f"/reports/{hostile}/x.html")
    assert (refused.status_code, "<script>alert" in refused.text) == (404, False)
    wrong = person.sign_in("x", after=f"/{hostile}")
    assert "<script>alert" not in wrong.text
