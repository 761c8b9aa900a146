"""Jobs for the tests of the worker's processes; importable by their real processes."""

from __future__ import annotations

import os
import time
from pathlib import Path

from rq.job import Retry

from backend.settings import Settings
from worker.projects.chunks import TaskClaims
from worker.services import Services


def note(path: str, text: str) -> str:
    """Appends a line to a file and returns it."""
    with Path(path).open("a") as file:
        file.write(text + "\n")
    return text


def note_process(path: str) -> str:
    return note(path, f"{os.getpid()} {os.getppid()} {os.nice(0)}")


def note_share(path: str) -> str:
    """Notes how many cores the job's computations may use, and its priority."""
    return note(path, f"{os.environ.get('OMP_NUM_THREADS')} {os.nice(0)}")


def sleep_once(path: str) -> str:
    """Takes very long the first time, and no time the second."""
    if not Path(path).exists():
        note(path, str(os.getpid()))
        time.sleep(120)
    return note(path, "again")


def come_back(path: str, times: int) -> str | Retry:
    """Asks for this number of further attempts."""
    note(path, "tried")
    if len(Path(path).read_text().splitlines()) <= times:
        return Retry(max=times, interval=1)
    return "done"


def fail(path: str) -> None:
    note(path, "tried")
    raise RuntimeError("on purpose")


def claim_and_note(path: str, run: str, chunk: str, task_ids: list[int]) -> None:
    """Notes every task that it can claim, with its process, unless that is done: as pre-labeling does."""
    services = Services(Settings())
    claims = TaskClaims(services.redis, run, chunk)
    for task in task_ids:
        if claims.take(task):
            file = Path(path)
            noted = file.read_text().splitlines() if file.exists() else []
            if f"{task}" not in {line.split()[0] for line in noted}:
                note(path, f"{task} {os.getpid()}")
