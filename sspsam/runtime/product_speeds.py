"""Which of MKL and oneDNN multiplies faster on this machine, by shape: measured once, kept in a file."""

from __future__ import annotations

import hashlib
import json
import logging
import math
import platform
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache
from pathlib import Path

import torch
from torch import Tensor

from sspsam.files import replace_text
from sspsam.runtime.cores import Cores
from sspsam.runtime.onednn import has_onednn, multiply_by_mkl, multiply_by_onednn, use_onednn_matmul

SHAPES = (
    (32, 256, 2048), (77, 512, 512), (77, 512, 2048), (77, 2048, 512),
    (200, 128, 512), (300, 256, 2048), (300, 2048, 256), (200, 768, 3072),
    (577, 1024, 1024), (577, 1024, 4096), (4096, 256, 128), (4096, 256, 256), (16384, 64, 128),
    (1024, 768, 768), (1024, 3072, 768), (1024, 1280, 1280), (512, 1280, 5120),
)  # fmt: skip
"""(M, K, N) as in the models: prompts, phrases, patches, cells, image tokens; others are like the nearest."""
ROUNDS = 5
LEAST_GAIN = 1.03
"""Times as fast as MKL: below that, PyTorch's own way stays."""
FILE = "matrix-products.json"

Shape = tuple[int, int, int]
Speeds = Mapping[tuple[bool, Shape], float]
"""Whether the product is split over cores, and its shape -> how many times as fast oneDNN is."""

logger = logging.getLogger(__name__)


def use_faster_products(folder: Path | None = None) -> bool:
    """Makes this process multiply large matrices by whatever was the faster in a measurement of about 2 s.

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
        _write(path, speeds)
    wins = sum(speed >= LEAST_GAIN for speed in speeds.values())
    logger.info("oneDNN is faster than MKL for %d of %d shapes of matrix products", wins, len(speeds))
    return use_onednn_matmul(chooser(speeds)) and wins > 0


def measure(shapes: Sequence[Shape] = SHAPES, rounds: int = ROUNDS) -> dict[tuple[bool, Shape], float]:
    """Speeds of products on one core, while the others do the same, and of those that are split over all."""
    cores, count = Cores(), torch.get_num_threads()
    alone = cores.map(lambda parts: [_measure(shapes, rounds) for _ in parts], range(count))
    found = {
        (False, shape): statistics.median(speeds)
        for shape, speeds in zip(shapes, zip(*alone, strict=True), strict=True)
    }
    if count > 1:
        split = cores.run(lambda: _measure(shapes, rounds))
        found |= {(True, shape): speed for shape, speed in zip(shapes, split, strict=True)}
    return found


def chooser(speeds: Speeds) -> Callable[[int, int, int], bool]:
    """Chooses as for the nearest shape: on a logarithmic scale, twice as wide is as far as twice as high."""

    @lru_cache(maxsize=4096)
    def is_faster(is_split: bool, shape: Shape) -> bool:
        def distance(known: tuple[bool, Shape]) -> float:
            apart = [math.log(a / b) ** 2 for a, b in zip(known[1], shape, strict=True)]
            return math.inf if known[0] is not is_split else sum(apart)

        return speeds[min(speeds, key=distance)] >= LEAST_GAIN

    return lambda rows, inputs, outputs: is_faster(torch.get_num_threads() > 1, (rows, inputs, outputs))


@torch.inference_mode()
def _measure(shapes: Sequence[Shape], rounds: int) -> list[float]:
    """In this thread: how many times as fast oneDNN is, for each shape. The two take turns."""
    return [_speed(torch.rand(m, k), torch.rand(n, k).t(), rounds) for m, k, n in shapes]


def _speed(left: Tensor, right: Tensor, rounds: int) -> float:
    took: dict[Callable[[Tensor, Tensor], Tensor], list[float]] = {
        multiply_by_mkl: [],
        multiply_by_onednn: [],
    }
    for _ in range(rounds + 1):
        for multiply, times_s in took.items():
            since_s = time.perf_counter()
            multiply(left, right)
            times_s.append(time.perf_counter() - since_s)
    mkl, onednn = (min(times_s[1:]) for times_s in took.values())  # the first creates what is reused
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


def _read(path: Path | None) -> Speeds | None:
    """What was measured under the same conditions; None if nothing was, or the file is damaged."""
    if path is None:
        return None
    try:
        kept = json.loads(path.read_text(encoding="utf-8"))[_digest()]
        return {(bool(split), (int(m), int(k), int(n))): float(speed) for split, m, k, n, speed in kept}
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
    rows = [[split, *shape, round(speed, 3)] for (split, shape), speed in speeds.items()]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps({**others, _digest(): rows}))
    except OSError as error:
        logger.warning("the speeds of matrix products are measured again at the next start: %s", error)
