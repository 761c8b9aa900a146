"""A running backend with a real Redis, and a fake Label Studio over HTTP whose tasks are sticker scenes."""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import requests

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam.images.image_io import read_picture
from tests.integration.conftest import free_port
from tests.worker.label_studio_server import KEY, LabelStudioServer
from worker.local.demo_pictures import demo_pictures
from worker.local.redis_program import redis_program

ROOT = Path(__file__).parents[2]
PROJECT = 1
START_S = 180.0
ANSWER_S = 300.0


@dataclass
class Scenes:
    """A fake Label Studio with one project."""

    server: LabelStudioServer
    phrases: dict[int, list[str]]
    """Task -> phrases with a target in its image."""


@contextmanager
def scenes(folder: Path, count: int) -> Iterator[Scenes]:
    """Serves a project of `count` tasks, each with its own image."""
    with LabelStudioServer() as server:
        server.add_project(PROJECT)
        found = {}
        for task, picture in enumerate(demo_pictures(folder, count), start=1):
            server.add_task(task, PROJECT, read_picture(picture.path))
            found[task] = [phrase.text for phrase in picture.phrases]
        yield Scenes(server, found)


@contextmanager
def redis_at(folder: Path) -> Iterator[str]:
    """A Redis on a socket in the folder; yields its URL."""
    socket = folder / "redis.sock"
    command = [str(redis_program()), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with ended(subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL)):
        until_s = time.monotonic() + START_S
        while not socket.exists() and time.monotonic() < until_s:
            time.sleep(0.02)
        yield f"unix://{socket}"


def environment(label_studio_url: str, redis_url: str, models: Path, **more: str) -> dict[str, str]:
    """Environment of backend and worker."""
    return {
        **os.environ,
        "OPEN_ACCESS": "true",  # only this process calls
        "LABEL_STUDIO_URL": label_studio_url,
        "LABEL_STUDIO_API_KEY": KEY,
        "REDIS_URL": redis_url,
        "MODEL_DIR": str(models),
        "REQUESTS_PER_MINUTE": "1000000",
        "LOG_LEVEL": "ERROR",
        **more,
    }


@contextmanager
def backend(told: Mapping[str, str]) -> Iterator[str]:
    """Runs `sspsam serve`; yields its URL once its model is loaded."""
    port = free_port()
    process = subprocess.Popen(
        sspsam("serve"), cwd=ROOT, env={**told, "HOST": "127.0.0.1", "PORT": str(port)}
    )
    url = f"http://127.0.0.1:{port}"
    with ended(process):
        until_s = time.monotonic() + START_S
        while not _ready(url):
            if process.poll() is not None or time.monotonic() > until_s:
                raise SystemExit("the backend did not start")
            time.sleep(0.2)
        yield url


@contextmanager
def serving(count: int, **more: str) -> Iterator[tuple[str, Scenes]]:
    """Runs all of it."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sspsam-")))
        shown = stack.enter_context(scenes(folder / "pictures", count))
        redis_url = stack.enter_context(redis_at(folder))
        told = environment(shown.server.url, redis_url, folder / "models", **more)
        yield stack.enter_context(backend(told)), shown


def sspsam(*arguments: str) -> list[str]:
    """The command line of a command."""
    return [sys.executable, "-c", "from sspsam.cli import main; main()", *arguments]


def ask(session: requests.Session, url: str, scene: Mapping[str, Any], phrase: str) -> list[dict[str, Any]]:
    """Sends a phrase like the editor; returns the regions' results."""
    prediction = predict(session, url, scene, phrase)
    return [one for one in prediction["result"] if one["type"] == "brushlabels"]


def predict(
    session: requests.Session, url: str, scene: Mapping[str, Any], phrase: str, project: int = PROJECT
) -> dict[str, Any]:
    """Sends a phrase like the editor; returns the complete prediction."""
    entry = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
    body = {
        "tasks": [{"id": scene["id"], "data": scene["data"]}],
        "project": f"{project}.1",
        "label_config": RECOMMENDED_CONFIG,
        "params": {"context": {"result": [{**entry, "value": {"text": [phrase]}}]}},
    }
    response = session.post(f"{url}/predict", json=body, timeout=ANSWER_S)
    response.raise_for_status()
    prediction: dict[str, Any] = response.json()["results"][0]
    said = [one["value"]["text"] for one in prediction["result"] if one["from_name"] == "status"]
    if any("not looked for" in text for texts in said for text in texts):
        raise RuntimeError(f"no answer: {said}")
    return prediction


def metric(url: str, name: str) -> float:
    """Value of a line of /metrics, such as `sspsam_embeddings_total{source="disk"}`; 0 if absent."""
    for line in requests.get(f"{url}/metrics", timeout=ANSWER_S).text.splitlines():
        if line.startswith(f"{name} "):
            return float(line.rpartition(" ")[2])
    return 0.0


@contextmanager
def ended(process: subprocess.Popen[bytes]) -> Iterator[None]:
    """Stops a process after the block."""
    try:
        yield
    finally:
        process.terminate()
        process.wait()


def _ready(url: str) -> bool:
    try:
        return bool(requests.get(f"{url}/health", timeout=5).json()["model_state"] == "ready")
    except requests.ConnectionError:
        return False
