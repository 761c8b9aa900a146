"""A reverse proxy that offers a server under a path, as nginx does for a Label Studio beside other sites."""

from __future__ import annotations

from dataclasses import dataclass

import requests
from werkzeug.serving import BaseWSGIServer, make_server
from werkzeug.wrappers import Request, Response

from tests.loopback import Loopback

TIMEOUT_S = 120.0
OF_A_CONNECTION = frozenset(
    {"connection", "content-encoding", "content-length", "date", "server", "transfer-encoding"}
)
"""Headers that are not passed on."""


@dataclass
class PathProxy(Loopback):
    """Passes requests for `path` on to `target`, without that path; all others are 404."""

    path: str
    target: str

    def make_server(self) -> BaseWSGIServer:
        return make_server("127.0.0.1", 0, Request.application(self._pass_on), threaded=True)

    def _pass_on(self, request: Request) -> Response:
        whole = request.full_path.rstrip("?")
        if not whole.startswith(f"{self.path}/"):
            return Response("", 404)
        with requests.request(
            request.method,
            f"{self.target}{whole.removeprefix(self.path)}",
            headers=dict(request.headers.items()),
            data=request.get_data(),
            allow_redirects=False,
            timeout=TIMEOUT_S,
        ) as answer:
            kept = [pair for pair in answer.headers.items() if pair[0].lower() not in OF_A_CONNECTION]
            return Response(answer.content, answer.status_code, kept)
