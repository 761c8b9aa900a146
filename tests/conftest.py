"""What tests share: a real Redis on a socket of its own, and the app on it."""

from __future__ import annotations

import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from redis import Redis, RedisError

from backend.app import create_app
from backend.settings import Settings
from tests.backend.colours import ColourPredictor
from worker.redis_program import redis_program

REDIS_START_S = 20.0


@pytest.fixture(scope="session", autouse=True)
def own_home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Commands find no service, and no models, of the person who runs the tests."""
    with pytest.MonkeyPatch.context() as patch:
        for variable in ("XDG_STATE_HOME", "XDG_DATA_HOME"):
            patch.setenv(variable, str(tmp_path_factory.mktemp(variable.lower())))
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


@pytest.fixture
def settings(tmp_path: Path, redis_url: str) -> Settings:
    """Settings that owe nothing to the environment, but for what a test gives to `model_copy`."""
    return Settings(
        label_studio_url="http://127.0.0.1:9",  # nobody listens there
        label_studio_api_key="key",
        basic_auth_user="",
        basic_auth_pass="",
        webhook_secret="",
        open_access=True,
        model_dir=tmp_path / "models",
        redis_url=redis_url,
        device="cpu",
        preset="ssp-sam-test",
        public_url="http://backend:9090",
    )


@pytest.fixture
def app(settings: Settings, redis_server: Redis) -> Iterator[Flask]:
    """The app with a predictor that looks for colours; it is ready when a test begins to ask."""
    app = create_app(settings, redis_server, ColourPredictor())
    engine = app.extensions["sspsam"].engine
    engine.start()
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
