"""Real parts, started once for all integration tests: a Label Studio in its own venv, and the service."""

import os
import random
import secrets
import socket
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from itertools import cycle
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from rich.console import Console

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.setup import connect_project
from tests.annotator_client import AnnotatorClient
from tests.integration.path_proxy import PathProxy
from tests.integration.project import PICTURES, Project
from worker.local.demo_pictures import demo_pictures
from worker.local.local_label_studio import Account, label_studio_part
from worker.local.supervisor import Supervisor
from worker.local.up import LOOPBACK, start_redis, start_service

if TYPE_CHECKING:
    from tests.integration.parts import RedisProcess

ROOT = Path(__file__).parents[2]
HERE = Path(__file__).parent
LABEL_STUDIO = Path(os.environ.get("LABEL_STUDIO", ROOT / ".venv-label-studio/bin/label-studio"))
MAX_PROCESSES = 16
"""Processes of pytest-xdist that have ports of their own."""
FIRST_PORT, LAST_PORT = 16_000, 32_000
_ports = cycle(random.sample(range(FIRST_PORT // MAX_PROCESSES, LAST_PORT // MAX_PROCESSES), 900))
LOCAL_FILES = "local-files"
"""The folder, in Label Studio's own, whose files it may give out."""


PATIENCE_S = 1200
"""Of a test: Label Studio's first start, or several waits for a training, on a busy machine."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests of the real Label Studio run one after another in one process, which starts it once."""
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.integration)
            if item.get_closest_marker("timeout") is None:
                item.add_marker(pytest.mark.timeout(PATIENCE_S))
            if "label_studio" in getattr(item, "fixturenames", ()):
                item.add_marker(pytest.mark.xdist_group("label-studio"))


@dataclass(frozen=True)
class RunningLabelStudio:
    """A Label Studio that answers, and its only user."""

    url: str
    account: Account
    folder: Path
    """Of its data."""

    @property
    def client(self) -> AnnotatorClient:
        return AnnotatorClient(self.url, self.account.token)


@dataclass(frozen=True)
class RunningService:
    """The backend, a worker and the schedule of one temporary folder."""

    url: str
    redis_url: str
    model_dir: Path
    webhook_secret: str
    environment: dict[str, str]
    """What `sspsam` needs to work on the same data."""


def free_port() -> int:
    """A port that was free a moment ago, and that no other test process takes.

    Each has ports of its own, below those that the system gives to connections.
    """
    number = int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw"))
    for port in _ports:
        with socket.socket(socket.AF_INET, socket.SOCK_STREAM) as probe, suppress(OSError):
            probe.bind((LOOPBACK, port * MAX_PROCESSES + number % MAX_PROCESSES))
            return int(probe.getsockname()[1])
    raise AssertionError("no free port")


@contextmanager
def running_label_studio(program: Path, folder: Path, path: str = "") -> Iterator[RunningLabelStudio]:
    """A new Label Studio; its first start makes a data base, which takes about a minute.

    Args:
        program: `label-studio`.
        folder: For its data.
        path: Such as /label-studio, under which a proxy offers it.
    """
    assert program.exists(), f"no Label Studio at {program}: run `make install`"
    account = Account("annotator@example.com", "password", secrets.token_hex(20))
    port = free_port()
    direct = f"http://{LOOPBACK}:{port}"
    local_files = {
        "LOCAL_FILES_SERVING_ENABLED": "true",
        "LOCAL_FILES_DOCUMENT_ROOT": str(folder / LOCAL_FILES),
    }
    with ExitStack() as parts:
        proxy = parts.enter_context(PathProxy(path, direct)) if path else None
        url = f"{proxy.url}{path}" if proxy else direct
        part = label_studio_part(program, port, folder, account)
        command = [url if word == direct else word for word in part.command]
        environment = {**(part.environment or {}), **local_files}
        supervisor = parts.enter_context(Supervisor(folder / "logs"))
        supervisor.start(replace(part, command=command, environment=environment))
        supervisor.wait_until_ready("label-studio")
        yield RunningLabelStudio(url, account, folder)


@pytest.fixture(scope="session")
def label_studio(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningLabelStudio]:
    with running_label_studio(LABEL_STUDIO, tmp_path_factory.mktemp("label-studio")) as running:
        yield running


@pytest.fixture(scope="session")
def other_servers() -> list[int]:
    """Ports where tests may have servers of pictures: the service is told of them when it starts."""
    return [free_port() for _ in range(2)]


@contextmanager
def running_service(
    label_studio: RunningLabelStudio, folder: Path, other_servers: Sequence[int] = ()
) -> Iterator[RunningService]:
    """The service as `sspsam up` starts it, with the tiny preset of random weights."""
    port = free_port()
    secret = secrets.token_hex(8)
    environment = {
        **os.environ,
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_HOST": label_studio.url.replace(LOOPBACK, "localhost"),
        "IMAGE_HOSTS": ",".join(f"{LOOPBACK}:{port}" for port in other_servers),
        "LABEL_STUDIO_API_KEY": label_studio.account.token,
        "WEBHOOK_SECRET": secret,
        "OPEN_ACCESS": "true",  # the webhook's secret alone
        "MODEL_DIR": str(folder / "models"),
        "PUBLIC_URL": f"http://{LOOPBACK}:{port}",
        "PRESET": "ssp-sam-test",
        "FINETUNE_AFTER": "1000",
        "TRAINING_NICE": "0",  # tests run beside one another
        "DEVICE": "cpu",
    }
    console = Console(quiet=True)
    with Supervisor(folder / "logs") as supervisor:
        redis_url = start_redis(supervisor, folder / "redis", console)
        start_service(supervisor, console, environment, redis_url, port)
        environment["REDIS_URL"] = redis_url
        url = f"http://{LOOPBACK}:{port}"
        yield RunningService(url, redis_url, folder / "models", secret, environment)


@pytest.fixture(scope="session")
def service(
    tmp_path_factory: pytest.TempPathFactory, label_studio: RunningLabelStudio, other_servers: list[int]
) -> Iterator[RunningService]:
    with running_service(label_studio, tmp_path_factory.mktemp("service"), other_servers) as running:
        yield running


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [picture.path for picture in demo_pictures(folder, PICTURES)]


@pytest.fixture
def project(label_studio: RunningLabelStudio, service: RunningService, pictures: list[Path]) -> Project:
    client = label_studio.client
    number = int(client.create_project("Loop", RECOMMENDED_CONFIG)["id"])
    client.upload_images(number, pictures)
    connect_project(client, number, service.url, webhook_secret=service.webhook_secret)
    return Project(client, service, number, [task["id"] for task in client.tasks(number)])


@pytest.fixture
def redis_process() -> "Iterator[RedisProcess]":
    from tests.integration.parts import RedisProcess

    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:  # a socket's path must be short
        process = RedisProcess(Path(folder))
        process.start()
        yield process
        process.kill()
