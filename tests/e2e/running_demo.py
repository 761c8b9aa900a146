"""`sspsam demo` as a child process of the tests."""

import json
import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from playwright.sync_api import Page

from tests.annotator_client import AnnotatorClient
from worker.local.demo import EMAIL, PASSWORD, DemoState
from worker.local.demo_pictures import INDEX, Picture, demo_pictures
from worker.local.local_label_studio import Account
from worker.local.up import LOOPBACK

ROOT = Path(__file__).parents[2]
LABEL_STUDIO = Path(os.environ.get("LABEL_STUDIO", ROOT / ".venv-label-studio/bin/label-studio"))
READY_WITHIN_S = 900.0
END_WITHIN_S = 60.0
POLL_S = 0.25
FINETUNE_AFTER = 8
"""Corrected masks that start a fine-tune; the default of the demo."""


@dataclass
class Demo:
    """`sspsam demo` in a folder of its own; can be started, ended and started again."""

    folder: Path
    backend_port: int
    label_studio_port: int
    process: subprocess.Popen[bytes] | None = None
    settings: Mapping[str, str] = field(
        default_factory=lambda: {"FINETUNE_AFTER": str(FINETUNE_AFTER), "TRAINING_NICE": "0"}
    )
    """Environment variables of the service that differ from what the demo gives it."""
    starts: list[float] = field(default_factory=list)
    """Seconds that each start took."""

    @property
    def backend_url(self) -> str:
        return f"http://{LOOPBACK}:{self.backend_port}"

    @property
    def label_studio_url(self) -> str:
        return f"http://{LOOPBACK}:{self.label_studio_port}"

    def open_start_page(self, page: Page) -> None:
        """Opens the backend's own page, and signs in there with the password that the demo prints."""
        page.goto(self.backend_url)
        if page.url.startswith(f"{self.backend_url}/sign-in"):
            page.get_by_label("Password").fill(self.state.backend_password)
            page.get_by_role("button", name="Sign in").click()

    @property
    def account(self) -> Account:
        return Account(EMAIL, PASSWORD, self.state.token)

    @property
    def project(self) -> int:
        assert self.state.project is not None
        return self.state.project

    @property
    def state(self) -> DemoState:
        """What the demo remembers: its project and its secrets."""
        return DemoState.load(self.folder / "demo.json")

    @property
    def client(self) -> AnnotatorClient:
        return AnnotatorClient(self.label_studio_url, self.account.token)

    @property
    def pictures(self) -> list[Picture]:
        folder = self.folder / "pictures"
        return demo_pictures(folder, len(json.loads((folder / INDEX).read_text())))

    @property
    def screen(self) -> str:
        """What the demo has printed since its last start."""
        return self._screen_file().read_text()

    @property
    def environment(self) -> dict[str, str]:
        """For `sspsam` commands on the demo's data."""
        return {
            **os.environ,
            "LABEL_STUDIO_URL": self.label_studio_url,
            "LABEL_STUDIO_API_KEY": self.account.token,
            "MODEL_DIR": str(self.folder / "models"),
            "REDIS_URL": f"unix://{self.folder}/redis/redis.sock",
        }

    def sspsam(self, *arguments: str) -> str:
        """Runs an `sspsam` command and returns what it printed."""
        command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), *arguments]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def start(self) -> None:
        """Starts everything and waits until the demo says that it is ready."""
        arguments = ["--data-dir", str(self.folder), "--label-studio", str(LABEL_STUDIO)]
        arguments += ["--backend-port", str(self.backend_port)]
        arguments += ["--label-studio-port", str(self.label_studio_port)]
        command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), "demo", *arguments]
        environment = {**os.environ, **self.settings, "COLUMNS": "120"}
        self.folder.mkdir(parents=True, exist_ok=True)
        began = time.monotonic()
        with self._screen_file().open("wb") as screen:
            self.process = subprocess.Popen(command, env=environment, stdout=screen, stderr=subprocess.STDOUT)
        while "is ready ─" not in self.screen:
            assert self.process.poll() is None, self.screen
            assert time.monotonic() - began < READY_WITHIN_S, self.screen
            time.sleep(POLL_S)
        self.starts.append(time.monotonic() - began)

    def end(self) -> int:
        """Presses Ctrl-C and returns the exit status."""
        assert self.process is not None
        self.process.send_signal(signal.SIGINT)
        return self.process.wait(END_WITHIN_S)

    def end_whatever_happens(self) -> None:
        """Ends the demo, if it runs; kills what is left of it."""
        if self.process is None or self.process.poll() is not None:
            return
        family = psutil.Process(self.process.pid).children(recursive=True)
        try:
            self.end()
        finally:
            for process in [self.process, *family]:
                with suppress(psutil.NoSuchProcess):
                    process.kill()

    def _screen_file(self) -> Path:
        return self.folder / "screen.txt"


def two_free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((LOOPBACK, 0))
        other.bind((LOOPBACK, 0))
        return one.getsockname()[1], other.getsockname()[1]
