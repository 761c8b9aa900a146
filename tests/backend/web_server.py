"""A small HTTP server with responses set by a test and a record of its requests."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

from tests.loopback import Loopback

Answer = Response | Callable[[Request], Response]


@dataclass
class Asked:
    """A request that came."""

    method: str
    path: str
    headers: dict[str, str]
    body: Any


@dataclass
class Web(Loopback):
    """Answers by path; other paths are 404."""

    answers: dict[str, Answer] = field(default_factory=dict)
    asked: list[Asked] = field(default_factory=list)
    port: int = 0
    """To listen on; 0 is a free one."""

    def make_server(self) -> BaseWSGIServer:
        return make_server("127.0.0.1", self.port, self._application, threaded=True)

    @property
    def authorizations(self) -> list[str | None]:
        """What each request showed, None for nothing."""
        return [request.headers.get("Authorization") for request in self.asked]

    def _application(self, environ: Any, start_response: Any) -> Any:
        request = Request(environ)
        body = request.get_data()
        headers = dict(request.headers.items())
        parsed = json.loads(body) if body and request.is_json else body
        self.asked.append(Asked(request.method, request.full_path.rstrip("?"), headers, parsed))
        answer = self.answers.get(request.path, Response("", 404))
        response = answer if isinstance(answer, Response) else answer(request)
        return response(environ, start_response)


def as_json(value: Any, status: int = 200) -> Response:
    return Response(json.dumps(value), status, content_type="application/json")


def slowly(response: Response, seconds: float) -> Callable[[Request], Response]:
    """An answer that takes its time."""

    def answer(request: Request) -> Response:
        time.sleep(seconds)
        return response

    return answer
