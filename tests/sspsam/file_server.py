"""A real HTTP server of files that breaks off, ignores ranges, changes, or redirects as the hub does."""

from __future__ import annotations

import hashlib
import json
import re
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from tests.loopback import Loopback


@dataclass
class Behaviour:
    """How one path is served."""

    content: bytes
    breaks_after: list[int] = field(default_factory=list)
    """Bytes after which the connection drops, for one request after the other; later ones are whole."""
    ranges: bool = True
    failures: list[int] = field(default_factory=list)
    """Status codes of the first requests."""
    changes_to: bytes | None = None
    """What is served from the second request on."""
    hub: bool = False
    """Answer with a redirect that states the sha256, as the hub does."""
    elsewhere: str = ""
    """URL of the server that the hub redirects to; by default another path of the same."""
    status: int = 0
    """Status of every answer, in place of the content."""


class FileServer(Loopback):
    """Serves `files` by path; others are 404."""

    def __init__(self) -> None:
        self.files: dict[str, Behaviour] = {}
        self.asked: list[tuple[str, str, str | None]] = []
        """(method, path, Range)."""
        self.tokens: list[str | None] = []
        """Authorization of each request."""

    def make_server(self) -> ThreadingHTTPServer:
        server = self

        class Handler(_Handler):
            owner = server

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    def ranges(self, path: str) -> list[str | None]:
        """The Range of each GET of a path."""
        return [asked for method, where, asked in self.asked if method == "GET" and where == path]


class _Handler(BaseHTTPRequestHandler):
    owner: FileServer

    def log_message(self, *arguments: object) -> None:
        """The tests read `asked`."""

    def do_HEAD(self) -> None:
        self._answer(with_body=False)

    def do_GET(self) -> None:
        self._answer(with_body=True)

    def _answer(self, with_body: bool) -> None:
        path, asked = self.path.partition("?")[0], self.headers.get("Range")
        if path.startswith("http://"):  # asked as a proxy
            path = "/" + path.split("/", 3)[3]
        self.owner.asked.append((self.command, path, asked))
        self.owner.tokens.append(self.headers.get("Authorization"))
        behaviour = self.owner.files.get(path.removeprefix("/cdn"))
        if behaviour is None:
            self.send_error(404)
        elif behaviour.status:
            self.send_error(behaviour.status)
        elif behaviour.hub and not path.startswith("/cdn"):
            self.send_response(302)
            self.send_header("Location", f"{behaviour.elsewhere}/cdn{self.path}")
            self.send_header("X-Linked-ETag", f'"{hashlib.sha256(behaviour.content).hexdigest()}"')
            self.send_header("X-Linked-Size", str(len(behaviour.content)))
            self.send_header("Content-Length", "0")
            self.end_headers()
        elif behaviour.failures and with_body:
            self.send_error(behaviour.failures.pop(0))
        else:
            self._serve(behaviour, asked, with_body)

    def _serve(self, behaviour: Behaviour, asked: str | None, with_body: bool) -> None:
        content = behaviour.content
        if behaviour.changes_to is not None and with_body:
            behaviour.content, behaviour.changes_to = behaviour.changes_to, None
        etag = f'"{hashlib.md5(content).hexdigest()}"'
        start = 0
        wanted = re.fullmatch(r"bytes=(\d+)-", asked or "") if behaviour.ranges else None
        if wanted and self.headers.get("If-Range", etag) == etag:
            start = int(wanted[1])
            if start >= len(content):
                self.send_response(416)
                self.send_header("Content-Range", f"bytes */{len(content)}")
                self.send_header("Content-Length", "0")
                self.end_headers()
                return
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {start}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        body = content[start:]
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", etag)
        self.send_header("Accept-Ranges", "bytes" if behaviour.ranges else "none")
        self.end_headers()
        if with_body:
            self.wfile.write(body[: behaviour.breaks_after.pop(0)] if behaviour.breaks_after else body)


def hub_listing(files: dict[str, bytes]) -> Behaviour:
    """What the hub's API answers about a repository."""
    siblings = [
        {
            "rfilename": path,
            "size": len(content),
            "lfs": {"sha256": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 135},
        }
        for path, content in files.items()
    ]
    return Behaviour(json.dumps({"siblings": [{"rfilename": "README.md", "size": 5}, *siblings]}).encode())
