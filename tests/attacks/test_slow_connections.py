"""Connections that send or read slowly, or not at all, stop no other."""

from __future__ import annotations

import socket
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from threading import Event, Thread
from typing import Any

import pytest
import requests
from flask import Flask
from redis import Redis

from backend.settings import Settings
from backend.web import buffering
from backend.web.access import REFUSED_MAX_BYTES, body_limit
from backend.web.app import create_app
from backend.web.buffering import BufferingServer
from tests.backend.colours import ColourPredictor
from tests.waiting import wait_until

AUTH = ("user", "right-password")
THREADS = 4
MANY = 120
HEALTH_S = 2.0
"""For an answer of /health, on a busy machine."""
HELD_S = 0.4
"""Time-outs in these tests."""
LARGE_BYTES = 5 * 2**20
"""Of a response that no socket's buffers hold."""


class Running:
    """A server of the app in a thread."""

    def __init__(self, app: Flask, settings: Settings) -> None:
        listener = socket.create_server(("127.0.0.1", 0), backlog=2 * MANY)
        self.port = listener.getsockname()[1]
        self.url = f"http://127.0.0.1:{self.port}"
        self.server = BufferingServer(
            app, listener, THREADS, lambda path, headers: body_limit(path, headers, settings)
        )
        self._ended = Event()
        self._thread = Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while not self._ended.is_set():
            self.server.step()
        self.server.stop(5.0, lambda: None)

    def stop(self) -> None:
        self._ended.set()
        self.server.pull_trigger()
        self._thread.join()

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), timeout=10)

    def health_s(self) -> float:
        """How long it takes to answer."""
        since_s = time.monotonic()
        assert requests.get(f"{self.url}/health", timeout=10).status_code == 200
        return time.monotonic() - since_s

    @property
    def connections(self) -> int:
        return len(self.server.active_channels)


@pytest.fixture
def running(settings: Settings, redis_server: Redis) -> Iterator[Running]:
    own = {"basic_auth_user": AUTH[0], "basic_auth_pass": AUTH[1], "webhook_secret": "right-secret"}
    closed = Settings.model_validate(settings.model_dump() | own | {"open_access": False})
    app = create_app(closed, redis_server, ColourPredictor())
    app.add_url_rule("/large", "large", view_func=lambda: b"x" * LARGE_BYTES)
    app.add_url_rule("/slow", "slow", view_func=lambda: str(time.sleep(HELD_S)))
    server = Running(app, closed)
    yield server
    server.stop()


AUTHORIZATION = b"Authorization: Basic " + b64encode(":".join(AUTH).encode()) + b"\r\n"
BODY = b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 1000\r\n"
ATTACKS = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "half the headers": b"GET /health HTTP/1.1\r\nHost: x\r\nX: ",
    "half a body": BODY + AUTHORIZATION + b"\r\n{",
    "half a body without a password": BODY + b"\r\n{",
    "half a body in chunks": BODY.replace(b"Content-Length: 1000", b"Transfer-Encoding: chunked")
    + AUTHORIZATION
    + b"\r\n3\r\n{",
    "no reading": b"GET /large HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n",
}


SLOW = {"no reading": pytest.mark.slow}
"""Each connection has an answer of megabytes."""


@pytest.mark.parametrize(
    "sent", [pytest.param(sent, id=name, marks=SLOW.get(name, ())) for name, sent in ATTACKS.items()]
)
def test_slow_connections_stop_no_other(running: Running, sent: bytes) -> None:
    with ExitStack() as held:
        for _ in range(MANY):
            held.enter_context(running.connect()).sendall(sent)
        wait_until(lambda: running.connections >= MANY, "all are connected")
        assert max(running.health_s() for _ in range(5)) < HEALTH_S
        versions = requests.get(f"{running.url}/versions", auth=AUTH, timeout=10)
        assert versions.status_code == 200


@pytest.mark.parametrize("sent", ATTACKS.values(), ids=ATTACKS)
def test_slow_connections_end(running: Running, sent: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HEADER_TIMEOUT_S", "IDLE_TIMEOUT_S", "TRANSFER_TIMEOUT_S"):
        assert getattr(buffering, name) <= 20
        monkeypatch.setattr(buffering, name, HELD_S)
    monkeypatch.setattr(buffering, "LEAST_BYTES_PER_S", 10 * LARGE_BYTES)
    with running.connect() as connection:
        connection.sendall(sent)
        wait_until(lambda: running.connections == 1, "it is connected")
        wait_until(lambda: running.connections == 0, "it is ended")


def test_dribbling_ends_too(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each byte arrives in time; all of them do not."""
    monkeypatch.setattr(buffering, "HEADER_TIMEOUT_S", HELD_S)
    since_s = time.monotonic()
    with running.connect() as connection, suppress(OSError):
        for _ in range(1000):
            connection.sendall(b"x")
            time.sleep(0.02)
    assert time.monotonic() - since_s < 10


def test_health_is_answered_while_all_threads_are_at_work(running: Running) -> None:
    with ExitStack() as held:
        request = b"GET /slow HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n"
        for _ in range(4 * THREADS):
            held.enter_context(running.connect()).sendall(request)
        wait_until(lambda: running.connections >= 4 * THREADS, "all are connected")
        assert running.health_s() < 2 * HELD_S


def test_room_is_made_for_new_connections(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    """By ending the one that has waited longest, never one whose request is with the app."""
    monkeypatch.setattr(running.server, "_most_connections", 10)
    with ExitStack() as held:
        busy = held.enter_context(running.connect())
        busy.sendall(b"GET /slow HTTP/1.0\r\n" + AUTHORIZATION + b"\r\n")
        for _ in range(50):
            held.enter_context(running.connect()).sendall(b"GET ")
            assert running.connections <= 10
        assert running.health_s() < HEALTH_S
        assert busy.recv(100).startswith(b"HTTP/1.0 200")


def test_a_large_body_without_the_password_is_not_read(running: Running) -> None:
    claimed = 100 * 2**20
    with running.connect() as connection:
        connection.sendall(
            b"POST /predict HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n" % claimed + b"x" * 1000
        )
        assert connection.recv(100).startswith(b"HTTP/1.1 401")
    small = requests.post(f"{running.url}/predict", data=b"x" * (REFUSED_MAX_BYTES - 1), timeout=10)
    assert small.status_code == 401


@pytest.mark.parametrize(
    "line",
    [
        b"GET a://" + b"1" * 4000 + b" X",
        b"GET " + b"/" * 8000 + b" HTTP/1.1",
        b"G" * 30_000,
        b"GET /\x1b[2J HTTP/1.1",
        b"GET  / HTTP/1.1",
        b"GET / HTTP/9.9",
        b"GET http://evil.example/ HTTP/1.1",
    ],
)
def test_malformed_request_lines_are_refused_at_once(running: Running, line: bytes) -> None:
    """Waitress's own pattern took a second and more for the first of them."""
    since_s = time.thread_time()
    with running.connect() as connection:
        connection.sendall(line + b"\r\nHost: x\r\n\r\n")
        assert connection.recv(100).split()[1] in (b"400", b"431")
    assert running.health_s() < HEALTH_S
    assert time.thread_time() - since_s < 1


def test_large_requests_and_answers_arrive_whole(running: Running) -> None:
    body: dict[str, Any] = {"tasks": [], "padding": "x" * LARGE_BYTES}
    assert requests.post(f"{running.url}/predict", json=body, auth=AUTH, timeout=30).json() == {"results": []}
    assert len(requests.get(f"{running.url}/large", auth=AUTH, timeout=30).content) == LARGE_BYTES


def test_a_connection_serves_many_requests(running: Running) -> None:
    with requests.Session() as session:
        session.auth = AUTH
        for _ in range(20):
            assert session.get(f"{running.url}/versions", timeout=10).status_code == 200
        assert running.connections == 1
