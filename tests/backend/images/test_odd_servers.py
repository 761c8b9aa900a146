"""Servers that dribble, send no HTTP, pack their answers or never end are left in time."""

from __future__ import annotations

import gzip
import http.server
import socket
import time
from collections.abc import Sequence
from threading import Thread

import pytest
from werkzeug.wrappers import Response

from backend.errors import ImageError, ImageFetchError, ImageFormatError
from tests.backend.images.test_fetching import label_studio, make_fetcher
from tests.backend.web_server import Web

__all__ = ["label_studio"]


class Raw:
    """A server that sends any bytes, at any pace, to every client."""

    def __init__(self, pieces: Sequence[bytes], pause_s: float = 0.0) -> None:
        self._pieces, self._pause_s = pieces, pause_s
        self._socket = socket.create_server(("127.0.0.1", 0))
        Thread(target=self._serve, daemon=True).start()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._socket.getsockname()[1]}"

    def _serve(self) -> None:
        try:
            while True:
                connection, _ = self._socket.accept()
                with connection:
                    connection.recv(65536)
                    for piece in self._pieces:
                        connection.sendall(piece)
                        time.sleep(self._pause_s)
        except OSError:
            return

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *exception: object) -> None:
        self._socket.close()


@pytest.mark.parametrize(
    "pieces",
    [
        [b"HTTP/1.1 200 OK\r\n", *[b"X-%d: y\r\n" % number for number in range(99)]],
        [b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n", *[b"x"] * 100],
        [b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", *[b"1\r\nx\r\n"] * 100],
        [b""],
    ],
    ids=["headers", "body", "chunks", "silence"],
)
def test_a_server_that_dribbles_is_left_in_time(pieces: Sequence[bytes]) -> None:
    with Raw(pieces, pause_s=0.05 if len(pieces) > 1 else 3) as server:
        since_s = time.monotonic()
        with pytest.raises(ImageFetchError, match=r"within 0\.4 s"):
            make_fetcher(server.url, timeout_s=0.4).fetch(f"{server.url}/a.png")
        assert time.monotonic() - since_s < 2


@pytest.mark.parametrize(
    ("answer", "error"),
    [
        (b"", ImageFetchError),
        (b"garbage\r\n\r\n", ImageFetchError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc", ImageFetchError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n", ImageFetchError),
        (b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nffffffff\r\nab", ImageFetchError),
        (b"HTTP/1.1 200 OK\r\nContent-Length: -5\r\n\r\n", None),
        (b"HTTP/1.1 204 No Content\r\n\r\n", ImageFetchError),
        (b"HTTP/1.1 302 Found\r\nContent-Length: 0\r\n\r\n", ImageFetchError),
        (b"HTTP/1.1 302 Found\r\nLocation: http://[\r\nContent-Length: 0\r\n\r\n", ImageError),
        (b"HTTP/1.1 200 OK\r\n" + b"X: y\r\n" * 200 + b"\r\n", ImageFetchError),
        (b"HTTP/1.1 200 OK\r\nX: " + b"y" * 100_000 + b"\r\n\r\n", ImageFetchError),
    ],
)
def test_answers_that_are_no_http(answer: bytes, error: type[Exception] | None) -> None:
    with Raw([answer]) as server:
        fetcher = make_fetcher(server.url)
        if error is None:
            assert fetcher.fetch(f"{server.url}/a.png") == b""
            return
        with pytest.raises(error):
            fetcher.fetch(f"{server.url}/a.png")


def test_a_packed_answer_is_not_unpacked(label_studio: Web) -> None:
    """A gigabyte of zeros is a megabyte of gzip."""
    bomb = gzip.compress(bytes(10**6))
    label_studio.answers["/a.png"] = Response(bomb, headers={"Content-Encoding": "gzip"})
    with pytest.raises(ImageFormatError, match="compressed"):
        make_fetcher(label_studio.url).fetch(f"{label_studio.url}/a.png")
    assert label_studio.asked[0].headers["Accept-Encoding"] == "identity"


def test_every_type_is_asked_for(label_studio: Web) -> None:
    """Label Studio answers 406 to clients that accept images alone."""
    make_fetcher(label_studio.url).fetch(f"{label_studio.url}/a.png")
    assert label_studio.asked[0].headers["Accept"] == "*/*"


def test_an_endless_answer_ends_at_the_limit() -> None:
    class Endless(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200)
            self.end_headers()
            try:
                while True:
                    self.wfile.write(bytes(65536))
            except OSError:
                return

        def log_message(self, format: str, *args: object) -> None:
            """Says nothing."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Endless)
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        url = f"http://127.0.0.1:{server.server_address[1]}"
        with pytest.raises(ImageFormatError, match="larger than 300000 bytes"):
            make_fetcher(url, max_bytes=300_000).fetch(f"{url}/a.png")
    finally:
        server.shutdown()
        server.server_close()
