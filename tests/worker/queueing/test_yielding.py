"""Jobs that need the model give way to the backend: threads and priority."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from redis import Redis

from tests.waiting import wait_until
from tests.worker import sample_jobs
from tests.worker.queueing.test_workers import lines, pool
from worker.queueing.queues import training_queue
from worker.queueing.yielding import AUTOGROUP, limit_threads, usable_cores

NICENESS = """
import os
from worker.queueing.yielding import AUTOGROUP, lower_priority
lower_priority(7)
print(os.getpriority(os.PRIO_PROCESS, 0), AUTOGROUP.read_text() if AUTOGROUP.exists() else "nice 7")
"""


@pytest.mark.parametrize(
    ("cores", "given", "threads"),
    [
        (0, {}, str(max(1, usable_cores() - 1))),
        (3, {}, "3"),
        (3, {"OMP_NUM_THREADS": "5"}, "5"),
    ],
    ids=["all but one", "as set", "as in the environment"],
)
def test_threads_are_limited(cores: int, given: dict[str, str], threads: str) -> None:
    environment = dict(given)
    limit_threads(environment, cores)
    assert environment == {"OMP_NUM_THREADS": threads}


@pytest.mark.integration
def test_the_session_gives_way_too() -> None:
    """Where the kernel divides the processor among sessions first, a process's own priority is not enough."""
    command = [sys.executable, "-c", NICENESS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, start_new_session=True)
    own, session = done.stdout.strip().split(" ", 1)
    assert int(own) == max(7, os.getpriority(os.PRIO_PROCESS, 0))
    assert session.endswith("nice 7")


@pytest.mark.integration
def test_jobs_take_cores_and_priority_from_the_settings(
    environment: dict[str, str], redis_server: Redis, tmp_path: Path
) -> None:
    told = {name: value for name, value in environment.items() if name != "OMP_NUM_THREADS"}
    training_queue(redis_server).enqueue_call(
        f"{sample_jobs.__name__}.note_share", args=[str(tmp_path / "x")]
    )
    with pool({**told, "TRAINING_CORES": "5", "TRAINING_NICE": "2"}, "--queues", "training"):
        wait_until(lambda: lines(tmp_path / "x"))
    threads, nice = lines(tmp_path / "x")[0].split()
    assert (threads, int(nice)) == ("5", max(2, os.getpriority(os.PRIO_PROCESS, 0)))
    assert not AUTOGROUP.exists() or "nice 2" not in AUTOGROUP.read_text(), "the pool's own session"
