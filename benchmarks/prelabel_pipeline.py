"""How busy pre-labeling keeps a device, and whether workers that share a project do a task twice.

The device is simulated: it sleeps 20 ms for each picture and 5 ms for each phrase, one batch after the other;
so are Label Studio, downloads and JPEG decoding. Queue, claims, threads, batches and everything around the
model are the worker's own, with a real Redis.

    python benchmarks/prelabel_pipeline.py [--pictures 400] [--tasks 10000] [--workers 3] [--speed 10]
"""

from __future__ import annotations

import argparse
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

import common.simulated_device
from common.sections import ROOT, table, write_section
from common.serving import redis_at
from common.simulated_device import DONE_KEY, WORKERS_KEY, SimulatedDevice, Times, prelabeler
from redis import Redis
from rq.serializers import JSONSerializer

from backend.serving import image_lane
from backend.shared_redis import PRELABEL, connect
from worker.projects import chunks
from worker.projects.batch_jobs import enqueue_chunks
from worker.projects.chunks import ChunkProgress
from worker.queueing.workers import EventsWorker

LEAST_BUSY = 0.9
RUN = "prelabel-1-benchmark"
JOBS = "benchmarks.common.simulated_device"


def keep_busy(redis: Redis, pictures: int, threads: int) -> list[object]:
    """Pre-labels some pictures in this process; returns a row of the table.

    Args:
        redis: Empty.
        pictures: Their number.
        threads: Tasks at a time.
    """
    device, before = SimulatedDevice(Times()), chunks.TASK_THREADS
    chunks.TASK_THREADS = threads
    since_s, used_s = time.perf_counter(), time.process_time()
    with prelabeler(redis, device, RUN, "one") as own:
        *_, report = own.run(range(pictures))
        took_s, used_s = time.perf_counter() - since_s, time.process_time() - used_s
    chunks.TASK_THREADS = before
    assert report.posted == pictures, report
    sizes = device.batches_of_pictures
    return [
        threads,
        f"{100 * device.busy:.0f} %",
        f"{pictures / took_s:.1f}",
        f"{sum(sizes) / len(sizes):.1f}",
        f"{1000 * used_s / pictures:.0f}",
    ]


def work(redis_url: str) -> None:
    """A worker of the queue, until it is empty. Jobs are forks of it, so that none imports anything again."""
    worker = EventsWorker([PRELABEL], connection=connect(redis_url), serializer=JSONSerializer)
    worker.job_modules = (JOBS,)
    logging.disable(logging.INFO)
    worker.work(burst=True, logging_level=None)


def share(redis: Redis, redis_url: str, tasks: int, workers: int, speed: float) -> dict[str, Any]:
    """Pre-labels a project with several workers."""
    asked = {"redis_url": redis_url, "speed": speed}
    names = enqueue_chunks(redis, f"{JOBS}.prelabel_chunk", RUN, range(1, tasks + 1), asked)
    command = [sys.executable, __file__, "--work", redis_url]
    since_s = time.perf_counter()
    told = {**os.environ, "PYTHONPATH": str(ROOT)}
    running = [subprocess.Popen(command, env=told, cwd=ROOT) for _ in range(workers)]
    statuses = [process.wait() for process in running]
    took_s = time.perf_counter() - since_s
    done = cast("Mapping[bytes, bytes]", redis.hgetall(DONE_KEY))
    shares = cast("Mapping[bytes, bytes]", redis.hgetall(WORKERS_KEY))
    report = ChunkProgress(redis, RUN).report(names)
    return {
        "tasks": tasks,
        "jobs": len(names),
        "workers": f"{workers}, with {', '.join(sorted(value.decode() for value in shares.values()))} tasks",
        "predicted once": sum(value == b"1" for value in done.values()),
        "more than once": sum(value != b"1" for value in done.values()),
        "not predicted": tasks - len(done),
        "problems": len(report.problems) + sum(status != 0 for status in statuses),
        "seconds": f"{took_s:.0f}",
    }


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pictures", type=int, default=400)
    parser.add_argument("--tasks", type=int, default=10_000)
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--speed", type=float, default=10.0, help="of the device that workers share")
    parser.add_argument("--work", metavar="REDIS_URL", help="be one of the workers")
    options = parser.parse_args()
    if options.work:
        return work(options.work)
    rows = []
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder, redis_at(Path(folder)) as redis_url:
        redis = connect(redis_url)
        for threads in (1, chunks.TASK_THREADS):
            rows.append(keep_busy(redis, options.pictures // (4 if threads == 1 else 1), threads))
            print(*rows[-1], flush=True)
            redis.flushdb()
        shared = share(redis, redis_url, options.tasks, options.workers, options.speed)
    times = common.simulated_device.Times()
    write_section(
        "Pre-labelling a project",
        f"A simulated device that takes {1000 * times.picture:.0f} ms for each picture and "
        f"{1000 * times.phrase:.0f} ms for each phrase, two phrases a picture; Label Studio takes "
        f"{1000 * times.request:.0f} ms for a task, a download {1000 * times.download:.0f} ms, a JPEG "
        f"{1000 * times.decoding:.0f} ms. One worker, whose {image_lane.LOADING_THREADS} loading threads "
        f"read images ahead. Target: busy at least {100 * LEAST_BUSY:.0f} % of the time. Loading a model, "
        "once for each job, is not part of it.",
        table(
            ["tasks at a time", "device busy", "pictures/s", "pictures per batch", "CPU ms per picture"], rows
        ),
        f"Workers that share a project, one phrase a picture, on devices {options.speed:g} times as fast:",
        table(list(shared), [list(shared.values())]),
    )
    failed = [name for name in ("more than once", "not predicted", "problems") if shared[name]]
    if float(str(rows[-1][1]).rstrip(" %")) < 100 * LEAST_BUSY:
        failed.append("device busy")
    if failed:
        raise SystemExit(f"targets missed: {', '.join(failed)}")
    return None


if __name__ == "__main__":
    main()
