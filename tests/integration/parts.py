"""Parts of a service that tests stop and restart: Redis, Label Studio, backend."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
from redis import Redis, RedisError

from backend.labelstudio.config import RECOMMENDED_CONFIG
from tests.integration.conftest import free_port
from tests.waiting import wait_until
from tests.worker.label_studio_server import LabelStudioServer
from worker.local.redis_program import redis_program

PROJECT, TASK, ANNOTATION = 3, 7, 11
SECRET = "webhook-secret"
AUTH = ("user", "password")


class RedisProcess:
    """A redis-server that can be killed and started again on the same data."""

    def __init__(self, folder: Path) -> None:
        self.url = f"unix://{folder}/r.sock"
        self._command = [str(redis_program()), "--port", "0", "--unixsocket", f"{folder}/r.sock"]
        self._command += ["--dir", str(folder), "--appendonly", "yes", "--save", ""]
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        self._process = subprocess.Popen(self._command, stdout=subprocess.DEVNULL)
        wait_until(self._answers, "Redis answers")

    def kill(self) -> None:
        if self._process is not None:
            self._process.kill()
            self._process.wait()

    def _answers(self) -> bool:
        with suppress(RedisError), Redis.from_url(self.url) as client:
            return bool(client.ping())
        return False


@dataclass
class FixedLabelStudio(LabelStudioServer):
    """A Label Studio that comes back at the same address."""

    port: int = field(default_factory=free_port)


@dataclass(frozen=True)
class Backend:
    """A running `sspsam serve`."""

    process: subprocess.Popen[bytes]
    url: str

    def health(self) -> dict[str, Any]:
        try:
            answer: dict[str, Any] = requests.get(f"{self.url}/health", timeout=5).json()
            return answer
        except requests.RequestException:
            return {}

    def ready(self) -> bool:
        assert self.process.poll() is None, "the backend has ended"
        return self.health().get("model_state") == "ready"

    def ask(self, image: str, phrase: str = "the red square") -> requests.Response:
        return requests.post(f"{self.url}/predict", json=asked(image, phrase), auth=AUTH, timeout=60)

    def webhook(self) -> requests.Response:
        event = {
            "action": "ANNOTATION_CREATED",
            "annotation": {"id": ANNOTATION, "task": TASK},
            "project": {"id": PROJECT},
        }
        return requests.post(f"{self.url}/webhook", json=event, headers={"X-ML-Secret": SECRET}, timeout=30)


def asked(image: str, phrase: str) -> dict[str, Any]:
    prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "value": {"text": [phrase]}}
    return {
        "tasks": [{"id": TASK, "data": {"image": image}}],
        "project": f"{PROJECT}.1",
        "label_config": RECOMMENDED_CONFIG,
        "params": {"context": {"result": [prompt]}},
    }
