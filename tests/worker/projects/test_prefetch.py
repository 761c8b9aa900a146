"""Prefetching with the tiny model, a real Redis, a real worker and a fake Label Studio over HTTP."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from backend.service import build_service
from backend.settings import Settings
from backend.state.known_projects import KnownProject
from tests.worker.label_studio_server import LabelStudioServer, prompt, region
from worker import jobs
from worker.cli.commands import app
from worker.projects.chunks import ChunkProgress, ChunkReport
from worker.queueing.queues import prelabel_queue
from worker.services import Services

pytestmark = pytest.mark.slow

UInt8Image = npt.NDArray[np.uint8]
PROJECT = 5


@pytest.fixture(autouse=True)
def tasks(label_studio: LabelStudioServer) -> list[int]:
    label_studio.add_project(PROJECT)
    for task in range(1, 4):
        image = np.random.default_rng(task).integers(0, 255, (48, 64, 3), dtype=np.uint8)
        label_studio.add_task(task, PROJECT, image)
    return [1, 2, 3]


def run(tasks: list[int]) -> dict[str, Any]:
    return jobs.prefetch_chunk(PROJECT, "run", "chunk", tasks)


def embeddings(services: Services) -> set[str]:
    folder = services.settings.embeddings_dir
    assert folder is not None
    return {path.stem for path in folder.rglob("*.safetensors")}


def known(services: Services) -> None:
    services.redis_store.projects.note(KnownProject(str(PROJECT), "", seen_at="2026-01-01T00:00:00+00:00"))


def test_every_picture_is_embedded_once(services: Services, tasks: list[int]) -> None:
    first, again = run(tasks[:2]), run(tasks)

    assert first == {"tasks": 2, "posted": 0, "masks": 0, "skipped": 0, "problems": {}}
    assert (again["tasks"], again["skipped"]) == (3, 2)
    assert embeddings(services) == {
        services.images.digest(f"/data/upload/{PROJECT}/{task:08x}-scene.png") for task in tasks
    }
    assert ChunkProgress(services.redis, "run").report(["chunk"]) == ChunkReport(**again)


def test_the_backend_finds_them(services: Services, tasks: list[int]) -> None:
    run(tasks)
    service = build_service(services.settings, services.redis)
    service.engine.start()
    digest = services.images.digest(f"/data/upload/{PROJECT}/00000002-scene.png")

    def unread() -> UInt8Image:
        raise AssertionError("the embedding is on disk")

    assert service.engine.embed(digest, unread) == "disk"
    service.engine.stop()


def test_what_cannot_be_embedded_is_told(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.files[f"/data/upload/{PROJECT}/00000001-scene.png"] = b"no picture"
    del label_studio.tasks[2]

    report = run(tasks)

    assert report["problems"].keys() == {"1"}
    assert "not an image" in report["problems"]["1"]
    assert (report["tasks"], report["skipped"]) == (3, 1)


def test_the_schedule_queues_the_next_tasks_once(
    services: Services, label_studio: LabelStudioServer, mask: npt.NDArray[np.bool_]
) -> None:
    known(services)
    label_studio.save(7, 1, [*region("a", "a cat", mask), prompt()])

    assert jobs.prefetch_projects() == {str(PROJECT): [2, 3]}
    jobs.prefetch_projects()
    (number,) = prelabel_queue(services.redis).get_job_ids()
    job = Job.fetch(number, connection=services.redis, serializer=JSONSerializer)
    assert job.func_name == "worker.jobs.prefetch_chunk"
    assert job.kwargs["task_ids"] == [2, 3]

    run([2, 3])
    assert jobs.prefetch_projects() == {str(PROJECT): []}
    label_studio.tasks[3]["data"]["image"] = f"/data/upload/{PROJECT}/00000001-scene.png"
    assert jobs.prefetch_projects() == {str(PROJECT): [3]}, "another picture"


@pytest.mark.parametrize("variable", ["PREFETCH_TASKS", "EMBEDDING_STORE_BYTES"])
def test_it_can_be_switched_off(services: Services, variable: str, monkeypatch: pytest.MonkeyPatch) -> None:
    known(services)
    monkeypatch.setenv(variable, "0")

    assert jobs.prefetch_projects() == {}


def test_a_project_that_cannot_be_read_does_not_stop_the_others(
    services: Services, label_studio: LabelStudioServer
) -> None:
    known(services)
    services.redis_store.projects.note(KnownProject("4", "", seen_at="2026-01-01T00:00:00+00:00"))

    results = jobs.prefetch_projects()

    assert results[str(PROJECT)] == [1, 2, 3]
    assert "404" in results["4"] or "not" in results["4"]


@pytest.mark.slow
def test_the_command_has_workers_do_it(
    services: Services, environment: dict[str, str], redis_server: Redis
) -> None:
    command = [sys.executable, "-m", "worker", "prefetch", "--project", str(PROJECT)]
    queued = subprocess.run([*command, "--limit", "2", "--detach"], env=environment, check=True)
    assert queued.returncode == 0
    worker = [sys.executable, "-m", "worker", "worker", "--burst", "--queues", "prelabel"]
    subprocess.run(worker, env=environment, check=True)

    assert len(embeddings(services)) == 2
    done = CliRunner().invoke(app, ["prefetch", "--project", str(PROJECT), "--limit", "2", "--detach"])
    assert "2 tasks are queued, in 1 jobs" in done.output


def test_the_command_needs_somewhere_to_keep_embeddings(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EMBEDDING_STORE_BYTES", "0")

    done = CliRunner().invoke(app, ["prefetch", "--project", str(PROJECT)])

    assert done.exit_code == 2
    assert "EMBEDDING_STORE_BYTES is 0" in " ".join(done.output.split())
    assert Settings().embeddings_dir is None
