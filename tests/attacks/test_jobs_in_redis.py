"""Write access to Redis: jobs there name no code, and one that cannot be read stops no other."""

from __future__ import annotations

import ast
import json
import logging
import sys
import time
import zlib
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import ClassVar

import pytest
from redis import Redis
from rq.job import JobStatus
from rq.registry import clean_registries

from backend.shared_redis import EVENTS, JOB_RETRY, ForeignFunctionError, ServiceJob, fetch_job
from tests.attacks.a_callback import CALLED
from tests.loopback import Loopback
from worker.queueing.pool import RETRIES_EVERY_S
from worker.queueing.queues import events_queue
from worker.queueing.retries import FURTHEST_RETRY_S, Retries
from worker.queueing.workers import HEARTBEAT_S, SILENCE_S, make_worker

ROOT = Path(__file__).parents[2]
CALLBACK = "tests.attacks.a_callback.called"
JOB = "worker.jobs.check_projects"
TAKEN_UP_S = 90.0
"""Bound of docs/reliability.md."""


class Listener(Loopback):
    """Where a webhook would arrive."""

    received: ClassVar[list[str]] = []

    def make_server(self) -> ThreadingHTTPServer:
        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                Listener.received.append(self.path)
                self.send_response(200)
                self.end_headers()

            def log_message(self, format: str, *args: object) -> None:
                """Says nothing."""

        return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


@pytest.fixture
def listener() -> Iterator[Listener]:
    Listener.received.clear()
    CALLED.clear()
    with Listener() as server:
        yield server


def hostile(redis: Redis, url: str = "", name: str = JOB) -> ServiceJob:
    """A queued job with callbacks and webhooks, as somebody with access to Redis would write it."""
    job = events_queue(redis).enqueue_call(name)
    for when in ("success", "failure", "stopped"):
        redis.hset(job.key, f"{when}_callback_name", CALLBACK)
        redis.hset(job.key, f"{when}_callback_timeout", "soon")
    webhooks = [{"url": url, "job_status": status, "timeout": 5} for status in ("failed", "finished")]
    redis.hset(job.key, "webhooks", json.dumps(webhooks))
    assert isinstance(job, ServiceJob)
    return job


def work(redis: Redis) -> None:
    make_worker(EVENTS, redis).work(burst=True, logging_level=None)


def test_an_abandoned_job_calls_nothing(redis_server: Redis, listener: Listener) -> None:
    job = hostile(redis_server, listener.url)
    queue = events_queue(redis_server)
    queue.remove(job.id)
    redis_server.hset(job.key, "status", JobStatus.STARTED.value)
    redis_server.zadd(queue.started_job_registry.key, {f"{job.id}:1": time.time() - 1})

    clean_registries(queue)

    assert fetch_job(job.id, redis_server).get_status() == JobStatus.FAILED, "it was found to be abandoned"
    assert (CALLED, Listener.received) == ([], [])


@pytest.mark.parametrize("name", [JOB, "os.getpid"])
def test_a_refused_job_calls_nothing(redis_server: Redis, listener: Listener, name: str) -> None:
    job = hostile(redis_server, listener.url, name)

    work(redis_server)

    result = fetch_job(job.id, redis_server).latest_result()
    assert result is not None
    assert "refused" in str(result.exc_string)
    assert (CALLED, Listener.received) == ([], [])


def test_reading_a_job_imports_nothing(redis_server: Redis) -> None:
    job = events_queue(redis_server).enqueue_call("antigravity.fly")
    with pytest.raises(ForeignFunctionError, match="antigravity"):
        _ = fetch_job(job.id, redis_server).func
    assert "antigravity" not in sys.modules


UNREADABLE = {
    "status": b"\xff",
    "timeout": b"unlimited",
    "result_ttl": b"[]",
    "retries_left": b"1e400",
    "dependency_ids": b"{",
    "created_at": b"yesterday",
    "origin": b"\xff\xfe",
    "enqueue_at_front": b"",
    "retry_intervals": b"nan(",
}


@pytest.mark.parametrize("field", UNREADABLE)
def test_a_job_that_cannot_be_read_stops_no_other(
    redis_server: Redis, field: str, caplog: pytest.LogCaptureFixture
) -> None:
    queue = events_queue(redis_server)
    bad, good = queue.enqueue_call(JOB), queue.enqueue_call("worker.jobs.nothing_of_this_name")
    redis_server.hset(bad.key, field, UNREADABLE[field])

    with caplog.at_level(logging.ERROR):
        work(redis_server)

    assert fetch_job(good.id, redis_server).get_status() == JobStatus.FAILED, "it was taken after the other"
    assert queue.count == 0
    assert bad.id in caplog.text


def test_a_retry_that_cannot_be_read_stops_no_other(redis_server: Redis) -> None:
    queue = events_queue(redis_server)
    bad, good = queue.enqueue_call(JOB), queue.enqueue_call(JOB)
    for job in (bad, good):
        queue.remove(job.id)
        redis_server.zadd(queue.scheduled_job_registry.key, {job.id: time.time() - 1})
    redis_server.hset(bad.key, "timeout", "unlimited")

    enqueue_retries(redis_server)

    assert queue.get_job_ids() == [good.id]
    assert queue.scheduled_job_registry.get_job_ids() == []


def enqueue_retries(redis: Redis) -> None:
    retries = Retries([EVENTS], redis)
    retries.acquire_locks()
    retries.enqueue_scheduled_jobs()
    retries.stop()


def test_a_clock_that_is_set_back_delays_no_retry_and_no_abandoned_job(redis_server: Redis) -> None:
    """What was written before lies an hour ahead afterwards."""
    queue, hour_s = events_queue(redis_server), 3600.0
    retry, lost = queue.enqueue_call(JOB), queue.enqueue_call(JOB)
    soon = time.time() + FURTHEST_RETRY_S - 1
    queue.remove(retry.id)
    redis_server.zadd(queue.scheduled_job_registry.key, {retry.id: soon + hour_s, "not-moved": soon})
    redis_server.zadd(queue.started_job_registry.key, {f"{lost.id}:1": time.time() + hour_s})

    enqueue_retries(redis_server)

    scheduled = dict(redis_server.zrange(queue.scheduled_job_registry.key, 0, -1, withscores=True))
    assert scheduled[retry.id.encode()] - time.time() <= FURTHEST_RETRY_S
    assert scheduled[b"not-moved"] == pytest.approx(soon)
    [(_, until)] = redis_server.zrange(queue.started_job_registry.key, 0, -1, withscores=True)
    assert until - time.time() <= HEARTBEAT_S + SILENCE_S


def test_maintenance_goes_on_after_a_clock_was_set_back(redis_server: Redis) -> None:
    worker = make_worker(EVENTS, redis_server)
    assert worker.should_run_maintenance_tasks
    worker.run_maintenance_tasks()
    assert not worker.should_run_maintenance_tasks
    worker.last_cleaned_at = datetime.now(UTC) + timedelta(hours=1)
    worker.maintenance_interval = 0
    assert worker.should_run_maintenance_tasks


def test_the_job_of_a_killed_worker_is_taken_up_within_90_seconds(redis_server: Redis) -> None:
    worker = make_worker(EVENTS, redis_server)
    job = events_queue(redis_server).enqueue_call(JOB, retry=JOB_RETRY)
    worker.prepare_execution(job)
    [(_, until)] = redis_server.zrange(job.started_job_registry.key, 0, -1, withscores=True)
    looks_every_s = worker.maintenance_interval + worker.dequeue_timeout
    first_retry_s = job.get_retry_interval()
    assert until - time.time() + looks_every_s + first_retry_s + RETRIES_EVERY_S < TAKEN_UP_S


def test_all_jobs_and_queues_are_of_our_classes() -> None:
    """RQ's own classes import what a job names."""
    wrong = []
    for path in (path for folder in ("backend", "worker") for path in (ROOT / folder).rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if not isinstance(node, ast.Call):
                continue
            text = ast.unparse(node.func)
            if text in ("Queue", "Job", "Job.fetch", "Job.fetch_many", "Job.create", "RQScheduler", "Worker"):
                wrong.append(f"{path.relative_to(ROOT)}: {text}")
            if text.endswith("JobRegistry"):
                wrong.append(f"{path.relative_to(ROOT)}: {text} reads jobs as RQ's class")
    assert wrong == []


def test_the_attacker_could_have_written_these(redis_server: Redis) -> None:
    """The jobs above are what Redis holds: RQ's class would call them."""
    job = hostile(redis_server)
    stored = redis_server.hgetall(job.key)
    assert stored[b"failure_callback_name"] == CALLBACK.encode()
    assert json.loads(zlib.decompress(stored[b"data"]))[0] == JOB
    assert fetch_job(job.id, redis_server).failure_callback is None
