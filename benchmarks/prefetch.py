"""First phrases on new images with and without prefetch, and whether any of them waited for the encoder.

A real backend and a real worker with the shipped weights, Redis, and a fake Label Studio over HTTP. Half of
the tasks are prefetched by `sspsam prefetch` and a worker; then a phrase is sent for each task.

    python benchmarks/prefetch.py [--tasks 12]
"""

from __future__ import annotations

import argparse
import subprocess
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import requests
from common.sections import ROOT, table, write_section
from common.serving import PROJECT, ask, backend, environment, metric, redis_at, scenes, sspsam

SOURCES = ("memory", "disk", "encoder")


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, default=12, help="half of them prefetched")
    options = parser.parse_args()
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sspsam-")))
        shown = stack.enter_context(scenes(folder / "pictures", options.tasks))
        redis_url = stack.enter_context(redis_at(folder))
        told = environment(shown.server.url, redis_url, folder / "models")
        half = options.tasks // 2
        prefetch = sspsam("prefetch", "--project", str(PROJECT), "--limit", str(half), "--detach")
        worker = sspsam("worker", "--burst", "--queues", "prelabel")
        for command in (prefetch, worker):
            subprocess.run(command, cwd=ROOT, env=told, check=True, stdout=subprocess.DEVNULL)
        url = stack.enter_context(backend(told))
        session = stack.enter_context(requests.Session())

        def first_phrases(tasks: range) -> tuple[list[float], dict[str, float]]:
            """Seconds, and the sources of embeddings."""
            before = {one: metric(url, f'sspsam_embeddings_total{{source="{one}"}}') for one in SOURCES}
            took_s = []
            for task in tasks:
                since_s = time.perf_counter()
                ask(session, url, shown.server.tasks[task], shown.phrases[task][0])
                took_s.append(time.perf_counter() - since_s)
            after = {one: metric(url, f'sspsam_embeddings_total{{source="{one}"}}') for one in SOURCES}
            return took_s, {one: after[one] - before[one] for one in SOURCES}

        measured = {
            "prefetched": first_phrases(range(1, half + 1)),
            "not prefetched": first_phrases(range(half + 1, options.tasks + 1)),
            "second phrases": first_phrases(range(1, options.tasks + 1)),
        }
    warm_s = float(np.median(measured["second phrases"][0]))
    rows = [
        [name, len(took_s), *(f"{sources[one]:.0f}" for one in SOURCES), f"{np.median(took_s) / warm_s:.2f}"]
        for name, (took_s, sources) in measured.items()
    ]
    write_section(
        "Prefetched embeddings",
        "First phrases on images that are new to the backend. After `sspsam prefetch` no phrase waits for "
        "the image encoder: embeddings are read from the disk cache that backends and workers share. Times "
        "are of whole requests, image download included, relative to a second phrase on the same images.",
        table(["phrases", "count", *SOURCES, "median time / second phrase"], rows),
    )
    if measured["prefetched"][1]["encoder"]:
        raise SystemExit("a first phrase waited for the encoder")


if __name__ == "__main__":
    main()
