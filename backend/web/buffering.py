"""The process that serves: waitress, under gunicorn's supervision.

One thread reads and writes all connections, and only a request that has arrived as a whole is given to a
thread of the app: who sends or reads slowly takes none. waitress sets no limit to how long that may last, so
connections have deadlines here, and room is made for new ones.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from typing import Any

from gunicorn.workers.base import Worker
from waitress import wasyncore
from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser, ParsingError
from waitress.server import TcpWSGIServer
from waitress.task import ThreadedTaskDispatcher
from waitress.utilities import RequestEntityTooLarge

from backend.web.access import OPEN_PATHS

HEADER_TIMEOUT_S = 10.0
"""For the first line and the headers of a request."""
IDLE_TIMEOUT_S = 15.0
"""Between two requests on a connection."""
TRANSFER_TIMEOUT_S = 20.0
"""For a body, and for a response, beyond the time that it takes at LEAST_BYTES_PER_S."""
LEAST_BYTES_PER_S = 20_000
SPARE_CONNECTIONS = 512
"""Connections beside those that have a thread. If all are taken, the one that has waited longest ends."""
REQUEST_LINE_MAX_BYTES = 4094
HEADERS_MAX_BYTES = 2**15
CHUNKED_MAX_BYTES = 2**22
"""Of a body in chunks; Label Studio and proxies state the length."""
IN_MEMORY_BYTES = 2**26
"""Of a body, and of a response; more is in a temporary file."""
OPEN_THREADS = 2
"""Of OPEN_PATHS: health checks are answered while all other threads are at work."""
LINGER_S = 1.0
"""Of idle connections when the server stops: a request may be on its way."""
LOOP_S = 0.5

BodyLimit = Callable[[str, Mapping[str, str]], int]
"""Path and headers, named as in WSGI without HTTP_ -> bytes of the body that may be read."""
# The path of a URL alone: waitress's own pattern takes quadratic time for lines with a host.
_REQUEST_LINE = re.compile(rb"[A-Z]{1,20} [/*][^ \x00-\x1f\x7f]* HTTP/1\.[01]")


class Request(HTTPRequestParser):  # type: ignore[misc]  # waitress is not typed
    """A request that is arriving.

    Args:
        body_limit: Of larger bodies nothing is read; the app refuses the request for its stated length, or
            because its credentials are wrong.
        adj: waitress's settings.
    """

    content_length: int = 0
    error: Any = None

    def __init__(self, body_limit: BodyLimit, adj: Adjustments) -> None:
        super().__init__(adj)
        self._body_limit = body_limit
        self._limit = CHUNKED_MAX_BYTES

    def parse_header(self, header_plus: bytes) -> None:
        line, _, _ = header_plus[: REQUEST_LINE_MAX_BYTES + 1].partition(b"\r\n")
        if len(line) > REQUEST_LINE_MAX_BYTES or not _REQUEST_LINE.fullmatch(line):
            raise ParsingError("the request line is malformed, or too long")
        super().parse_header(header_plus)
        limit = self._body_limit(self.path, self.headers)
        self._limit = min(limit, CHUNKED_MAX_BYTES)
        if self.content_length > limit:
            self.content_length, self.body_rcv = 0, None
            self.expect_continue, self.connection_close = False, True

    def received(self, data: bytes) -> int:
        consumed: int = super().received(data)
        if self.chunked and self.body_bytes_received > self._limit and not self.error:
            self.error = RequestEntityTooLarge(f"exceeds {self._limit} bytes")
            self.completed = True
        return consumed


class Channel(HTTPChannel):  # type: ignore[misc]
    """A connection, with a deadline for what it is waiting for."""

    bytes_sent = 0
    _phase: tuple[str, object] = ("", None)
    _since_s = 0.0
    _moved = 0

    @property
    def parser_class(self) -> Callable[[Adjustments], Request]:
        return partial(Request, self.server.body_limit)

    def send(self, data: bytes, do_close: bool = True) -> int:
        sent: int = super().send(data, do_close)
        self.bytes_sent += sent
        return sent

    @property
    def is_waiting(self) -> bool:
        """Whether no request of it is with the app, and no response on its way."""
        return not self.requests and not self.total_outbufs_len

    @property
    def has_sent_headers(self) -> bool:
        """Whether the other side is sending a body."""
        return self.request is not None and self.request.headers_finished

    def waits_s(self, now_s: float) -> float:
        """How long it has been in its phase."""
        self._follow(now_s)
        return now_s - self._since_s

    def is_overdue(self, now_s: float) -> bool:
        """Whether the other side has taken too long."""
        phase, moved = self._follow(now_s)
        limit_s = {
            "serving": float("inf"),
            "idle": IDLE_TIMEOUT_S,
            "headers": HEADER_TIMEOUT_S,
        }.get(phase, TRANSFER_TIMEOUT_S + moved / LEAST_BYTES_PER_S)
        return now_s - self._since_s > limit_s

    def _follow(self, now_s: float) -> tuple[str, int]:
        """The phase, and how many bytes it has moved. A phase begins when this is first called in it."""
        moved, subject = 0, self.request
        if self.total_outbufs_len:
            name, moved = "sending", self.bytes_sent
        elif self.requests:
            name = "serving"
        elif subject is None:
            name, subject = "idle", self.last_activity
        elif not subject.headers_finished:
            name = "headers"
        else:
            name, moved = "body", subject.body_bytes_received
        if self._phase != (name, subject):
            self._phase, self._since_s, self._moved = (name, subject), now_s, moved
        return name, moved - self._moved


class BufferingServer(TcpWSGIServer):  # type: ignore[misc]
    """waitress on a socket that listens already.

    Args:
        app: WSGI application.
        listener: Socket.
        threads: Of the app.
        body_limit: See `Request`.
    """

    channel_class = Channel

    def __init__(self, app: Any, listener: Any, threads: int, body_limit: BodyLimit) -> None:
        self.body_limit = body_limit
        self._most_connections = threads + SPARE_CONNECTIONS
        self._open_dispatcher = ThreadedTaskDispatcher()
        self._open_dispatcher.set_thread_count(OPEN_THREADS)
        dispatcher = ThreadedTaskDispatcher()
        dispatcher.set_thread_count(threads)
        adjustments = Adjustments(
            sockets=[listener],
            threads=threads,
            ident=None,
            recv_bytes=2**16,
            inbuf_overflow=IN_MEMORY_BYTES,
            outbuf_overflow=IN_MEMORY_BYTES,
            outbuf_high_watermark=2**62,  # a thread never waits for a reader
            connection_limit=2**31,  # room is made instead
            log_socket_errors=False,
            max_request_header_size=HEADERS_MAX_BYTES,
            max_request_body_size=2**62,  # see body_limit
        )
        place = (listener.family, listener.type, listener.proto, listener.getsockname())
        super().__init__(
            app, {}, True, listener, dispatcher=dispatcher, adj=adjustments, sockinfo=place, bind_socket=False
        )

    def step(self) -> None:
        """Reads and writes what is ready within LOOP_S, and ends connections that are overdue."""
        wasyncore.loop(LOOP_S, use_poll=True, map=self._map, count=1)
        now_s = time.monotonic()
        for channel in list(self.active_channels.values()):
            if channel.is_overdue(now_s):
                channel.handle_close()

    def pull_trigger(self) -> None:
        """Ends the wait of `step`; does nothing after `stop`."""
        with suppress(OSError):
            super().pull_trigger()

    def add_task(self, task: Channel) -> None:
        is_open = task.requests[0].error is None and task.requests[0].path in OPEN_PATHS
        (self._open_dispatcher if is_open else self.task_dispatcher).add_task(task)

    def handle_accept(self) -> None:
        if len(self.active_channels) >= self._most_connections:
            self._make_room()
        super().handle_accept()

    def _make_room(self) -> None:
        now_s = time.monotonic()
        waiting = [channel for channel in self.active_channels.values() if channel.is_waiting]
        if waiting:
            max(waiting, key=lambda channel: channel.waits_s(now_s)).handle_close()

    def maintenance(self, now: float) -> None:
        """Replaced by `step`: waitress cannot end a connection whose reader has stopped."""

    def stop(self, timeout_s: float, notify: Callable[[], None]) -> None:
        """Accepts nothing more, and waits for the requests that have arrived."""
        self.accepting = False
        self.del_channel()
        self.socket.close()
        since_s = time.monotonic()
        while self.active_channels and time.monotonic() - since_s < timeout_s:
            notify()
            self.step()
            if time.monotonic() - since_s > LINGER_S:
                for channel in list(self.active_channels.values()):
                    if channel.is_waiting and not channel.has_sent_headers:
                        channel.handle_close()
        for dispatcher in (self.task_dispatcher, self._open_dispatcher):
            dispatcher.shutdown(timeout=LINGER_S)
        self.trigger.close()


class BufferingWorker(Worker):  # type: ignore[misc]  # gunicorn is not typed
    """gunicorn's worker process: serves until it is told to stop, or its parent has ended."""

    _server: BufferingServer | None = None

    def run(self) -> None:
        [listener] = self.sockets
        server = BufferingServer(self.wsgi, listener.sock, self.cfg.threads, self.app.body_limit)
        self._server = server
        while self.alive and self.ppid == os.getppid():
            self.notify()
            server.step()
        server.stop(self.cfg.graceful_timeout, self.notify)

    def handle_exit(self, sig: int, frame: Any) -> None:
        super().handle_exit(sig, frame)
        if self._server is not None:
            self._server.pull_trigger()
