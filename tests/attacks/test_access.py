"""Who is let in: with the right credentials everyone, and no page of another site."""

from __future__ import annotations

from typing import Any

import pytest
from flask.testing import FlaskClient
from redis import Redis

from backend.settings import Settings
from backend.web import access
from backend.web.access import COUNTED_CALLERS, FAILURES_PER_MINUTE, UNPROVEN_MAX_BYTES
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor

AUTH = ("user", "right-password")
WRONG = ("user", "wrong-password")
SECRET = {"X-ML-Secret": "right-secret"}
EVENT = {"action": "START_TRAINING", "project": {"id": 5}}
STRANGER = "http://evil.example"


@pytest.fixture
def make_client(settings: Settings, redis_server: Redis) -> Any:
    def make(**changes: Any) -> FlaskClient:
        own = {
            "basic_auth_user": AUTH[0],
            "basic_auth_pass": AUTH[1],
            "webhook_secret": SECRET["X-ML-Secret"],
        }
        closed = Settings.model_validate(settings.model_dump() | own | changes)
        return create_app(closed, redis_server, ColourPredictor()).test_client()

    return make


@pytest.fixture
def client(make_client: Any) -> FlaskClient:
    made: FlaskClient = make_client(open_access=False)
    return made


@pytest.fixture
def open_client(make_client: Any) -> FlaskClient:
    made: FlaskClient = make_client(open_access=True, basic_auth_user="", basic_auth_pass="")
    return made


def test_wrong_credentials_lock_out_no_right_ones(client: FlaskClient) -> None:
    """All come from one address: Label Studio's, or a proxy's."""
    for number in range(3 * FAILURES_PER_MINUTE):
        client.get("/versions", auth=("user", f"wrong {number}"))
        client.post("/webhook", json=EVENT, headers={"X-ML-Secret": f"wrong {number}"})
    assert client.get("/versions", auth=("user", "wrong")).status_code == 429
    assert client.post("/webhook", json=EVENT, headers={"X-ML-Secret": "wrong"}).status_code == 429
    assert client.get("/versions", auth=AUTH).status_code == 200
    assert client.post("/webhook", json=EVENT, headers=SECRET).status_code == 201


def test_strangers_use_up_no_requests_of_those_who_may_ask(make_client: Any) -> None:
    client = make_client(open_access=False, requests_per_minute=5)
    for _ in range(50):
        client.get("/versions")
    assert client.get("/versions", auth=AUTH).status_code == 200


@pytest.mark.parametrize("headers", [{}, {"Cookie": "sspsam_console=forged"}])
def test_who_shows_no_password_is_told_of_no_wrong_ones(client: FlaskClient, headers: dict[str, str]) -> None:
    """Visitors share an address with others who have not signed in: a proxy's."""
    for _ in range(2 * FAILURES_PER_MINUTE):
        assert client.get("/versions", headers=headers).status_code == 401
        assert client.post("/webhook", json=EVENT, headers=headers).status_code == 401
    assert client.get("/", headers={"Accept": "text/html"}).status_code == 303
    assert client.get("/versions", auth=("user", "wrong")).status_code == 401


def test_failures_of_many_addresses_take_bounded_memory(
    client: FlaskClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert COUNTED_CALLERS <= 100_000
    monkeypatch.setattr(access, "COUNTED_CALLERS", 20)

    def status_of(address: str) -> int:
        return client.get("/versions", auth=WRONG, environ_base={"REMOTE_ADDR": address}).status_code

    assert {status_of("10.1.0.0") for _ in range(FAILURES_PER_MINUTE)} == {401}
    assert status_of("10.1.0.0") == 429
    assert {status_of(f"10.0.0.{number}") for number in range(25)} == {401}
    assert status_of("10.1.0.0") == 401  # its count was dropped with the others


def test_one_ipv6_network_is_one_caller(client: FlaskClient) -> None:
    for number in range(2 * FAILURES_PER_MINUTE):
        answer = client.get("/versions", auth=WRONG, environ_base={"REMOTE_ADDR": f"2001:db8::{number:x}"})
    assert answer.status_code == 429
    other = {"REMOTE_ADDR": "2001:db8:0:1::1"}
    assert client.get("/versions", auth=WRONG, environ_base=other).status_code == 401


@pytest.mark.parametrize("path", ["/webhook", "/setup", "/predict"])
@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": STRANGER},
        {"Origin": "null"},
        {"Origin": "http://localhost:8080"},
        {"Origin": "http://localhost.evil.example"},
        {"Origin": "http://evil.example:80@localhost"},
        {"Origin": "http://["},
        {"Origin": "file://"},
        {"Referer": f"{STRANGER}/page"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site", "Origin": "http://localhost"},
        {"Origin": STRANGER, "X-Forwarded-Host": "evil.example"},
        {"Origin": STRANGER, "Forwarded": "host=evil.example"},
    ],
)
def test_a_page_of_another_site_changes_nothing(
    client: FlaskClient, path: str, headers: dict[str, str]
) -> None:
    """The browser would send the password that it remembers, over plain HTTP without Sec-Fetch-Site."""
    body = {"action": "START_TRAINING", "project": {"id": 5}, "tasks": []}
    assert client.post(path, json=body, auth=AUTH, headers=headers).status_code == 400
    assert client.post(path, json=body, auth=AUTH).status_code < 300


@pytest.mark.parametrize(
    "content_type", ["text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_types_that_pages_may_send_are_refused(client: FlaskClient, content_type: str) -> None:
    body = b'{"action": "START_TRAINING", "project": {"id": 5}}'
    refused = client.post("/webhook", data=body, content_type=content_type, auth=AUTH)
    assert refused.status_code == 415
    for allowed in ("application/json", "application/json; charset=utf-8", None):
        assert client.post("/webhook", data=body, content_type=allowed, auth=AUTH).status_code == 201


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:9090", "localhost.evil.example", "", "[", "a b"]
)
def test_open_access_answers_to_names_of_this_machine_alone(open_client: FlaskClient, host: str) -> None:
    """The name may be a stranger's, with the address of this machine (DNS rebinding)."""
    for path in ("/", "/versions", "/metrics"):
        answer = open_client.get(path, headers={"Host": host})
        assert answer.status_code == 400, answer.text
    sent = open_client.post("/webhook", json=EVENT, headers={"Host": host, "Origin": f"http://{host}"})
    assert sent.status_code == 400


@pytest.mark.parametrize(
    "host", ["localhost:9090", "127.0.0.1:9090", "[::1]:9090", "LOCALHOST", "192.168.1.5"]
)
def test_a_machine_may_ask_by_localhost_or_address(open_client: FlaskClient, host: str) -> None:
    assert open_client.get("/versions", headers={"Host": host}).status_code == 200
    assert (
        open_client.post(
            "/webhook", json=EVENT, headers={"Host": host, "Origin": f"http://{host}"}
        ).status_code
        == 201
    )


@pytest.mark.parametrize("host", ["backend", "backend:9090", "assist.example.com", "10.0.0.7:9090"])
def test_with_credentials_every_name_is_allowed_unless_some_are_listed(make_client: Any, host: str) -> None:
    client = make_client(open_access=False)
    own = {"Host": host, "Origin": f"https://{host}"}
    assert client.post("/webhook", json=EVENT, headers=own, auth=AUTH).status_code == 201
    listed = make_client(open_access=False, allowed_hosts="backend,assist.example.com:8443")
    assert listed.get("/versions", headers={"Host": host}, auth=AUTH).status_code == 200
    assert listed.get("/versions", headers={"Host": "evil.example"}, auth=AUTH).status_code == 400


def test_a_proxy_may_change_the_host_if_its_own_name_is_listed(make_client: Any) -> None:
    sent = {"Host": "backend:9090", "Origin": "https://assist.example.com"}
    assert (
        make_client(open_access=False).post("/webhook", json=EVENT, headers=sent, auth=AUTH).status_code
        == 400
    )
    for told in (
        {"public_url": "https://assist.example.com"},
        {"allowed_hosts": "assist.example.com,backend"},
    ):
        client = make_client(open_access=False, **told)
        assert client.post("/webhook", json=EVENT, headers=sent, auth=AUTH).status_code == 201
        other_port = sent | {"Origin": "https://assist.example.com:8443"}
        assert client.post("/webhook", json=EVENT, headers=other_port, auth=AUTH).status_code == 400


def test_a_body_of_unstated_length_is_bounded_before_the_secret_is_seen(make_client: Any) -> None:
    client = make_client(open_access=True, basic_auth_user="", basic_auth_pass="")
    read = 0

    class Endless:
        def read(self, size: int = -1) -> bytes:
            nonlocal read
            assert size >= 0, "all of it was asked for"
            read += size
            return b" " * size

        readline = readlines = __iter__ = read

    environ = {"wsgi.input": Endless(), "wsgi.input_terminated": True, "HTTP_TRANSFER_ENCODING": "chunked"}
    answer = client.open("/webhook", method="POST", environ_overrides=environ)
    assert answer.status_code == 401
    assert read <= 2 * UNPROVEN_MAX_BYTES
