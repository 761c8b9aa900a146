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
import requests
from redis import Redis

from tests.integration.conftest import free_port
from worker.local.supervisor import is_running
from worker.local.up import LOOPBACK

SSPSAM = str(Path(sysconfig.get_path("scripts")) / "sspsam")
READY_WITHIN_S = 120.0
END_WITHIN_S = 30.0
CORRECTION = b"a correction"


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


def keep_a_correction(up: Up) -> None:
    with up.redis() as redis:
        redis.set("kept", CORRECTION)


def kept_correction(up: Up) -> object:
    with up.redis() as redis:
        return redis.get("kept")


def test_it_leaves_nothing_behind_and_keeps_what_waits_in_redis(tmp_path: Path) -> None:
    up = Up(tmp_path, free_port())
    assert requests.get(f"http://{LOOPBACK}:{up.port}/health", timeout=10).json()["status"] == "UP"
    programs = " ".join(" ".join(command) for command in up.commands().values())
    assert all(word in programs for word in ("valkey-server", "serve", "worker", "schedule"))
    keep_a_correction(up)
    assert up.end(signal.SIGTERM) == 0
    assert up.survivors() == []

    second = Up(tmp_path, up.port)
    assert kept_correction(second) == CORRECTION
    assert second.end(signal.SIGINT) == 130
    assert second.survivors() == []


def test_killed_it_starts_again_and_a_worker_that_dies_ends_the_others(tmp_path: Path) -> None:
    first = Up(tmp_path, free_port())
    keep_a_correction(first)
    first.process.kill()
    first.process.wait()
    psutil.wait_procs(first.family, timeout=END_WITHIN_S)
    assert first.survivors() == []

    second = Up(tmp_path, first.port)
    assert kept_correction(second) == CORRECTION
    worker = next(process for process, command in second.commands().items() if command[-1:] == ["worker"])
    worker.kill()
    assert second.process.wait(END_WITHIN_S) == 1
    assert "worker exited unexpectedly (killed by SIGKILL)" in second.screen
    assert str(second.data_dir / "logs" / "worker.log") in second.screen
    assert second.survivors() == []


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
