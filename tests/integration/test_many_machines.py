"""Two workers and two backends on one Redis and one store, as on several machines: docs/scaling.md."""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import requests
from rq import Worker

from backend.shared_redis import EVENTS, TRAINING
from sspsam.version_store.lines import line_of_project
from tests.integration.conftest import LOOPBACK, free_port
from tests.integration.parts import Backend, FixedLabelStudio, asked
from tests.integration.test_worker_faults import (
    BASE,
    FIRST,
    PICTURES,
    PROJECT,
    collected,
    kill,
    label_studio,
    save_event,
    services,
    wait_long,
)
from worker import jobs
from worker.finetuning.decisions import ask_for_decision
from worker.queueing.queues import training_queue
from worker.services import Services

__all__ = ["label_studio", "services"]


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """A `sspsam worker` of another machine."""
    command = [sys.executable, "-m", "worker", "worker", "--queues", f"{EVENTS},{TRAINING}"]
    process = subprocess.Popen(command)
    try:
        yield process
    finally:
        kill(process)


@contextmanager
def backend() -> Iterator[Backend]:
    """A `sspsam serve` of another machine."""
    port = free_port()
    told = os.environ | {"OPEN_ACCESS": "true", "PORT": str(port), "HOST": LOOPBACK}
    command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), "serve"]
    with subprocess.Popen(command, env=told, stderr=subprocess.DEVNULL) as process:
        try:
            yield Backend(process, f"http://{LOOPBACK}:{port}")
        finally:
            process.kill()


def version_of(server: Backend, image: str) -> str:
    body = asked(image, "the bright square") | {"project": f"{PROJECT}.1"}
    answer = requests.post(f"{server.url}/predict", json=body, timeout=60)
    return str(answer.json()["results"][0]["model_version"])


def test_jobs_are_shared_data_is_trained_once_and_every_backend_swaps(
    services: Services, label_studio: FixedLabelStudio
) -> None:
    image = str(label_studio.tasks[1]["data"]["image"])
    with ExitStack() as stack:
        backends = [stack.enter_context(backend()) for _ in range(2)]
        for _ in range(2):
            stack.enter_context(worker())
        wait_long(lambda: len(Worker.all(connection=services.redis)) == 4)
        for number in range(1, PICTURES + 1):
            save_event(services, number)
        wait_long(lambda: collected(services) == set(range(1, PICTURES + 1)))
        for server in backends:
            wait_long(server.ready)
        assert {version_of(server, image) for server in backends} == {BASE}

        for _ in range(10):  # ten triggers at once, from both machines' schedules and a person
            ask_for_decision(services.redis, PROJECT, "start-training")
            jobs.maybe_finetune(PROJECT, "start-training")
            jobs.check_projects()
        wait_long(lambda: services.store.current(line_of_project(PROJECT)) == FIRST)
        wait_long(lambda: {version_of(server, image) for server in backends} == {FIRST})
        wait_long(lambda: training_queue(services.redis).count == 0)
        shares = [
            each.successful_job_count
            for each in Worker.all(connection=services.redis)
            if EVENTS in each.queue_names()
        ]

    assert [card.version_id for card in services.store.list()] == [BASE, FIRST], "trained once"
    assert len([share for share in shares if share]) == 2, "shared"
