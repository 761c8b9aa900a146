"""Workers that fail while they collect, train or publish, and failing dependencies: nothing is lost."""

from __future__ import annotations

import fcntl
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import torch
from redis import Redis
from rq.job import Job
from rq.registry import FailedJobRegistry, StartedJobRegistry
from rq.scheduler import RQScheduler
from rq.serializers import JSONSerializer

from backend.events import EventQueue
from backend.shared_redis import QUEUES, connect
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import VersionCard, VersionStore
from tests.integration.parts import FixedLabelStudio, RedisProcess
from tests.terminal import Terminal
from tests.waiting import wait_until
from tests.worker.label_studio_server import KEY, absent, region
from tests.worker.reconciling import reconcile_all
from tests.worker.squares import scene
from worker import jobs
from worker.finetuning.runs import run_folder
from worker.projects.prelabel import POST_BATCH
from worker.queueing.queues import events_queue, queue_named, training_queue
from worker.records import Collection
from worker.services import Services

PRESET, PROJECT, PICTURES = "ssp-sam-test", 5, 8
BASE, FIRST = f"{PRESET}-base", f"{PRESET}-0001"
wait_long = partial(wait_until, patience_s=240.0)
"""RQ looks for what died once a minute."""
catch = partial(wait_long, poll_s=0.005)
"""For what lasts a moment."""


@pytest.fixture
def label_studio() -> Iterator[FixedLabelStudio]:
    with FixedLabelStudio() as server:
        server.add_project(PROJECT)
        for number in range(1, PICTURES + 1):
            image, mask = scene(number)
            server.add_task(number, PROJECT, image)
            server.save(number, number, [*region(f"r{number}", "the bright square", mask), absent("a cup")])
        yield server


@pytest.fixture
def services(
    tmp_path: Path,
    redis_process: RedisProcess,
    label_studio: FixedLabelStudio,
    monkeypatch: pytest.MonkeyPatch,
) -> Services:
    told = {
        "LABEL_STUDIO_URL": label_studio.url,
        "LABEL_STUDIO_API_KEY": KEY,
        "REDIS_URL": redis_process.url,
        "MODEL_DIR": str(tmp_path / "models"),
        "PRESET": PRESET,
        "DEVICE": "cpu",
        "FINETUNE_AFTER": "1000",
        "PYTHONPATH": str(Path(__file__).parents[2]),
        "OMP_NUM_THREADS": "1",
        "TRAINING_NICE": "0",
    }
    for name, value in told.items():
        monkeypatch.setenv(name, value)
    return Services(jobs.Settings())


@contextmanager
def workers(*queues: str) -> Iterator[subprocess.Popen[bytes]]:
    """`sspsam worker`, killed on the way out with all that it started."""
    command = [sys.executable, "-m", "worker", "worker", "--queues", ",".join(queues or QUEUES)]
    with subprocess.Popen(command) as process:
        try:
            yield process
        finally:
            kill(process)


def kill(process: subprocess.Popen[bytes]) -> None:
    """As by a power cut: the pool, its workers and their jobs, none of them asked."""
    with suppress(psutil.NoSuchProcess):
        for one in [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]:
            with suppress(psutil.NoSuchProcess):
                one.kill()
    process.wait()


def let_heartbeats_expire(connection: Redis) -> None:
    """As if a minute had gone by since a worker died."""
    for name in QUEUES:
        started = StartedJobRegistry(queue=queue_named(name, connection))
        for execution in connection.zrange(started.key, 0, -1):
            connection.zadd(started.key, {execution: 1})
        connection.delete(RQScheduler.get_locking_key(name))


def save_event(services: Services, annotation: int) -> str:
    """What the webhook makes of a saved annotation; returns the job's id."""
    event = {
        "action": "ANNOTATION_CREATED",
        "annotation": {"id": annotation, "task": annotation},
        "project": {"id": PROJECT},
    }
    [number] = EventQueue(services.redis).handle(event)
    return number


def collected(services: Services) -> set[int]:
    return {record.annotation for record in Collection(services.settings.model_dir, PROJECT).records()}


def queue_finetune(services: Services) -> Job:
    assert jobs.maybe_finetune(PROJECT, "now")["start"]
    [job] = training_queue(services.redis).jobs
    return job


def aside(store: VersionStore) -> list[Path]:
    """Folders of versions that are being written."""
    return [path for path in store.folder.glob(".*") if path.is_dir()] if store.folder.is_dir() else []


def test_a_worker_killed_while_it_collects(services: Services, label_studio: FixedLabelStudio) -> None:
    label_studio.hold = "/api/annotations/"
    save_event(services, 1)
    with workers("events") as process:
        wait_long(lambda: "/api/annotations/1/" in label_studio.requests)
        kill(process)
    label_studio.hold = ""
    assert collected(services) == set()

    let_heartbeats_expire(services.redis)
    with workers("events"):
        wait_long(lambda: collected(services) == {1})


def test_a_prelabelling_that_is_cut_short_goes_on(services: Services, label_studio: FixedLabelStudio) -> None:
    """The worker killed, the command interrupted: in the end each task has its prediction once."""
    tasks = range(1, 3 * POST_BATCH + 1)
    for number in tasks[PICTURES:]:
        label_studio.add_task(number, PROJECT, scene(number)[0])
    bad = tasks[-3]
    label_studio.files[label_studio.tasks[bad]["data"]["image"]] = b"no picture"
    label_studio.hold = f"/api/tasks/{tasks[POST_BATCH + 4]}/"
    command = ["prelabel", "--project", str(PROJECT), "--phrase", "the bright square; a cup"]

    with workers("prelabel") as process, Terminal(*command) as first:
        wait_long(lambda: f"{POST_BATCH}/{len(tasks)}" in first.text)
        wait_long(lambda: label_studio.hold in label_studio.requests)
        kill(process)
        assert first.interrupt() != 0
    assert [one["task"] for one in label_studio.predictions] == list(tasks[:POST_BATCH])
    label_studio.hold = ""

    let_heartbeats_expire(services.redis)
    with workers("prelabel"), Terminal(*command) as second:
        assert second.wait() == 1
        told = second.text[second.text.rindex(f"{len(tasks)}/{len(tasks)}") :]
        assert "Tasks ━" in second.text, "a bar"
        assert f"task {bad}: the file is not an image" in told, "at the end"
        assert f"tasks skipped: {POST_BATCH}, tasks with a problem: 1" in told
        assert [one["task"] for one in label_studio.predictions] == [one for one in tasks if one != bad]
        with Terminal(*command) as third:
            assert third.wait() == 1
            assert f"predictions: 0 with 0 masks, tasks skipped: {len(tasks) - 1}" in third.text


def test_a_worker_killed_while_it_trains_and_the_next_while_it_publishes(services: Services) -> None:
    job = queue_finetune(services)
    folder = run_folder(services.settings.model_dir, job.id) / "training"
    with workers("training") as process:
        catch((folder / "checkpoint.pt").exists)
        kill(process)
    assert services.store.current(line_of_project(PROJECT)) == BASE
    let_heartbeats_expire(services.redis)
    services.store.folder.mkdir(parents=True, exist_ok=True)
    with workers("training") as process, (services.store.folder / ".lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the promotion waits
        catch(lambda: aside(services.store) or len(services.store.list()) > 1)
        kill(process)
    assert services.store.current(line_of_project(PROJECT)) == BASE
    for card in services.store.list():
        services.store.load(card.version_id)  # what is visible is whole
    let_heartbeats_expire(services.redis)
    with workers("training"):
        wait_long(lambda: services.store.current(line_of_project(PROJECT)) == FIRST)
    assert [card.version_id for card in services.store.list()] == [BASE, FIRST]


PUBLISH = """
import sys, torch
from pathlib import Path
from sspsam.version_store.store import VersionCard, VersionStore
VersionStore(Path(sys.argv[1]), sys.argv[2]).publish({"a": torch.zeros(50_000_000)}, VersionCard(), {})
"""


def test_a_process_killed_in_the_middle_of_writing_a_version(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET)
    with subprocess.Popen([sys.executable, "-c", PUBLISH, str(tmp_path), PRESET]) as process:
        catch(lambda: aside(store))
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert aside(store), "it was in the middle"
    assert [card.version_id for card in store.list()] == [BASE]
    assert store.publish({"a": torch.zeros(4)}, VersionCard(), {}).version_id == FIRST


def test_redis_restarted_with_jobs_queued_and_running(
    services: Services, redis_process: RedisProcess
) -> None:
    job = queue_finetune(services)
    folder = run_folder(services.settings.model_dir, job.id) / "training"
    shutil.rmtree(Collection(services.settings.model_dir, PROJECT).folder)
    waiting = {save_event(services, number) for number in range(1, PICTURES + 1)}
    with workers("training"):
        catch((folder / "checkpoint.pt").exists)
        redis_process.kill()
        redis_process.start()
        assert set(events_queue(connect(redis_process.url)).get_job_ids()) == waiting
        time.sleep(1.0)
        let_heartbeats_expire(services.redis)
        wait_long(lambda: services.store.current(line_of_project(PROJECT)) == FIRST)
    with workers("events"):
        wait_long(lambda: collected(services) == set(range(1, PICTURES + 1)))
    assert [card.version_id for card in services.store.list()] == [BASE, FIRST]


def test_label_studio_away_while_an_event_is_worked_on(
    services: Services, label_studio: FixedLabelStudio
) -> None:
    """The first retry comes after 5 s; jobs.LABEL_STUDIO_RETRY_S go on for a quarter of an hour and more."""
    assert sum(jobs.LABEL_STUDIO_RETRY_S) > 15 * 60
    label_studio.__exit__()
    number = save_event(services, 1)
    job = Job.fetch(number, connection=services.redis, serializer=JSONSerializer)
    with workers("events"):
        wait_long(lambda: job.get_status() == "scheduled")
        label_studio.__enter__()
        wait_long(lambda: collected(services) == {1})
    assert len(FailedJobRegistry(queue=events_queue(services.redis))) == 0


def test_a_clock_that_jumps_ahead_makes_no_second_version(services: Services) -> None:
    """The job's heartbeat looks old, so that a second worker begins it while the first is still at it."""
    job = queue_finetune(services)
    folder = run_folder(services.settings.model_dir, job.id) / "training"
    with workers("training"):
        catch((folder / "checkpoint.pt").exists)
        let_heartbeats_expire(services.redis)
        with workers("training"):
            wait_long(lambda: services.store.current(line_of_project(PROJECT)) == FIRST)
            wait_long(lambda: job.get_status() == "finished")
            wait_long(lambda: not StartedJobRegistry(queue=training_queue(services.redis)).count)
    assert [card.version_id for card in services.store.list()] == [BASE, FIRST]


def test_poisoned_records_are_left_out(services: Services, caplog: pytest.LogCaptureFixture) -> None:
    """An unreadable picture, and a file of records that is none."""
    jobs.maybe_finetune(PROJECT, "now")
    records = Collection(services.settings.model_dir, PROJECT).records()
    (services.settings.images_dir / records[0].image_sha256).write_bytes(b"no picture")
    [job] = training_queue(services.redis).jobs
    jobs.finetune(**job.kwargs)
    assert services.store.current(line_of_project(PROJECT)) == FIRST
    card = services.store.get(FIRST)
    assert card.data["trained_on_images"] + card.metrics["held_out_images"] == PICTURES - 1

    broken = Collection(services.settings.model_dir, PROJECT).folder / "2.jsonl"
    broken.write_text("{")
    assert collected(services) == set(range(1, PICTURES + 1)) - {2}
    reconcile_all(services)
    assert collected(services) == set(range(1, PICTURES + 1))
