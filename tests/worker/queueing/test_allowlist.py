"""Untrusted jobs in Redis: which functions a worker runs, and with which arguments."""

from __future__ import annotations

import json
import os
import pickle
import zlib
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from redis import Redis
from rq import SimpleWorker
from rq.job import Callback, Job
from rq.serializers import JSONSerializer

from backend.errors import PrelabelError
from backend.settings import JOB_MODULES
from backend.shared_redis import EVENTS
from worker import jobs
from worker.projects.prelabel import PhraseSource
from worker.queueing.allowlist import refusal
from worker.queueing.queues import events_queue
from worker.queueing.workers import StoppableWorker, make_worker

HOSTILE = [
    "os.system",
    "subprocess.run",
    "builtins.eval",
    "worker.jobs._finetune",
    "worker.jobs.time.sleep",
    "worker.jobs.asdict",
    "worker.jobs.running_service",
    "worker.jobs.checked",
    "worker.jobs.Settings",
    "worker.jobs.__import__",
    "worker.jobs.",
    "worker.jobs",
    "worker.corrections.collector.reconcile",
    "/tmp/evil.run",
    "",
]


def run_one(redis: Redis) -> None:
    """A worker in this process works until the queue is empty."""

    class HereWorker(StoppableWorker, SimpleWorker):
        """The worker's checks without its processes."""

    HereWorker([EVENTS], connection=redis, serializer=JSONSerializer).work(burst=True, logging_level=None)


@pytest.mark.parametrize("name", HOSTILE)
def test_what_is_no_job_is_refused_before_it_is_imported(redis_server: Redis, name: str) -> None:
    job = events_queue(redis_server).enqueue_call("worker.jobs.check_projects")
    data = zlib.compress(json.dumps([name, None, ["true"], {}]).encode())  # as any client of Redis may
    redis_server.hset(job.key, "data", data)
    assert "refused: " in refusal(Job.fetch(job.id, redis_server, JSONSerializer), JOB_MODULES)


@pytest.mark.slow
def test_a_worker_runs_no_other_function(redis_server: Redis, tmp_path: Path) -> None:
    mark = tmp_path / "code-has-run"
    queue = events_queue(redis_server)
    hostile = [queue.enqueue_call(name, args=[f"touch {mark}"]) for name in HOSTILE if name]
    queue.enqueue_call("pathlib.Path.touch", args=[str(mark)])

    run_one(redis_server)

    assert not mark.exists()
    for job in hostile:
        job.refresh()
        assert job.is_failed
        latest = job.latest_result()
        assert latest is not None
        assert "refused: " in str(latest.exc_string)


def test_jobs_without_callbacks_only(redis_server: Redis) -> None:
    callback = Callback("os.system")
    job = events_queue(redis_server).enqueue("worker.jobs.check_projects", on_failure=callback)
    assert "callbacks" in refusal(job, JOB_MODULES)


def test_a_pickled_job_is_not_unpickled(redis_server: Redis, tmp_path: Path) -> None:
    class Runs:
        def __reduce__(self) -> tuple[Any, ...]:
            return os.system, (f"touch {tmp_path / 'code-has-run'}",)

    queue = events_queue(redis_server)
    job = queue.enqueue_call("worker.jobs.check_projects")
    redis_server.hset(job.key, "data", zlib.compress(pickle.dumps(("os.system", None, (Runs(),), {}))))

    run_one(redis_server)

    assert not (tmp_path / "code-has-run").exists()


@pytest.mark.parametrize("queue", ["events", "training", "prelabel"])
def test_workers_read_json_alone_and_know_our_jobs_alone(redis_server: Redis, queue: str) -> None:
    worker = make_worker(queue, redis_server)
    assert worker.serializer is JSONSerializer
    assert tuple(worker.job_modules) == ("worker.jobs", "worker.requested_jobs")


@pytest.mark.parametrize(
    ("job", "arguments"),
    [
        ("collect_annotation", [-1, 2]),
        ("collect_annotation", ["1", 2]),
        ("collect_annotation", [1, 2**70]),
        ("collect_annotation", [1, {"$gt": 0}]),
        ("collect_annotation", [1, 2, "/etc/passwd"]),
        ("forget_annotations", [1, ["../1"]]),
        ("forget_annotations", [1, "12"]),
        ("maybe_finetune", [1, "; rm -rf /"]),
        ("maybe_finetune", [True, "now"]),
        ("finetune", [1, "../../etc"]),
        ("finetune", [1, "a/b"]),
        ("finetune", [1, ".."]),
        ("finetune", [1, "a" * 300]),
        ("finetune", [1, "a\n"]),
        ("prelabel_chunk", [1, "run", "chunk", {}, ["1"]]),
        ("prelabel_chunk", [1, "run", "chunk", "source", [1]]),
    ],
)
def test_arguments_are_checked_before_a_job_begins(job: str, arguments: list[Any]) -> None:
    with pytest.raises(ValidationError):
        getattr(jobs, job)(*arguments)


@pytest.mark.parametrize(
    "source",
    [{}, {"kind": "os", "phrases": [], "column": ""}, {"kind": "phrases", "phrases": "a", "column": ""}],
)
def test_where_phrases_come_from_is_checked(source: dict[str, Any]) -> None:
    with pytest.raises(PrelabelError):
        PhraseSource.from_dict(source)


def test_every_job_that_is_enqueued_by_name_is_one(redis_server: Redis) -> None:
    for name in ("collect_annotation", "forget_annotations", "maybe_finetune", "finetune", "prelabel_chunk"):
        job = events_queue(redis_server).enqueue_call(f"worker.jobs.{name}")
        assert refusal(job, JOB_MODULES) == ""
