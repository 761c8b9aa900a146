"""An HTTP server on a free local port for the duration of a `with` block."""

from __future__ import annotations

from abc import ABC, abstractmethod
from socketserver import BaseServer
from threading import Thread
from typing import Self

POLL_S = 0.02
"""How often a server looks whether it is to end."""


class Loopback(ABC):
    """Serves what `make_server` makes, in a thread."""

    @abstractmethod
    def make_server(self) -> BaseServer:
        """Binds to port 0 of 127.0.0.1."""

    def __enter__(self) -> Self:
        self._server = self.make_server()
        self._thread = Thread(target=self._server.serve_forever, kwargs={"poll_interval": POLL_S})
        self._thread.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.server_address[1]}"
