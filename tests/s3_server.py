"""A server on this machine that speaks S3's API."""

from __future__ import annotations

import socket
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.waiting import wait_until

START_S = 120.0
POLL_S = 0.2
SERVER = """
import sys
from moto.server import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import run_simple
run_simple("127.0.0.1", int(sys.argv[1]), DomainDispatcherApplication(create_backend_app))
"""
"""One request after the other: only so does it refuse a second object of one name for certain, as S3 does."""


@contextmanager
def s3_server(port: int | None = None) -> Iterator[str]:
    """Runs one, empty, for as long as the block lasts; yields its address.

    Args:
        port: To listen on; without it, a free one.
    """
    if port is None:
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = int(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-c", SERVER, str(port)]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:

        def answers() -> bool:
            assert server.poll() is None
            try:
                urllib.request.urlopen(f"{url}/moto-api/", timeout=5).close()
            except urllib.error.HTTPError as error:
                error.close()
            except OSError:
                return False
            return True

        try:
            wait_until(answers, "S3 answers", START_S, POLL_S)
            yield url
        finally:
            server.terminate()
