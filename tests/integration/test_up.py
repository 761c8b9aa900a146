"""`sspsam up` as a process: starts, becomes healthy, keeps its data, and leaves no process behind."""

import os
import signal
import socket
import subprocess
import sysconfig
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import requests
from redis import Redis

from tests.integration.conftest import free_port
from worker.local.supervisor import is_running
from worker.local.up import LOOPBACK

SSPSAM = str(Path(sysconfig.get_path("scripts")) / "sspsam")
READY_WITHIN_S = 120.0
END_WITHIN_S = 30.0


class Up:
    """A running `sspsam up`."""

    def __init__(self, data_dir: Path, port: int) -> None:
        self.data_dir = data_dir
        self.port = port
        data_dir.mkdir(exist_ok=True)
        self.screen_file = data_dir / "screen.txt"
        self.process = self._start()
        self._wait_until_ready()
        self.family = psutil.Process(self.process.pid).children(recursive=True)

    @property
    def screen(self) -> str:
        return self.screen_file.read_text()

    def end(self, number: signal.Signals) -> int:
        self.process.send_signal(number)
        return self.process.wait(END_WITHIN_S)

    def commands(self) -> dict[psutil.Process, list[str]]:
        """Command lines of the family's processes, those left out that were only passing by."""
        found = {}
        for process in self.family:
            with suppress(psutil.NoSuchProcess):
                found[process] = process.cmdline()
        return found

    def survivors(self) -> list[psutil.Process]:
        return [process for process in self.family if is_running(process)]

    def redis(self) -> Redis:
        return Redis(unix_socket_path=str(self.data_dir / "redis" / "redis.sock"))

    def _start(self) -> subprocess.Popen[bytes]:
        kept = {name: value for name, value in os.environ.items() if name != "REDIS_URL"}
        environment = {**kept, "PRESET": "ssp-sam-test", "OPEN_ACCESS": "true", "COLUMNS": "200"}
        command = [SSPSAM, "up", "--data-dir", str(self.data_dir), "--backend-port", str(self.port)]
        with self.screen_file.open("wb") as screen:
            return subprocess.Popen(command, env=environment, stdout=screen, stderr=subprocess.STDOUT)

    def _wait_until_ready(self) -> None:
        deadline = time.monotonic() + READY_WITHIN_S
        while "Ctrl-C stops everything" not in self.screen:
            assert self.process.poll() is None, self.screen
            assert time.monotonic() < deadline, self.screen
            time.sleep(0.1)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 0)])
def test_runs_and_leaves_nothing_behind(tmp_path: Path, number: signal.Signals, status: int) -> None:
    up = Up(tmp_path, free_port())
    assert requests.get(f"http://{LOOPBACK}:{up.port}/health", timeout=10).json()["status"] == "UP"
    programs = " ".join(" ".join(command) for command in up.commands().values())
    assert all(word in programs for word in ("valkey-server", "serve", "worker", "schedule"))
    assert up.end(number) == status
    assert up.survivors() == []


def test_killed_it_leaves_nothing_behind_and_starts_again(tmp_path: Path) -> None:
    first = Up(tmp_path, free_port())
    with first.redis() as redis:
        redis.set("kept", "a correction")
    first.process.kill()
    first.process.wait()
    psutil.wait_procs(first.family, timeout=END_WITHIN_S)
    assert first.survivors() == []
    second = Up(tmp_path, first.port)
    with second.redis() as redis:
        assert redis.get("kept") == b"a correction"
    second.end(signal.SIGTERM)


def test_a_worker_that_dies_ends_the_others_and_is_named(tmp_path: Path) -> None:
    up = Up(tmp_path, free_port())
    worker = next(process for process, command in up.commands().items() if command[-1:] == ["worker"])
    worker.kill()
    assert up.process.wait(END_WITHIN_S) == 1
    assert "worker exited unexpectedly (killed by SIGKILL)" in up.screen
    assert str(up.data_dir / "logs" / "worker.log") in up.screen
    assert up.survivors() == []


def test_what_waits_in_redis_survives(tmp_path: Path) -> None:
    first = Up(tmp_path, free_port())
    with first.redis() as redis:
        redis.set("kept", "a correction")
    first.end(signal.SIGTERM)
    second = Up(tmp_path, first.port)
    with second.redis() as redis:
        assert redis.get("kept") == b"a correction"
    second.end(signal.SIGTERM)


def test_a_taken_port_is_told_before_anything_starts(tmp_path: Path) -> None:
    with socket.socket() as server:
        server.bind((LOOPBACK, 0))
        server.listen()
        port = str(server.getsockname()[1])
        command = [SSPSAM, "up", "--data-dir", str(tmp_path / "data"), "--backend-port", port]
        environment = {**os.environ, "OPEN_ACCESS": "true"}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=END_WITHIN_S)
    assert done.returncode == 1
    assert f"port {port}" in done.stderr
    assert "--backend-port" in done.stderr
    assert not (tmp_path / "data").exists()
