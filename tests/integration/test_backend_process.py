"""The backend as a separate process, with its key and images in a real Label Studio."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sysconfig
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import IO

import numpy as np
import psutil
import pytest
import requests
from werkzeug.wrappers import Response

from backend.errors import LabelStudioUnauthorized
from backend.images.store import ImageStore
from backend.labelstudio.config import RECOMMENDED_CONFIG
from tests.annotator_client import AnnotatorClient
from tests.backend.colours import encoded, picture
from tests.backend.web_server import Web, slowly
from tests.integration.conftest import LOOPBACK, RunningLabelStudio, free_port
from tests.integration.parts import Backend
from tests.waiting import wait_until

STOP_S = 20.0
BUSY_QUANTILE = 0.25
"""Of the times of answers that counts here: of the others, what else this machine does may be to blame."""
END_PART = 0.15
"""Of the start's work: collecting garbage on the way out alone would be a quarter of it."""
HALF_SENT = 130
"""More requests than the server has threads."""
HEALTH_S = 5.0
PICTURE_S = 1.5
"""How long the picture's server takes in the test of a graceful stop."""


@pytest.fixture
def web() -> Iterator[Web]:
    """A server of one picture."""
    with Web({"/a.png": Response(encoded(picture()), content_type="image/png")}) as web:
        yield web


@pytest.fixture
def start_backend(tmp_path: Path, redis_url: str, web: Web) -> Iterator[Callable[[], Backend]]:
    """Starts backends, whose Label Studio is the picture's server; they end with the test."""
    started: list[Backend] = []

    def start(log: int | IO[bytes] = subprocess.DEVNULL) -> Backend:
        port = free_port()
        own = {
            "LABEL_STUDIO_URL": web.url,
            "LABEL_STUDIO_API_KEY": "key",
            "MODEL_DIR": str(tmp_path / "models"),
            "REDIS_URL": redis_url,
            "PRESET": "ssp-sam-test",
            "DEVICE": "cpu",
            "HOST": LOOPBACK,
            "PORT": str(port),
            "BASIC_AUTH_USER": "",
            "BASIC_AUTH_PASS": "",
            "OPEN_ACCESS": "true",
        }
        command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), "serve"]
        process = subprocess.Popen(command, env=os.environ | own, stderr=log)
        started.append(Backend(process, f"http://{LOOPBACK}:{port}"))
        return started[-1]

    yield start
    for backend in started:
        backend.process.kill()
        backend.process.wait(STOP_S)


def test_it_answers_before_and_after_the_model_is_loaded(
    start_backend: Callable[[], Backend], web: Web
) -> None:
    backend = start_backend()
    wait_until(lambda: bool(backend.health()), "the backend listens", poll_s=0.005)
    body = {"project": "1.1", "schema": RECOMMENDED_CONFIG}
    took_s = []
    while backend.health().get("model_state", "loading") == "loading":
        for path, sent in {"health": None, "setup": body}.items():
            since_s = time.monotonic()
            answer = requests.request(
                "POST" if sent else "GET", f"{backend.url}/{path}", json=sent, timeout=5
            )
            took_s.append(time.monotonic() - since_s)
            assert answer.json()["model_version"] == "ssp-sam-test-base"
    assert took_s, "it answered while it loaded the model"
    assert np.quantile(took_s, BUSY_QUANTILE) < 0.05

    answer = backend.ask(f"{web.url}/a.png")
    assert answer.status_code == 200
    assert answer.json()["results"][0]["model_version"] == "ssp-sam-test-base"
    assert backend.health()["model_state"] == "ready"


def test_half_sent_requests_stop_no_other_and_a_forged_line_is_not_logged(
    start_backend: Callable[..., Backend], tmp_path: Path
) -> None:
    with (tmp_path / "log").open("wb") as log:
        backend = start_backend(log)
        wait_until(lambda: bool(backend.health()), "the backend listens")
        port = int(backend.url.rpartition(":")[2])
        with ExitStack() as held:
            for _ in range(HALF_SENT):
                connection = held.enter_context(socket.create_connection((LOOPBACK, port), timeout=5))
                connection.sendall(b"POST /predict HTTP/1.1\r\nHost: localhost\r\nContent-Le")
            since_s = time.monotonic()
            assert backend.health()
            assert time.monotonic() - since_s < HEALTH_S
        forged = requests.post(f"{backend.url}/webhook%0aFORGED%1b[2J?%e2%80%a8", json={}, timeout=5)
        assert forged.status_code == 404
        hostile = requests.post(f"{backend.url}/webhook", json={"action": "a\nFORGED\x1b[2J"}, timeout=5)
        assert hostile.status_code == 200
        assert requests.post(f"{backend.url}/webhook", json=["\nFORGED\u2028"], timeout=5).status_code == 400
    lines = (tmp_path / "log").read_bytes()
    assert b"FORGED" not in b"".join(line[:20] for line in lines.splitlines())
    assert not set(lines) & (set(range(32)) - {10})


def test_a_request_under_way_is_answered_before_it_stops(
    start_backend: Callable[[], Backend], web: Web
) -> None:
    web.answers["/slow.png"] = slowly(Response(encoded(picture()), content_type="image/png"), PICTURE_S)
    backend = start_backend()
    wait_until(lambda: backend.health().get("model_state") == "ready", "the model is loaded")

    with ThreadPoolExecutor() as pool:
        answer = pool.submit(backend.ask, "/slow.png")
        wait_until(
            lambda: any(request.path == "/slow.png" for request in web.asked), "the picture is asked for"
        )
        backend.process.send_signal(signal.SIGTERM)
        response = answer.result(timeout=STOP_S)

    assert response.status_code == 200
    assert response.json()["results"][0]["model_version"] == "ssp-sam-test-base"
    assert backend.process.wait(STOP_S) == 0
    assert backend.health() == {}


def test_it_ends_with_a_fraction_of_the_work_of_its_start(
    start_backend: Callable[[], Backend], web: Web
) -> None:
    """Of the processor's time, so that it does not matter what else this machine does."""
    backend = start_backend()
    wait_until(lambda: backend.health().get("model_state") == "ready", "the model is loaded")
    assert backend.ask(f"{web.url}/a.png").status_code == 200
    parent = psutil.Process(backend.process.pid)
    [server] = parent.children()

    def used_s(process: psutil.Process = server) -> float:
        times = process.cpu_times()
        return float(times.user + times.system)

    end_s = used_s()
    start_s, before_s = end_s + used_s(parent), end_s
    backend.process.send_signal(signal.SIGTERM)
    with suppress(psutil.NoSuchProcess):
        while server.status() != psutil.STATUS_ZOMBIE:
            end_s = used_s()
            time.sleep(0.01)
    assert backend.process.wait(STOP_S) == 0
    assert end_s - before_s < END_PART * start_s


def personal_token(label_studio: RunningLabelStudio) -> str:
    """Makes a personal access token as the account page does."""
    login = f"{label_studio.url}/user/login/"
    with requests.Session() as browser:
        browser.get(login, timeout=30)
        form = {
            "email": label_studio.account.email,
            "password": label_studio.account.password,
            "csrfmiddlewaretoken": browser.cookies["csrftoken"],
        }
        browser.post(login, data=form, headers={"Referer": login}, timeout=30)
        headers = {"X-CSRFToken": browser.cookies["csrftoken"], "Referer": label_studio.url}
        answer = browser.post(f"{label_studio.url}/api/token/", headers=headers, timeout=30)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["token"])


def test_a_personal_token_opens_the_api_and_the_pictures(
    label_studio: RunningLabelStudio, tmp_path: Path
) -> None:
    file = tmp_path / "shapes.png"
    file.write_bytes(encoded(picture()))
    client = AnnotatorClient(label_studio.url, personal_token(label_studio))
    project = int(client.create_project("Personal", RECOMMENDED_CONFIG)["id"])
    client.upload_images(project, [file])
    (task,) = client.tasks(project)

    store = ImageStore(tmp_path / "images", client, max_bytes=10**6, max_pixels=10**6, timeout_s=30)

    np.testing.assert_array_equal(store.decode(store.digest(task["data"]["image"])), picture())
    assert client.whoami()["email"] == label_studio.account.email


@pytest.mark.parametrize("key", ["f" * 40, "eyJhbGciOiJIUzI1NiJ9.e30.c2lnbmF0dXJl"])
def test_a_wrong_key_is_refused_in_words(label_studio: RunningLabelStudio, tmp_path: Path, key: str) -> None:
    client = AnnotatorClient(label_studio.url, key)
    store = ImageStore(tmp_path / "images", client, max_bytes=10**6, max_pixels=10**6, timeout_s=30)

    with pytest.raises(LabelStudioUnauthorized, match="LABEL_STUDIO_API_KEY"):
        client.whoami()
    with pytest.raises(LabelStudioUnauthorized, match="LABEL_STUDIO_API_KEY"):
        store.digest("/data/upload/1/a.png")
