"""Timing of alternatives, measured in turn."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping


def medians_in_turn(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median seconds of each alternative; every round runs all of them, so load affects them equally."""
    took_s: dict[str, list[float]] = {name: [] for name in ways}
    for _ in range(rounds):
        for name, way in ways.items():
            since_s = time.perf_counter()
            way()
            took_s[name].append(time.perf_counter() - since_s)
    return {name: statistics.median(times_s) for name, times_s in took_s.items()}
