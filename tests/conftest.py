"""Shared fixtures: a real Redis on its own socket, and the app on it."""

from __future__ import annotations

import gc
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
from flask import Flask
from redis import Redis, RedisError

from backend.settings import Settings
from backend.web.app import create_app
from tests.backend.colours import ColourPredictor
from tests.compiled_once import share_compiled
from worker.local.redis_program import redis_program

REDIS_START_S = 20.0
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT)
STARTS = {"os.fork", "os.forkpty", "os.posix_spawn", "subprocess.Popen"}
"""Audit events of new processes."""
OF_PYTHON = "multiprocessing"
"""In the command lines of helpers that Python's multiprocessing starts for the whole run, and ends itself."""


def pytest_configure() -> None:
    """Lets the processes that tests start react to signals.

    Under nohup, in the background of a script and on some CI machines signals are ignored, or blocked; a new
    process inherits that. A handler it does not inherit, and this one ignores them as before.
    """
    for number in STOP_SIGNALS:
        if signal.getsignal(number) is signal.SIG_IGN:
            signal.signal(number, lambda number, frame: None)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOP_SIGNALS)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Leaves what imports make out of later garbage collections, which looked through it for 0.2 s each."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


class Watch:
    """Descendants of this process before a test starts the first one; None while it has started none.

    Listing them reads every process of the machine, which is too slow for each of thousands of tests.
    """

    def __init__(self) -> None:
        self.is_on = False
        self.before: set[psutil.Process] | None = None

    def hear(self, event: str, arguments: tuple[object, ...]) -> None:
        """Python's audit events; those of STARTS come before the new process exists."""
        if self.is_on and event in STARTS and self.before is None:
            found = set(psutil.Process().children(recursive=True))
            self.before = found if self.before is None else self.before  # another thread may have been faster


watch = Watch()
sys.addaudithook(watch.hear)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Requires that pytest-xdist has put the groups into the IDs; else what tests share is made twice."""
    if getattr(config.option, "loadgroup", False):
        for item in items:
            if item.get_closest_marker("xdist_group") and "@" not in item.nodeid:
                raise pytest.UsageError("this version of pytest-xdist does not group tests under this pytest")


@pytest.fixture(autouse=True)
def end_started_processes() -> Iterator[None]:
    """Ends the processes that a test has started, whatever became of it."""
    watch.is_on, watch.before = True, None
    yield
    watch.is_on = False
    if watch.before is None:
        return
    killed = []
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            if process not in watch.before and not any(OF_PYTHON in word for word in process.cmdline()):
                process.kill()
                killed.append(process)
    psutil.wait_procs(killed, timeout=REDIS_START_S)


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands find no service, and no models, of the person who runs the tests.

    No process measures how fast the machine multiplies, which takes up to 3 s in each new MODEL_DIR.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TUNE_PROCESS", "0")
        for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
        yield


@pytest.fixture(scope="session", autouse=True)
def shared_code() -> Iterator[None]:
    """See `tests.compiled_once`."""
    with pytest.MonkeyPatch.context() as patch:
        share_compiled(patch)
        yield


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """A redis-server without persistence; its socket's path must be short."""
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
        socket = Path(folder) / "redis.sock"
        command = [str(redis_program()), "--port", "0", "--unixsocket", str(socket), "--save", ""]
        process = subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)
        try:
            url = f"unix://{socket}"
            _wait_for(url)
            yield url
        finally:
            process.terminate()
            process.wait(timeout=REDIS_START_S)


@pytest.fixture
def redis_server(redis_url: str) -> Iterator[Redis]:
    """A client of the session's Redis, empty at the start of each test."""
    with Redis.from_url(redis_url) as client:
        client.flushall()
        yield client


@pytest.fixture(scope="session")
def session_settings(redis_url: str) -> Settings:
    """Settings that owe nothing to the environment."""
    return Settings(
        label_studio_url="http://127.0.0.1:9",  # no server listens there
        label_studio_api_key="key",
        basic_auth_user="",
        basic_auth_pass="",
        webhook_secret="",
        open_access=True,
        redis_url=redis_url,
        device="cpu",
        preset="ssp-sam-test",
        public_url="http://backend:9090",
    )


@pytest.fixture
def settings(session_settings: Settings, tmp_path: Path) -> Settings:
    """Settings with a folder of the test's own."""
    return session_settings.model_copy(update={"model_dir": tmp_path / "models"})


@pytest.fixture
def predictor() -> ColourPredictor:
    """That of the app; modules replace it by their own."""
    return ColourPredictor()


@pytest.fixture
def app(settings: Settings, redis_server: Redis, predictor: ColourPredictor) -> Iterator[Flask]:
    """The app; its engine is ready when a test begins to ask."""
    app = create_app(settings, redis_server, predictor)
    engine = app.extensions["sspsam"].engine
    engine.start()
    assert engine.wait(60)
    yield app
    engine.stop()


def _wait_for(url: str) -> None:
    until_s = time.monotonic() + REDIS_START_S
    with Redis.from_url(url) as client:
        while True:
            try:
                client.ping()
                return
            except RedisError:
                if time.monotonic() > until_s:
                    raise
                time.sleep(0.02)
