"""The scheduler: which jobs it enqueues, when, and in which format."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from redis import Redis, RedisError

from backend.shared_redis import FAILURE_TTL_S
from worker.local.redis_program import redis_program
from worker.queueing.queues import EVENT_TIMEOUT_S, events_queue
from worker.queueing.schedule import SCHEDULE, Schedule


class Clock:
    """Stands still until it is set forward."""

    def __init__(self) -> None:
        self.now_s = 1000.0

    def __call__(self) -> float:
        return self.now_s


def test_every_job_is_enqueued_at_the_start_and_again_after_its_interval(
    redis_server: Redis,
) -> None:
    clock = Clock()
    intervals = {"worker.jobs.check_projects": 1, "worker.jobs.reconcile_projects": 60}
    schedule = Schedule(redis_server, intervals, clock)
    schedule.enqueue_jobs()
    schedule.enqueue_jobs()
    assert [job.func_name for job in events_queue(redis_server).jobs] == [
        "worker.jobs.check_projects",
        "worker.jobs.reconcile_projects",
    ]
    clock.now_s += 1.05
    schedule.enqueue_jobs()
    names = [job.func_name for job in events_queue(redis_server).jobs]
    assert names.count("worker.jobs.reconcile_projects") == 1
    assert names[-1] == "worker.jobs.check_projects"


def test_jobs_are_json_and_expire_when_no_worker_takes_them(redis_server: Redis) -> None:
    Schedule(redis_server).enqueue_jobs()
    jobs = events_queue(redis_server).jobs
    assert len(jobs) == len(SCHEDULE)
    for job in jobs:
        data = redis_server.hget(job.key, "data")
        assert isinstance(data, bytes)
        assert json.loads(zlib.decompress(data))[0] == job.func_name
        assert 0 < redis_server.ttl(job.key) <= SCHEDULE[job.func_name]
        assert job.timeout == EVENT_TIMEOUT_S
        assert job.failure_ttl == FAILURE_TTL_S


@pytest.mark.integration
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_command_runs_until_it_is_asked_to_end(
    environment: dict[str, str], redis_server: Redis, number: signal.Signals
) -> None:
    command = [sys.executable, "-m", "worker", "schedule"]
    with subprocess.Popen(command, env=environment) as process:
        until = time.monotonic() + 20
        while events_queue(redis_server).count < len(SCHEDULE):
            assert time.monotonic() < until
            time.sleep(0.02)
        process.send_signal(number)
        assert process.wait(timeout=5) == 0


@contextmanager
def redis_at(socket: Path) -> Iterator[None]:
    """A Redis of this test alone, which it may end."""
    command = [str(redis_program()), "--port", "0", "--unixsocket", str(socket), "--save", ""]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        yield
        process.terminate()


def wait_for_a_job(socket: Path) -> None:
    until = time.monotonic() + 20
    with Redis(unix_socket_path=str(socket)) as connection:
        while True:
            with suppress(RedisError):
                if events_queue(connection).count:
                    return
            assert time.monotonic() < until, "nothing was enqueued"
            time.sleep(0.05)


EVERY_SECOND = (
    "import sys; from worker.queueing.schedule import run_schedule;"
    "run_schedule(sys.argv[1], {'worker.jobs.check_projects': 1})"
)


@pytest.mark.integration
def test_the_schedule_outlives_a_redis_that_is_started_again() -> None:
    with TemporaryDirectory(prefix="sspsam-") as folder:
        socket = Path(folder) / "redis.sock"
        with redis_at(socket):
            process = subprocess.Popen([sys.executable, "-c", EVERY_SECOND, f"unix://{socket}"])
            wait_for_a_job(socket)
        time.sleep(2.5)
        assert process.poll() is None
        with redis_at(socket):
            wait_for_a_job(socket)
            process.terminate()
            assert process.wait(timeout=10) == 0


def test_a_clock_that_is_set_back_does_not_stop_the_schedule(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock()
    schedule = Schedule(redis_server, {"worker.jobs.check_projects": 1}, clock)
    schedule.enqueue_jobs()
    hour_ago = datetime.now(UTC) - timedelta(hours=1)
    monkeypatch.setattr("rq.cron.now", lambda: hour_ago)
    assert 0 < schedule.calculate_sleep_interval() <= 1
    clock.now_s += schedule.calculate_sleep_interval()
    schedule.enqueue_jobs()
    assert events_queue(redis_server).count == 2
