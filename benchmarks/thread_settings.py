"""A phrase after a batch, under settings of threads that a caller or an environment may have.

Each setting is a process of its own, in turn. Medians of further phrases on an embedded image, in processor
and wall-clock time, relative to no setting, and context switches of a phrase: row threads that go on
splitting products start more threads than there are cores, which sleep and wake for each operation.

    python benchmarks/thread_settings.py [--rounds 3] [--preset ssp-sam-demo]
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
from collections.abc import Mapping

from common.sections import ROOT, table, write_section

CORES = os.cpu_count() or 1
NONE = "none"
SETTINGS: Mapping[str, Mapping[str, str]] = {
    NONE: {},
    f"torch.set_num_threads({CORES})": {"LATER_THREADS": str(CORES)},
    "torch.set_num_threads(1)": {"LATER_THREADS": "1"},
    f"MKL_NUM_THREADS={CORES}": {"MKL_NUM_THREADS": str(CORES)},
    f"OMP_NUM_THREADS={CORES}": {"OMP_NUM_THREADS": str(CORES)},
    "MKL_DYNAMIC=false": {"MKL_DYNAMIC": "false"},
}
"""Setting -> environment; LATER_THREADS is a call after the predictor is made."""
MOST = 1.10
PHRASES = 12
PROGRAM = f"""
import json, os, resource, statistics, time
import common.as_served
import numpy as np, torch
from torch import nn
from sspsam import Predictor
from sspsam.results import Question

predictor = Predictor.from_preset(os.environ["BENCHMARK_PRESET"], "cpu", second_look="off")
if "LATER_THREADS" in os.environ:
    torch.set_num_threads(int(os.environ["LATER_THREADS"]))
embedding = predictor.embed(np.random.default_rng(0).integers(0, 256, (600, 800, 3), dtype=np.uint8))
predictor.decode([Question(embedding, f"the man {{number}} in red") for number in range(8)])
rows = []
for number in range({PHRASES}):
    before, since_s = resource.getrusage(resource.RUSAGE_SELF), time.perf_counter()
    predictor.decode([Question(embedding, f"the dog {{number}} on the left")])
    took_s, after = time.perf_counter() - since_s, resource.getrusage(resource.RUSAGE_SELF)
    used_s = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    rows.append((took_s, used_s, after.ru_nvcsw - before.ru_nvcsw))
print(json.dumps([statistics.median(column) for column in zip(*rows[2:])]))
"""


def measure(preset: str, setting: Mapping[str, str]) -> list[float]:
    """Seconds, processor seconds and voluntary context switches of a phrase, in a new process."""
    told = {
        **os.environ,
        "BENCHMARK_PRESET": preset,
        "PYTHONPATH": f"{ROOT}:{ROOT / 'benchmarks'}",
        **setting,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], env=told, check=True, capture_output=True, text=True
    )
    figures: list[float] = json.loads(done.stdout.splitlines()[-1])
    return figures


def main() -> None:
    """Measures the settings and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--preset", default="ssp-sam-demo")
    options = parser.parse_args()
    found: dict[str, list[list[float]]] = {name: [] for name in SETTINGS}
    for _ in range(options.rounds):
        for name, setting in SETTINGS.items():
            found[name].append(measure(options.preset, setting))
    medians = {
        name: [statistics.median(column) for column in zip(*rows, strict=True)]
        for name, rows in found.items()
    }
    base = medians[NONE]
    rows = [
        [name, f"{took_s / base[0]:.2f}", f"{used_s / base[1]:.2f}", f"{switches:.0f}"]
        for name, (took_s, used_s, switches) in medians.items()
    ]
    write_section(
        "Settings of threads",
        f"A further phrase with `{options.preset}` after a batch of 8, under settings of the caller or of "
        f"the environment, relative to none. Target: at most {MOST:.2f}.",
        table(["setting", "time", "processor time", "context switches"], rows),
    )
    slower = [name for name, figures in medians.items() if figures[0] / base[0] > MOST]
    if slower:
        raise SystemExit(f"slower than the target: {', '.join(slower)}")


if __name__ == "__main__":
    main()
