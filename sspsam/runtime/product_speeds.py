"""Which of MKL and oneDNN multiplies faster on this machine, by shape: measured once, kept in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import statistics
import time
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sspsam.files import replace_text
from sspsam.runtime.cores import Cores
from sspsam.runtime.onednn import (
    IsFaster,
    has_onednn,
    multiply_by_mkl,
    multiply_by_onednn,
    use_onednn_matmul,
)

SHAPES = (
    (32, 256, 2048), (77, 512, 512), (77, 512, 2048), (77, 2048, 512),
    (200, 128, 512), (300, 256, 2048), (300, 2048, 256), (200, 768, 3072),
    (577, 1024, 1024), (200, 1024, 4096), (4096, 256, 128), (4096, 256, 256), (16384, 64, 128),
    (1024, 768, 768), (512, 3072, 768), (256, 1280, 1280), (256, 1280, 5120),
)  # fmt: skip
"""(M, K, N) as in the models: prompts, phrases, patches, cells, image tokens; others are like the nearest."""
ROUNDS = 3
BUDGET_S = 3.0
"""Time of a measurement; an idle core needs about half of it."""
LEAST_GAIN = 1.03
"""Times as fast as MKL: below that, PyTorch's own way stays."""
FILE = "matrix-products.json"

Shape = tuple[int, int, int]
Speeds = Mapping[Shape, float]
"""Shape of a product -> how many times as fast oneDNN is."""

logger = logging.getLogger(__name__)


def use_faster_products(folder: Path | None = None) -> bool:
    """Makes this process multiply large matrices by whatever is faster, as measured in 3 s at most.

    Args:
        folder: Remembers the measurement, by processor, cores and version of PyTorch, for other processes and
            later starts; None measures for this process alone.

    Returns:
        Whether oneDNN is used for some shapes: see `sspsam.runtime.onednn.has_onednn`.
    """
    if not has_onednn():
        return False
    path = None if folder is None else folder / FILE
    speeds = _read(path)
    if speeds is None:
        speeds = measure()
        if len(speeds) < len(SHAPES):
            logger.info("the machine is too busy to measure matrix products: the next start tries again")
            return _gains_most() and use_onednn_matmul(lambda rows, inputs, outputs: True)
        _write(path, speeds)
    wins = sum(speed >= LEAST_GAIN for speed in speeds.values())
    logger.info("oneDNN is faster than MKL for %d of %d shapes of matrix products", wins, len(speeds))
    return use_onednn_matmul(chooser(speeds)) and wins > 0


def measure(
    shapes: Sequence[Shape] = SHAPES, rounds: int = ROUNDS, budget_s: float = BUDGET_S
) -> dict[Shape, float]:
    """Speeds of products on one core, while the other cores do the same.

    Processor time is compared, so that other programs matter little. What is split over cores has the same
    kernels.

    Args:
        shapes: Measured as far as the time suffices.
        rounds: Products of each shape; the fastest counts.
        budget_s: The time.
    """
    cores, count = Cores(), torch.get_num_threads()
    by_core = cores.map(lambda parts: [_measure(shapes, rounds, budget_s) for _ in parts], range(count))
    return {
        shape: statistics.median(speeds)
        for shape, speeds in zip(shapes, zip(*by_core, strict=False), strict=False)
    }


def chooser(speeds: Speeds) -> IsFaster:
    """Chooses as for the nearest shape: on a logarithmic scale, twice as wide is as far as twice as high."""

    @lru_cache(maxsize=4096)
    def is_faster(*shape: int) -> bool:
        def distance(known: Shape) -> float:
            return sum(math.log(a / b) ** 2 for a, b in zip(known, shape, strict=True))

        return speeds[min(speeds, key=distance)] >= LEAST_GAIN

    return is_faster


@torch.inference_mode()
def _measure(shapes: Sequence[Shape], rounds: int, budget_s: float) -> list[float]:
    """In this thread: how many times as fast oneDNN is, for the first shapes. The two take turns."""
    until_s, found = time.monotonic() + budget_s, list[float]()
    for rows, inputs, outputs in shapes:
        if time.monotonic() < until_s:
            found.append(_speed(torch.rand(rows, inputs), torch.rand(outputs, inputs).t(), rounds))
    return found


def _speed(left: Tensor, right: Tensor, rounds: int) -> float:
    ways = (multiply_by_mkl, multiply_by_onednn)
    took_s: list[list[float]] = [[], []]
    for _ in range(rounds + 1):
        for multiply, times_s in zip(ways, took_s, strict=True):
            since_s = time.thread_time()
            multiply(left, right)
            times_s.append(time.thread_time() - since_s)
    mkl, onednn = (min(times_s[1:]) for times_s in took_s)  # the first creates what is reused
    return mkl / onednn


def _digest() -> str:
    """Of all that a measurement depends on."""
    conditions = [_processor(), torch.get_num_threads(), torch.__version__, SHAPES]
    return hashlib.sha256(json.dumps(conditions).encode()).hexdigest()[:16]


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    wanted = ("vendor_id", "cpu family", "model\t", "model name", "flags")
    return str(sorted({line for line in lines if line.startswith(wanted)}))


def _gains_most() -> bool:
    """An AMD processor with AVX-512, which MKL does not use."""
    processor = _processor()
    return "AuthenticAMD" in processor and "avx512f" in processor


def _read(path: Path | None) -> Speeds | None:
    """What was measured under the same conditions; None if nothing was, or the file is damaged."""
    if path is None:
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))[_digest()]
        return {(int(m), int(k), int(n)): float(speed) for m, k, n, speed in kept}
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _write(path: Path | None, speeds: Speeds) -> None:
    if path is None:
        return
    try:
        others = json.loads(path.read_text(encoding="utf-8"))
        others = others if isinstance(others, dict) else {}
    except (OSError, ValueError):
        others = {}
    rows = [[*shape, round(speed, 3)] for shape, speed in speeds.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({**others, _digest(): rows}))
    except OSError as error:
        logger.warning("the speeds of matrix products are measured again at the next start: %s", error)
