"""The demo as `make demo` starts it, in a temporary folder on free ports, and a browser that sees only it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from playwright.sync_api import Browser, Page, sync_playwright

from backend.labelstudio.client import LabelStudioClient
from tests.e2e.editor import Editor
from worker.demo import EMAIL, PASSWORD
from worker.demo_pictures import INDEX, Picture, demo_pictures
from worker.local_label_studio import Account
from worker.up import LOOPBACK

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
SCREENSHOTS = HERE / "screenshots"
LABEL_STUDIO = Path(os.environ.get("LABEL_STUDIO", ROOT / ".venv-label-studio/bin/label-studio"))
CHROMIUM = os.environ.get("CHROMIUM", "chromium")
READY_WITHIN_S = 300.0
END_WITHIN_S = 60.0
POLL_S = 0.25
FINETUNE_AFTER = 8
"""Corrected masks that start a fine-tune; the default of the demo."""
WINDOW = {"width": 1500, "height": 1250}
BROWSER_OPTIONS = (
    "--no-sandbox",  # as root, in a container
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
    f"--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE {LOOPBACK}",
)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.e2e)


@dataclass
class Demo:
    """`sspsam demo` in a folder of its own; can be started, ended and started again."""

    folder: Path
    backend_port: int
    label_studio_port: int
    process: subprocess.Popen[bytes] | None = None
    starts: list[float] = field(default_factory=list)
    """Seconds that each start took."""

    @property
    def backend_url(self) -> str:
        return f"http://{LOOPBACK}:{self.backend_port}"

    @property
    def label_studio_url(self) -> str:
        return f"http://{LOOPBACK}:{self.label_studio_port}"

    @property
    def account(self) -> Account:
        return Account(EMAIL, PASSWORD, str(self._state()["token"]))

    @property
    def project(self) -> int:
        return int(str(self._state()["project"]))

    @property
    def client(self) -> LabelStudioClient:
        return LabelStudioClient(self.label_studio_url, self.account.token)

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
        environment = {**os.environ, "FINETUNE_AFTER": str(FINETUNE_AFTER), "COLUMNS": "120"}
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

    def _screen_file(self) -> Path:
        return self.folder / "screen.txt"

    def _state(self) -> dict[str, object]:
        state: dict[str, object] = json.loads((self.folder / "demo.json").read_text())
        return state


def two_free_ports() -> tuple[int, int]:
    with socket.socket() as one, socket.socket() as other:
        one.bind((LOOPBACK, 0))
        other.bind((LOOPBACK, 0))
        return one.getsockname()[1], other.getsockname()[1]


@pytest.fixture(scope="session")
def demo(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """The running demo; its first start makes Label Studio's data base."""
    running = Demo(tmp_path_factory.mktemp("demo"), *two_free_ports())
    try:
        running.start()
        yield running
    finally:
        if running.process is not None and running.process.poll() is None:
            running.end()


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    program = shutil.which(CHROMIUM)
    assert program is not None, f"no browser {CHROMIUM!r}: run `make chromium`, or set CHROMIUM"
    with sync_playwright() as playwright:
        chromium = playwright.chromium.launch(executable_path=program, args=list(BROWSER_OPTIONS))
        yield chromium
        chromium.close()


@pytest.fixture(scope="session")
def page(browser: Browser) -> Iterator[Page]:
    """One browser window for the whole session, as a person has."""
    context = browser.new_context(viewport=WINDOW)
    yield context.new_page()
    context.close()


@pytest.fixture(scope="session")
def editor(demo: Demo, page: Page) -> Editor:
    """Label Studio in the browser, logged in."""
    editor = Editor(page, demo.label_studio_url)
    editor.log_in(demo.account)
    return editor


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item, call: pytest.CallInfo[None]) -> Iterator[None]:
    """Keeps a picture of the browser when a test has failed."""
    report = yield
    page = getattr(item, "funcargs", {}).get("page")
    if page is not None and report.failed:
        SCREENSHOTS.mkdir(exist_ok=True)
        page.screenshot(path=SCREENSHOTS / f"{re.sub(r'[^a-z0-9]+', '-', item.name.lower())}.png")
    return report
