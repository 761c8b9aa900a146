"""Access: open access, rate limits per address, and logs without secrets."""

from __future__ import annotations

import base64
import logging
import subprocess
import sysconfig
from collections.abc import Iterator
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from flask.testing import FlaskClient
from redis import Redis
from werkzeug.wrappers import Response

from backend.errors import SettingsError
from backend.logs import HIDDEN, Redacting, secrets_of
from backend.settings import Settings
from backend.web import access
from backend.web.access import FAILURES_PER_MINUTE, require_secrets
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.backend.editor import ask, prompt, task
from tests.backend.web_server import Web
from tests.facts import untold
from tests.html_page import Page

AUTH = ("user", "planted-password")
SECRETS: dict[str, Any] = {
    "basic_auth_user": AUTH[0],
    "basic_auth_pass": AUTH[1],
    "webhook_secret": "planted-secret",
}


def changed(settings: Settings, **changes: Any) -> Settings:
    return Settings.model_validate(settings.model_dump() | changes)


@pytest.fixture
def closed(settings: Settings) -> Settings:
    return changed(settings, open_access=False, **SECRETS)


@pytest.fixture
def closed_client(closed: Settings, redis_server: Redis) -> FlaskClient:
    return create_app(closed, redis_server, ColourPredictor()).test_client()


@pytest.mark.parametrize("missing", SECRETS)
def test_it_does_not_start_without_its_secrets(settings: Settings, missing: str) -> None:
    with pytest.raises(SettingsError, match=missing.upper()):
        create_app(changed(settings, open_access=False, **{**SECRETS, missing: ""}))


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.1.5", "backend.example.com"])
@pytest.mark.parametrize("missing", ["webhook_secret", "basic_auth_pass"])
def test_open_access_never_listens_to_other_machines(settings: Settings, host: str, missing: str) -> None:
    with pytest.raises(SettingsError, match="OPEN_ACCESS"):
        require_secrets(changed(settings, host=host, open_access=True, **{**SECRETS, missing: ""}))
    require_secrets(changed(settings, host=host, open_access=False, **SECRETS))


def test_open_access_is_chosen_and_warned_of(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    assert Settings.model_fields["open_access"].default is False
    require_secrets(changed(settings, open_access=True))
    assert [record.levelname for record in caplog.records] == ["WARNING"]
    assert untold(caplog.text, "OPEN_ACCESS", "BASIC_AUTH_USER", "BASIC_AUTH_PASS", "WEBHOOK_SECRET") == []


@pytest.mark.slow
def test_serving_is_refused_before_anything_listens(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("BASIC_AUTH_USER", "BASIC_AUTH_PASS", "WEBHOOK_SECRET", "OPEN_ACCESS"):
        monkeypatch.delenv(name, raising=False)
    sspsam = str(Path(sysconfig.get_path("scripts")) / "sspsam")
    for command in ("serve", "up"):
        done = subprocess.run([sspsam, command], capture_output=True, text=True, timeout=60)
        assert done.returncode == 2
        assert "BASIC_AUTH_PASS" in done.stderr


def every_route(app: Flask) -> list[tuple[str, str]]:
    return [
        (method, str(rule))
        for rule in app.url_map.iter_rules()
        for method in sorted((rule.methods or set()) - {"HEAD", "OPTIONS"})
    ]


OPEN = {
    ("GET", "/health"): 200,
    ("GET", "/ready"): 503,
    ("GET", "/assets/<digest>/<name>"): 404,
    ("GET", "/sign-in"): 200,
    ("POST", "/sign-in"): 403,
}
"""Routes that answer without a password: a form without its token is refused."""


def test_every_route_but_health_asks_for_the_password(closed_client: FlaskClient) -> None:
    """Pages and whatever is added later, too."""
    routes = every_route(closed_client.application)
    assert set(routes) > OPEN.keys()
    for number, (method, path) in enumerate(routes):
        caller = {"REMOTE_ADDR": f"10.0.0.{number}"}  # not stopped for its wrong passwords
        path_of_one = path.replace("<int:", "<").replace("<path:filename>", "x")
        answer = closed_client.open(path_of_one, method=method, environ_base=caller)
        assert answer.status_code == OPEN.get((method, path), 401), path


def test_passwords_are_compared_in_constant_time(
    closed_client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Name and password are both compared, however wrong the first is, and by hmac.compare_digest."""
    compared = []

    def compare(one: bytes, other: bytes) -> bool:
        compared.append((one, other))
        return one == other

    monkeypatch.setattr("hmac.compare_digest", compare)
    assert closed_client.get("/versions", auth=("wrong", "wrong")).status_code == 401
    assert compared == [(b"wrong", b"user"), (b"wrong", b"planted-password")]


def test_guessing_is_stopped_for_a_while(closed_client: FlaskClient) -> None:
    for number in range(FAILURES_PER_MINUTE):
        assert closed_client.get("/versions", auth=("user", f"guess {number}")).status_code == 401
    blocked = closed_client.get("/versions", auth=("user", "guess"))
    assert (blocked.status_code, blocked.headers["Retry-After"]) == (429, "60")
    other = {"REMOTE_ADDR": "127.0.0.2"}
    assert closed_client.get("/versions", auth=("user", "guess"), environ_base=other).status_code == 401
    assert closed_client.get("/health").status_code == 200


def test_one_address_may_not_ask_without_end(closed: Settings, redis_server: Redis) -> None:
    app = create_app(changed(closed, requests_per_minute=5), redis_server, ColourPredictor())
    client = app.test_client()
    said = [client.get("/versions", auth=AUTH).status_code for _ in range(6)]
    assert said == [200] * 5 + [429]
    assert client.get("/health").status_code == 200, "a load balancer asks it often"


@pytest.mark.parametrize("path", ["/setup", "/webhook"])
def test_bodies_have_a_limit(closed_client: FlaskClient, path: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(access.PATH_MAX_BYTES, path, 1000)
    for length, ok in ((900, True), (2000, False)):
        body = b'{"action": "x", "pad": "' + b"x" * length + b'"}'
        answer = closed_client.post(path, data=body, auth=AUTH)
        assert (answer.status_code < 300) is ok


def test_a_body_is_not_read_before_the_password_is_seen(closed_client: FlaskClient) -> None:
    class Unread:
        def read(self, *size: int) -> bytes:
            raise AssertionError("it was read")

        readline = readlines = __iter__ = read

    environ = {"wsgi.input": Unread(), "CONTENT_LENGTH": "100", "wsgi.input_terminated": True}
    for path in ("/predict", "/setup", "/webhook"):
        answer = closed_client.open(path, method="POST", environ_overrides=environ)
        assert answer.status_code == 401


def test_a_page_of_another_site_cannot_ask_through_a_browser(closed_client: FlaskClient) -> None:
    """The browser would send the password that it remembers."""
    event = {"action": "START_TRAINING", "project": {"id": 5}}
    headers = {"Sec-Fetch-Site": "cross-site"}
    assert closed_client.post("/webhook", json=event, auth=AUTH, headers=headers).status_code == 400
    assert closed_client.post("/webhook", json=event, auth=AUTH).status_code == 201


def test_answers_forbid_frames_scripts_and_caches(closed_client: FlaskClient) -> None:
    for path in ("/", "/health", "/nothing"):
        headers = closed_client.get(path, auth=AUTH).headers
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert headers["X-Frame-Options"] == "DENY"
        assert "default-src 'none'" in headers["Content-Security-Policy"]
        assert "unsafe" not in headers["Content-Security-Policy"]
        assert headers["Cache-Control"] == "no-store"


@pytest.mark.parametrize("path", ["/", "/sign-in", "/audit"])
def test_pages_load_nothing_from_elsewhere_and_hold_no_script(closed_client: FlaskClient, path: str) -> None:
    answer = closed_client.get(path, auth=AUTH)
    page = Page(answer.text)
    loaded = [*page.values("script", "src"), *page.values("link", "href")]
    assert len(loaded) == 5
    for place in loaded:
        assert place.startswith(("/assets/", "data:,"))
    for place in sorted(loaded)[:4]:
        asset = closed_client.get(place)
        assert asset.status_code == 200
        assert "immutable" in asset.headers["Cache-Control"]
    assert page.texts("script") == ["", ""]
    assert "style" not in page.tags
    assert "style=" not in answer.text
    assert "script-src 'self'; style-src 'self';" in answer.headers["Content-Security-Policy"]


def test_a_mistake_of_ours_tells_the_caller_nothing(
    closed_client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = closed_client.application.extensions["sspsam"]
    monkeypatch.setattr(type(service), "version_ids", lambda self: 1 / 0)
    answer = closed_client.get("/versions", auth=AUTH)
    assert answer.status_code == 500
    assert "ZeroDivision" not in answer.text
    assert "Traceback" not in answer.text


KEY = "planted-label-studio-key"
REDIS_PASSWORD = "planted-redis-password"
PLANTED = [KEY, REDIS_PASSWORD, *SECRETS.values()]


@pytest.fixture
def log(closed: Settings) -> Iterator[StringIO]:
    """All that the service would log at DEBUG, as it would."""
    secret = changed(closed, label_studio_api_key=KEY, redis_url=f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0")
    stream, root = StringIO(), logging.getLogger()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(Redacting(logging.Formatter("%(name)s %(message)s"), secrets_of(secret)))
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.DEBUG)
    yield stream
    root.removeHandler(handler)
    root.setLevel(level)


def test_logs_hold_no_secret(closed: Settings, label_studio: Web, log: StringIO) -> None:
    """Right and wrong passwords, refused keys, a Redis that is away, errors with all of it in them."""
    settings = changed(closed, label_studio_api_key=KEY, redis_url=f"redis://:{REDIS_PASSWORD}@127.0.0.1:1/0")
    client = create_app(settings, None, ColourPredictor()).test_client()
    client.application.extensions["sspsam"].engine.start()
    client.get("/versions", auth=AUTH)
    client.get("/versions", auth=("user", "planted-wrong-password"))
    client.get("/versions", headers={"Authorization": "Bearer planted-bearer-token"})
    client.get("/versions?token=planted-in-query", auth=AUTH)
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": 5}}
    client.post("/webhook", json=event, headers={"X-ML-Secret": SECRETS["webhook_secret"]})
    client.post("/webhook", json=event, headers={"X-ML-Secret": "planted-wrong-secret"})
    client.post("/setup", json={"project": "5.1", "access_token": "planted-access-token"}, auth=AUTH)
    label_studio.answers["/data/a.png"] = Response("", 401)
    client.environ_base["HTTP_AUTHORIZATION"] = "Basic " + base64.b64encode(":".join(AUTH).encode()).decode()
    ask(client, prompt("the red square"), one=task(image="/data/a.png"))
    ask(client, prompt("the red square"), one=task(image="https://u:planted-in-url@cdn/a?sig=planted-sig"))
    for name in ("urllib3", "backend.x", "worker.y"):
        logging.getLogger(name).error("GET https://b/x?X-Amz-Signature=planted-signature&a=1 %s", PLANTED)
    try:
        raise ValueError(f"headers {{'Authorization': 'Token {KEY}'}} at redis://:{REDIS_PASSWORD}@r/0")
    except ValueError:
        logging.getLogger("backend").exception("boom")
    client.application.extensions["sspsam"].engine.stop()

    said = log.getvalue()
    assert said.count("\n") > 15, "something was logged"
    assert HIDDEN in said
    assert [line for line in said.splitlines() if "planted" in line] == []


def test_what_is_no_secret_stays_readable() -> None:
    redact = Redacting(logging.Formatter(), ["abc", ""]).redact
    for text in ("the abc of it", "token by token", "http://127.0.0.1:9/a?d=b.png", "Basic auth", "key 7"):
        assert redact(text) == text
