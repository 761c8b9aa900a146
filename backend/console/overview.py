"""What the overview adds to `backend.console.dashboard`: load, memory, queues, problems with their remedy."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from threading import Lock

import psutil

from backend.service import Service
from backend.state.worker_state import QueueState

WINDOW_S = 3600.0
KEPT = 20_000
"""Requests in memory; with more within the window, it covers less than an hour."""
SLOW_P95_S = 10.0
"""Beyond this, annotators stop typing phrases."""


@dataclass(frozen=True)
class RecentLoad:
    """What was answered within the window."""

    requests: int
    phrases: int
    phrases_per_s: float
    """Mean over the window, or since the first request in it."""
    p50_s: float | None
    p95_s: float | None


class RecentRequests:
    """Answered requests of annotators. Thread-safe."""

    def __init__(self) -> None:
        self._entries: deque[tuple[float, float, int]] = deque()
        self._phrases_before = 0
        self._lock = Lock()

    def note(self, seconds: float, phrases_so_far: int) -> None:
        """Adds a request that has just been answered.

        Args:
            seconds: Response time.
            phrases_so_far: Phrases answered since the start, those of this request included.
        """
        with self._lock:
            self._entries.append((time.monotonic(), seconds, phrases_so_far))
            self._drop_old()

    def load(self) -> RecentLoad:
        with self._lock:
            self._drop_old()
            entries, phrases_before = list(self._entries), self._phrases_before
        times = sorted(seconds for _, seconds, _ in entries)
        phrases = max((count for _, _, count in entries), default=phrases_before) - phrases_before
        since_s = time.monotonic() - entries[0][0] + entries[0][1] if entries else 0.0
        p50_s, p95_s = _quantile(times, 0.5), _quantile(times, 0.95)
        return RecentLoad(len(entries), phrases, phrases / max(since_s, 1.0), p50_s, p95_s)

    def _drop_old(self) -> None:
        now_s = time.monotonic()
        while self._entries and (now_s - self._entries[0][0] > WINDOW_S or len(self._entries) > KEPT):
            self._phrases_before = max(self._phrases_before, self._entries.popleft()[2])


def _quantile(values: list[float], share: float) -> float | None:
    """Of sorted values: the nearest rank."""
    return values[min(len(values) - 1, int(share * len(values)))] if values else None


@dataclass(frozen=True)
class Memory:
    """Bytes."""

    process: int
    used: int
    total: int
    gpu_used: int = 0
    gpu_total: int = 0
    """0 without a GPU."""


@dataclass(frozen=True)
class Overview:
    """Figures of the whole service."""

    memory: Memory
    load: RecentLoad
    queues: Mapping[str, QueueState]
    images_waiting: int
    phrases_waiting: int
    embeddings: int
    embedding_bytes: int
    problems: Sequence[str]


def overview(service: Service, recent: RecentRequests) -> Overview:
    """Collects the figures."""
    load, queues = recent.load(), service.redis_store.worker.queues()
    waiting = service.engine.waiting()
    return Overview(
        memory=_memory(service.engine.status().device),
        load=load,
        queues=queues,
        images_waiting=waiting.get("images", 0),
        phrases_waiting=waiting.get("phrases", 0),
        embeddings=len(service.engine.embeddings),
        embedding_bytes=service.engine.embeddings.size_bytes,
        problems=[*_queue_problems(queues), *_load_problems(load)],
    )


def _queue_problems(queues: Mapping[str, QueueState]) -> list[str]:
    problems = []
    for name, queue in queues.items():
        if queue.waiting and not queue.workers:
            problems.append(
                f"{_jobs(queue.waiting, 'waits', 'wait')} in the queue {name}, and no worker takes from it: "
                f"start sspsam worker --queues {name}"
            )
        if queue.failed:
            problems.append(
                f"{_jobs(queue.failed, 'has', 'have')} failed in the queue {name}: see why under Jobs, and "
                "retry them there"
            )
    return problems


def _jobs(count: int, one: str, several: str) -> str:
    return f"1 job {one}" if count == 1 else f"{count} jobs {several}"


def _load_problems(load: RecentLoad) -> list[str]:
    if load.p95_s is None or load.p95_s < SLOW_P95_S:
        return []
    return [
        f"1 of 20 requests took more than {load.p95_s:.0f} s within the last hour: embed images ahead of "
        "time (Prefetch on a project's page), or use a smaller image encoder (SAM_ENCODER)"
    ]


def _memory(device: str) -> Memory:
    system = psutil.virtual_memory()
    memory = (psutil.Process().memory_info().rss, system.total - system.available, system.total)
    if not device.startswith("cuda"):
        return Memory(*memory)
    import torch

    free, total = torch.cuda.mem_get_info(device)
    return Memory(*memory, gpu_used=total - free, gpu_total=total)
