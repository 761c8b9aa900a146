"""Chunks: tasks of a job run at a time and in order, and no task is two jobs' at once, with a real Redis."""

from __future__ import annotations

import random
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from subprocess import Popen

import pytest
from redis import Redis
from rq.job import JobStatus

from backend.console.operations import stop_job
from backend.errors import LabelStudioError, LabelStudioNotFound
from backend.shared_redis import fetch_job
from tests.worker import sample_jobs
from worker.projects.batch_jobs import enqueue_after, enqueue_chunks, enqueue_once, watch
from worker.projects.chunks import (
    TASK_THREADS,
    ChunkProgress,
    ChunkReport,
    TaskClaims,
    each_task,
    in_parallel,
)
from worker.queueing.queues import prelabel_queue
from worker.services import Services

RUN = "prelabel-5-x"


def test_tasks_run_at_a_time_and_come_back_in_order() -> None:
    together = threading.Barrier(TASK_THREADS, timeout=60)

    def work(number: int) -> int:
        if number < TASK_THREADS:
            together.wait()  # ends only when all are at work
        return 10 * number

    done = [(number, future.result()) for number, future in in_parallel(work, range(50))]
    assert done == [(number, 10 * number) for number in range(50)]


def test_no_more_tasks_are_begun_than_the_caller_can_take() -> None:
    begun: list[int] = []
    results = in_parallel(begun.append, range(1000))
    next(results)
    results.close()
    assert len(begun) <= 2 * TASK_THREADS + 1


def test_what_happens_to_a_task_is_reported() -> None:
    def work(number: int) -> tuple[ChunkReport, str]:
        if number == 2:
            raise LabelStudioNotFound("deleted")
        if number == 3:
            raise ValueError("odd")
        return ChunkReport(masks=number, problems={"1": "dark"} if number == 1 else {}), f"answer {number}"

    report = ChunkReport()
    answers = list(each_task([1, 2, 3, 4], work, report))

    assert answers == ["answer 1", None, None, "answer 4"]
    assert (report.tasks, report.skipped, report.masks) == (4, 1, 5)
    assert report.problems["1"] == "dark"
    assert "odd" in report.problems["3"]


def test_when_label_studio_is_away_no_further_task_is_begun() -> None:
    asked: list[int] = []

    def work(number: int) -> tuple[ChunkReport, None]:
        asked.append(number)
        raise LabelStudioError("502")

    with pytest.raises(LabelStudioError):
        list(each_task(range(1000), work, ChunkReport()))
    assert len(asked) <= 2 * TASK_THREADS + 1


@pytest.fixture
def redis(services: Services) -> Redis:
    return services.redis


def queued(redis: Redis, chunk: str) -> None:
    enqueue_once(prelabel_queue(redis), "tests.worker.sample_jobs.note", f"{RUN}-{chunk}", {})


def test_one_of_many_workers_has_a_task(redis: Redis) -> None:
    chunks = [f"chunk-{number}" for number in range(12)]
    for chunk in chunks:
        queued(redis, chunk)
    claims = [TaskClaims(redis, RUN, chunk) for chunk in chunks]
    tasks = list(range(60))

    def take_all(own: TaskClaims) -> list[int]:
        return [task for task in random.sample(tasks, len(tasks)) if own.take(task)]

    with ThreadPoolExecutor(len(claims)) as pool:
        taken = list(pool.map(take_all, claims))

    assert Counter(task for some in taken for task in some) == Counter(tasks)
    for own, some in zip(claims, taken, strict=True):
        assert all(own.take(task) for task in some), "an interrupted job has them when it runs again"


def test_the_tasks_of_a_job_that_has_ended_are_free(redis: Redis) -> None:
    queued(redis, "old")
    assert TaskClaims(redis, RUN, "old").take(1)
    assert not TaskClaims(redis, RUN, "new").take(1)
    prelabel_queue(redis).fetch_job(f"{RUN}-old").set_status(JobStatus.FAILED)  # type: ignore[union-attr]
    others = [str(number) for number in range(8)]
    for chunk in others:
        queued(redis, chunk)
    with ThreadPoolExecutor(len(others)) as pool:
        taken = list(pool.map(lambda chunk: TaskClaims(redis, RUN, chunk).take(1), others))
    assert sum(taken) == 1, "it is another one's now"


@pytest.mark.parametrize("status", [JobStatus.QUEUED, JobStatus.STARTED])
def test_what_follows_a_stopped_job_does_not_wait_for_ever(redis: Redis, status: JobStatus) -> None:
    chunks, queue = ["a", "b"], prelabel_queue(redis)
    for chunk in chunks:
        queued(redis, chunk)
    jobs = [f"{RUN}-{chunk}" for chunk in chunks]
    function = "tests.worker.sample_jobs.note"
    jobs.append(enqueue_after(queue, function, f"{RUN}-order", {}, jobs))
    fetch_job(jobs[0], redis).set_status(status)

    assert stop_job(redis, jobs[0])

    order = fetch_job(jobs[-1], redis)
    assert (order.get_status(), order.id in queue.deferred_job_registry) == (JobStatus.CANCELED, False)
    fetch_job(jobs[0], redis).set_status(JobStatus.STOPPED)  # as its worker does
    other = fetch_job(jobs[1], redis)
    other.set_status(JobStatus.FINISHED)
    queue.enqueue_dependents(other)
    _, reasons = watch(redis, jobs, ChunkProgress(redis, RUN), chunks, 2)
    assert len(reasons) == 2
    assert reasons[-1] == "it was cancelled"


@pytest.mark.slow
def test_three_workers_share_a_run_without_doing_a_task_twice(
    redis: Redis, environment: dict[str, str], tmp_path: Path
) -> None:
    """Real processes; tasks were added, and the run was started again: 50 tasks are in two chunks."""
    notes, first, more = tmp_path / "notes", list(range(250)), list(range(430))
    asked = {"path": str(notes)}
    function = f"{sample_jobs.__name__}.claim_and_note"
    enqueue_chunks(redis, function, RUN, first, asked)
    enqueue_chunks(redis, function, RUN, more, asked)
    jobs = prelabel_queue(redis).get_job_ids()
    assert len(jobs) == 6, "250 is in the middle of a chunk"

    command = [sys.executable, "-m", "worker", "worker", "--burst", "--queues", "prelabel"]
    workers = [Popen(command, env=environment) for _ in range(3)]
    assert [worker.wait(300) for worker in workers] == [0, 0, 0]

    done = [line.split() for line in notes.read_text().splitlines()]
    assert Counter(int(task) for task, _ in done) == Counter(more)
    processes = len({process for _, process in done})
    assert processes in (len(jobs) - 1, len(jobs)), "one chunk may find all of its 50 tasks done by the other"
