"""Latency of /health, /setup and /webhook while annotators keep the model busy.

Label Studio's timeout is one second for /health and webhook events and three for /setup, and users wait
meanwhile. `sspsam serve` with the shipped weights is measured idle, and while annotators send phrases without
a pause. Everything shares this machine's cores, so the times are upper bounds.

    python benchmarks/protocol.py [--seconds 8] [--annotators 4]
"""

from __future__ import annotations

import argparse
import itertools
import json
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import requests
from common.sections import table, write_section
from common.serving import Scenes, ask, serving

from backend.events import read_event
from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam import mask_to_brush_rle

LIMIT_MS = 50
EVERY_S = 0.02
"""Interval between requests of one kind: far shorter than Label Studio's."""
LARGE_HW = (700, 900)
PARSES = 20

Times = dict[str, list[float]]
"""Probe -> milliseconds."""


def large_event() -> bytes:
    """Event of a saved annotation with a ragged mask, included twice: several megabytes."""
    rle = mask_to_brush_rle(np.random.default_rng(0).random(LARGE_HW) > 0.5)
    region = {"id": "a", "from_name": "mask", "type": "brushlabels", "value": {"rle": rle}}
    annotation = {"id": 3, "task": 4, "project": 5, "result": [region, region]}
    event = {"annotation": annotation, "project": {"id": 5}, "task": {"id": 4}}
    return json.dumps({"action": "ANNOTATION_UPDATED", **event}).encode()


def probes(url: str) -> dict[str, Callable[[requests.Session], requests.Response]]:
    """Measured requests: name -> request."""
    small, large = b'{"action": "PROJECT_UPDATED", "project": {"id": 5}}', large_event()
    setup = {"project": "5.1", "schema": RECOMMENDED_CONFIG, "hostname": url, "access_token": ""}
    return {
        "/health": lambda session: session.get(f"{url}/health"),
        "/setup": lambda session: session.post(f"{url}/setup", json=setup),
        "/webhook": lambda session: session.post(f"{url}/webhook", data=small),
        f"/webhook, {len(large) / 1e6:.1f} MB": lambda session: session.post(f"{url}/webhook", data=large),
    }


def measure(url: str, seconds: float) -> Times:
    """Sends each request in turn."""
    sends = probes(url)
    took_ms: Times = {name: [] for name in sends}
    until_s = time.monotonic() + seconds
    with requests.Session() as session:
        while time.monotonic() < until_s:
            for name, send in sends.items():
                since_s = time.perf_counter()
                send(session).raise_for_status()
                took_ms[name].append(1000 * (time.perf_counter() - since_s))
                time.sleep(EVERY_S)
    return took_ms


@contextmanager
def annotators(url: str, shown: Scenes) -> Iterator[list[float]]:
    """Sends phrases without a pause on each task during the block; yields the times of the answers."""
    ended, answered = threading.Event(), list[float]()

    def annotate(task: int) -> None:
        with requests.Session() as session:
            for phrase in itertools.cycle(shown.phrases[task]):
                if ended.is_set():
                    return
                ask(session, url, shown.server.tasks[task], phrase)
                answered.append(time.monotonic())

    threads = [threading.Thread(target=annotate, args=(task,)) for task in shown.phrases]
    for thread in threads:
        thread.start()
    try:
        yield answered
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def parse_ratio() -> float:
    """Time of `json.loads` relative to reading only ids from the large event; medians, in turn."""
    body, took_s = large_event(), {json.loads: list[float](), read_event: list[float]()}
    for _ in range(PARSES):
        for parse, times in took_s.items():
            since_s = time.perf_counter()
            parse(body)
            times.append(time.perf_counter() - since_s)
    return float(np.median(took_s[json.loads]) / np.median(took_s[read_event]))


def rows_of(idle: Times, busy: Times) -> list[list[str]]:
    """Median and 99th percentile of each, and the fraction within the limit."""
    return [
        [
            name,
            *(f"{np.percentile(times[name], percent):.1f}" for times in (idle, busy) for percent in (50, 99)),
            f"{100 * np.mean(np.array(busy[name]) <= LIMIT_MS):.1f} %",
        ]
        for name in idle
    ]


def main() -> None:
    """Measures the idle backend, then the busy one, and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=8, help="per measurement")
    parser.add_argument(
        "--annotators", type=int, default=4, help="number of annotators that send phrases without a pause"
    )
    options = parser.parse_args()
    with serving(options.annotators) as (url, shown):
        idle = measure(url, options.seconds)
        with annotators(url, shown) as answered:
            busy = measure(url, options.seconds)
        rate = len(answered) / options.seconds
    head = ["request", "idle, p50 ms", "p99", "busy, p50 ms", "p99", f"busy, within {LIMIT_MS} ms"]
    write_section(
        "Health, setup and webhook latency",
        f"`sspsam serve`, idle and with {options.annotators} annotators who send phrases without a pause "
        f"({rate:.0f} phrases/s). These requests load no model and read no mask; only IDs are read from an "
        f"event, which is {parse_ratio():.1f} times as fast as `json.loads` for the large one. Client and "
        "server share the machine's cores.",
        table(head, rows_of(idle, busy)),
    )


if __name__ == "__main__":
    main()
