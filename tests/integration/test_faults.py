"""Faults, their visible effects, and no loss of data: the table is in docs/reliability.md."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np
import pytest
import requests
import torch

from backend.errors import ImageFetchError
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from sspsam import Predictor
from sspsam.version_store.store import CURRENT, WEIGHTS, VersionCard, VersionStore
from tests.backend.colours import encoded, picture
from tests.integration.conftest import LOOPBACK, free_port
from tests.integration.parts import (
    ANNOTATION,
    AUTH,
    PROJECT,
    SECRET,
    TASK,
    Backend,
    FixedLabelStudio,
    RedisProcess,
)
from tests.waiting import wait_until
from tests.worker.label_studio_server import KEY, LabelStudioServer, region
from tests.worker.reconciling import reconcile_all
from worker.services import Services

AWAY_S = float(os.environ.get("REDIS_AWAY_S", "3"))
"""How long Redis is gone in its test; 60 for the figure in docs/reliability.md."""
START_S = 120.0
PRESET = "ssp-sam-test"


def version_that_answered(answer: requests.Response) -> str:
    assert answer.status_code == 200, answer.text
    assert "not looked for" not in answer.text, answer.text[:500]
    return str(answer.json()["results"][0]["model_version"])


@pytest.fixture
def label_studio_server() -> Iterator[FixedLabelStudio]:
    with FixedLabelStudio() as server:
        server.add_project(PROJECT)
        server.add_task(TASK, PROJECT, picture())
        yield server


@pytest.fixture
def environment(
    tmp_path: Path, redis_process: RedisProcess, label_studio_server: FixedLabelStudio
) -> dict[str, str]:
    return {
        "LABEL_STUDIO_URL": label_studio_server.url,
        "LABEL_STUDIO_API_KEY": KEY,
        "BASIC_AUTH_USER": AUTH[0],
        "BASIC_AUTH_PASS": AUTH[1],
        "WEBHOOK_SECRET": SECRET,
        "MODEL_DIR": str(tmp_path / "models"),
        "REDIS_URL": redis_process.url,
        "PRESET": PRESET,
        "DEVICE": "cpu",
        "HOST": LOOPBACK,
    }


@pytest.fixture
def start(environment: dict[str, str]) -> Iterator[Callable[[], Backend]]:
    """Starts backends; they end with the test."""
    started: list[Backend] = []

    def make() -> Backend:
        port = free_port()
        command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), "serve"]
        process = subprocess.Popen(
            command, env=os.environ | environment | {"PORT": str(port)}, stderr=subprocess.DEVNULL
        )
        started.append(Backend(process, f"http://{LOOPBACK}:{port}"))
        return started[-1]

    yield make
    for backend in started:
        backend.process.kill()
        backend.process.wait()


def image_of(server: LabelStudioServer) -> str:
    return str(server.tasks[TASK]["data"]["image"])


def test_redis_and_label_studio_gone_and_back(
    start: Callable[[], Backend],
    redis_process: RedisProcess,
    label_studio_server: FixedLabelStudio,
    environment: dict[str, str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """One after the other; a backend answers all the while for images that it has."""
    backend = start()
    wait_until(backend.ready, "the model is loaded", START_S)
    image = image_of(label_studio_server)
    version_that_answered(backend.ask(image))

    check_without_label_studio(backend, label_studio_server)
    check_without_redis(backend, redis_process, label_studio_server)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    found = reconcile_all(Services(Settings()))[str(PROJECT)]
    assert found["collected"] >= 1, "what its webhook could not say"


def check_without_label_studio(backend: Backend, label_studio_server: FixedLabelStudio) -> None:
    """For images that are not in the cache the form says why not, and the phrase stays."""
    label_studio_server.add_task(TASK + 1, PROJECT, picture()[:, ::-1])
    other = str(label_studio_server.tasks[TASK + 1]["data"]["image"])
    label_studio_server.__exit__()
    try:
        version_that_answered(backend.ask(image_of(label_studio_server)))
        told = backend.ask(other)
        assert told.status_code == 200
        assert "does not respond" in told.text
        assert backend.webhook().status_code == 201, "it waits in the queue"
    finally:
        label_studio_server.__enter__()
    version_that_answered(backend.ask(other))


def check_without_redis(
    backend: Backend, redis_process: RedisProcess, label_studio_server: FixedLabelStudio
) -> None:
    body = {"project": f"{PROJECT}.1", "schema": RECOMMENDED_CONFIG}
    requests.post(f"{backend.url}/setup", json=body, auth=AUTH, timeout=30)
    redis_process.kill()  # which may lose the last second
    until_s = time.monotonic() + AWAY_S
    label_studio_server.save(ANNOTATION, TASK, region("WR_1", "the red square", picture()[..., 1] == 0))
    since_s = time.monotonic()
    refused = backend.webhook()
    assert refused.status_code == 503
    assert "REDIS_URL" in refused.json()["error"]
    assert time.monotonic() - since_s < 5
    while time.monotonic() < until_s:
        version_that_answered(backend.ask(image_of(label_studio_server)))
    assert backend.health()["status"] == "UP"
    redis_process.start()
    wait_until(lambda: backend.webhook().status_code == 201, "webhooks are taken again", 30)
    requests.post(f"{backend.url}/setup", json=body, auth=AUTH, timeout=30)  # as for every page of tasks


@contextmanager
def full_disk() -> Iterator[None]:
    """No file of this process may grow beyond a hundred bytes: writes fail as they do on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    before = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        signal.signal(signal.SIGXFSZ, before)


def test_disk_full_when_a_picture_is_kept(tmp_path: Path, label_studio_server: FixedLabelStudio) -> None:
    client = LabelStudioClient(label_studio_server.url, KEY)
    store = ImageStore(tmp_path / "images", client, 10**6, 10**6, 10)
    with full_disk(), pytest.raises(ImageFetchError, match="its disk is full"):
        store.digest(image_of(label_studio_server))
    assert list(store.folder.iterdir()) == [], "nothing half-written is left"
    np.testing.assert_array_equal(store.decode(store.digest(image_of(label_studio_server))), picture())


def test_disk_full_when_a_version_is_published_or_promoted(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET)
    good = store.publish({"a": torch.zeros(4)}, VersionCard(), {})
    with full_disk(), pytest.raises(Exception, match=r".+"):  # safetensors' errors are of a kind of their own
        store.publish({"a": torch.zeros(400)}, VersionCard(), {})
    with full_disk(), pytest.raises(OSError, match=r".+"):
        store.promote(good.version_id)
    assert store.current() == store.base_version
    assert [card.version_id for card in store.list()] == [store.base_version, good.version_id]
    assert [path.name for path in store.folder.iterdir() if path.is_dir()] == [good.version_id]
    store.promote(good.version_id)
    assert store.current() == good.version_id


def test_two_backends_start_at_once_on_an_empty_directory_and_one_is_killed_under_load(
    start: Callable[[], Backend], label_studio_server: FixedLabelStudio, environment: dict[str, str]
) -> None:
    """As behind a load balancer that asks the other one when a connection breaks."""
    assert not Path(environment["MODEL_DIR"]).exists()
    backends = [start(), start()]
    for backend in backends:
        wait_until(backend.ready, "the model is loaded", START_S)
    image = image_of(label_studio_server)
    with ThreadPoolExecutor(2) as pool:
        first = list(pool.map(lambda backend: backend.ask(image), backends))
    assert {version_that_answered(answer) for answer in first} == {f"{PRESET}-base"}
    kept = [path.name for path in (Path(environment["MODEL_DIR"]) / "images").iterdir()]
    assert len(kept) == 1

    def ask(number: int) -> int:
        for backend in (backends[number % 2], backends[1 - number % 2]):
            with suppress(requests.ConnectionError, requests.exceptions.ChunkedEncodingError):
                answer = backend.ask(image, f"phrase {number}")
                version_that_answered(answer)
                return answer.status_code
        return 0

    with ThreadPoolExecutor(4) as pool:
        answers = [pool.submit(ask, number) for number in range(40)]
        wait_until(lambda: sum(answer.done() for answer in answers) >= 8, "it is under load", 60)
        backends[0].process.send_signal(signal.SIGKILL)
        assert [answer.result(60) for answer in answers] == [200] * 40
    assert backends[0].process.wait() == -signal.SIGKILL


def test_a_damaged_picture_in_the_cache_is_fetched_again(
    tmp_path: Path, label_studio_server: FixedLabelStudio
) -> None:
    client = LabelStudioClient(label_studio_server.url, KEY)
    store = ImageStore(tmp_path / "images", client, 10**6, 10**6, 10)
    digest = store.digest(image_of(label_studio_server))
    for damaged in (b"", b"garbage", encoded(picture()[::-1])):
        store.path(digest).write_bytes(damaged)
        with pytest.raises(ImageFetchError, match="damaged in the cache"):
            store.decode(digest)
        np.testing.assert_array_equal(store.decode(store.digest(image_of(label_studio_server))), picture())


@pytest.mark.parametrize("what", ["weights", "current file"])
def test_a_damaged_version_does_not_keep_the_backend_from_serving(
    start: Callable[[], Backend],
    label_studio_server: FixedLabelStudio,
    environment: dict[str, str],
    what: str,
) -> None:
    store = VersionStore(Path(environment["MODEL_DIR"]), PRESET)
    state = Predictor.from_preset(PRESET, "cpu").trainable_state()
    version = store.publish(state, VersionCard(), {}).version_id
    store.promote(version)
    if what == "weights":
        weights = store.path(version) / WEIGHTS
        weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    else:
        (store.folder / CURRENT).write_text("{")

    backend = start()
    wait_until(backend.ready, "the model is loaded", START_S)

    assert version_that_answered(backend.ask(image_of(label_studio_server))) == store.base_version
    if what == "weights":
        page = requests.get(backend.url, auth=AUTH, headers={"Accept": "text/html"}, timeout=30).text
        assert "differs from what was published" in page
