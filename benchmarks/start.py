"""Startup time of the command line and the backend, latency of first and further phrases, and memory.

`sspsam --help`; then `sspsam serve` with the shipped weights, from its start to the first response of /health
and to the first mask; then phrases on new images of 640 px and further ones on the same images. Wall-clock
seconds, and the process's CPU seconds, which are more reliable on a machine under other load.

    python benchmarks/start.py [--pictures 8] [--repeats 5]
"""

from __future__ import annotations

import argparse
import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import cv2
import numpy as np
import psutil
import requests
from common.sections import ROOT, table, write_section
from common.serving import ANSWER_S, PROJECT, START_S, ask, ended, environment, redis_at, sspsam

from sspsam.images.image_io import read_picture
from tests.integration.conftest import free_port
from tests.worker.label_studio_server import LabelStudioServer
from worker.local.demo_pictures import demo_pictures

SIDE_PX = 640
NOUNS = ("dog", "car", "tree", "cat")
MOST_S = {"help": 0.5, "health": 3.0, "mask": 15.0, "first": 0.6, "next": 0.08}
MOST_MB = 900
CUDA = re.compile(
    "cuda|cudnn|cublas|cufft|cusparse|cusolver|curand|cupti|nccl|nvrtc|nvJitLink|nvshmem|cufile"
)


@dataclass
class Took:
    """Wall-clock and CPU seconds."""

    clock_s: float
    processor_s: float

    def row(self, what: str, most: str) -> list[str]:
        return [what, f"{self.clock_s:.2f}", f"{self.processor_s:.2f}", most]


def middle(times: list[Took]) -> Took:
    """The medians."""
    return Took(
        float(np.median([one.clock_s for one in times])), float(np.median([one.processor_s for one in times]))
    )


def help_once() -> Took:
    """Runs `sspsam --help`."""
    before, since_s = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
    subprocess.run(sspsam("--help"), cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    processor_s = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
    return Took(time.perf_counter() - since_s, processor_s)


class Served:
    """A backend's processes: the master, and the one that holds the model."""

    def __init__(self, pid: int) -> None:
        self._root = psutil.Process(pid)
        self._since_s = time.perf_counter()

    def processor_s(self) -> float:
        """CPU seconds so far."""
        times = [one.cpu_times() for one in self._all()]
        return sum(one.user + one.system for one in times)

    def memory_mb(self) -> tuple[float, float]:
        """Resident memory of the process that holds the model, and the part taken by CUDA's libraries."""
        holder = max(self._all(), key=lambda one: one.memory_info().rss)
        cuda = sum(part.rss for part in holder.memory_maps() if CUDA.search(Path(part.path).name))
        return holder.memory_info().rss / 1e6, cuda / 1e6

    def took(self) -> Took:
        """Time since its start."""
        return Took(time.perf_counter() - self._since_s, self.processor_s())

    def time(self, action: Callable[[], object]) -> Took:
        """Time of a request to it."""
        before_s, since_s = self.processor_s(), time.perf_counter()
        action()
        return Took(time.perf_counter() - since_s, self.processor_s() - before_s)

    def _all(self) -> list[psutil.Process]:
        return [self._root, *self._root.children(recursive=True)]


def until(action: Callable[[], bool]) -> None:
    """Retries until it succeeds."""
    until_s = time.monotonic() + START_S
    while time.monotonic() < until_s:
        try:
            if action():
                return
        except (requests.ConnectionError, RuntimeError):  # not listening yet, or still loading
            pass
        time.sleep(0.02)
    raise SystemExit("the backend did not start")


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=6)
    parser.add_argument("--repeats", type=int, default=3, help="runs of `sspsam --help`")
    options = parser.parse_args()
    help_once()
    helped = middle([help_once() for _ in range(options.repeats)])
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sspsam-")))
        server = stack.enter_context(LabelStudioServer())
        server.add_project(PROJECT)
        for task, found in enumerate(demo_pictures(folder / "pictures", options.pictures + 1)):
            pixels = read_picture(found.path)
            server.add_task(task, PROJECT, cv2.resize(pixels, (SIDE_PX, SIDE_PX * 3 // 4)))
        redis_url = stack.enter_context(redis_at(folder))
        port = free_port()
        told = environment(server.url, redis_url, folder / "models", HOST="127.0.0.1", PORT=str(port))
        process = subprocess.Popen(sspsam("serve"), cwd=ROOT, env=told)
        stack.enter_context(ended(process))
        backend, url = Served(process.pid), f"http://127.0.0.1:{port}"
        until(lambda: requests.get(f"{url}/health", timeout=ANSWER_S).ok)
        health = backend.took()
        session = stack.enter_context(requests.Session())
        until(lambda: bool(ask(session, url, server.tasks[0], NOUNS[0])) or True)
        mask = backend.took()
        firsts, nexts = [], []
        for task in range(1, options.pictures + 1):
            for number, noun in enumerate(NOUNS):
                asked = partial(ask, session, url, server.tasks[task], f"the {noun} of {task} on the left")
                took = backend.time(asked)
                (nexts if number else firsts).append(took)
        memory_mb, cuda_mb = backend.memory_mb()
    rows = [
        helped.row("`sspsam --help`", f"{MOST_S['help']}"),
        health.row("backend: start to /health", f"{MOST_S['health']:.0f}"),
        mask.row("backend: start to the first mask", f"{MOST_S['mask']:.0f}"),
        middle(firsts).row(f"first phrase on a new image of {SIDE_PX} px", f"{MOST_S['first']}"),
        middle(nexts).row("new phrase on the same image", f"{MOST_S['next']}"),
    ]
    write_section(
        "Startup, latency and memory",
        f"Demo weights on {os.cpu_count()} cores; medians of {options.repeats} starts, {len(firsts)} first "
        f"and {len(nexts)} further phrases over HTTP, image download included. Wall-clock seconds, and CPU "
        "seconds of all threads, which the targets limit.",
        table(["step", "wall-clock s", "CPU s", "target: at most"], rows),
        f"Memory of the model process afterwards: {memory_mb:.0f} MB, of which {cuda_mb:.0f} MB are CUDA "
        f"libraries that PyTorch's CPU builds do not contain. Target without them: at most {MOST_MB} MB. "
        "Weights are memory-mapped.",
    )
    measured = zip(MOST_S.values(), (helped, health, mask, middle(firsts), middle(nexts)), strict=True)
    if memory_mb - cuda_mb > MOST_MB or any(took.processor_s > most_s for most_s, took in measured):
        raise SystemExit("a target for time or memory is missed")


if __name__ == "__main__":
    main()
