"""Weight swaps under load: failed requests, mixed answers, latency, memory.

A real backend with the shipped weights and a second version whose masks are their complement, so an answer
shows which version made it. Clients send phrases without a pause; promotions and rollbacks alternate.

    python benchmarks/swap.py [--clients 32] [--swaps 10] [--seconds 5]
"""

from __future__ import annotations

import argparse
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import psutil
import requests
import torch
from common.sections import table, write_section
from common.serving import Scenes, backend, environment, predict, redis_at, scenes
from redis import Redis

from backend.shared_redis import VERSIONS_CHANNEL
from sspsam import Predictor, VersionStore, brush_rle_to_mask
from sspsam.version_store.store import VersionCard

PRESET = "ssp-sam-demo"
LAST = "sam.mask_decoder.output_hypernetworks_mlps.0.layers.2."
"""Tensor in which the mask's logits are linear."""
MOST_APART = 0.05
"""Tolerated difference of one version's masks, as a fraction of the image: batching and rounding."""
AROUND_S = 1.0
"""Time before and after a promotion within which requests in flight count as during the swap."""


@dataclass
class Answers:
    """Answers received by the clients."""

    began_s: list[float] = field(default_factory=list)
    took_s: list[float] = field(default_factory=list)
    failed: list[str] = field(default_factory=list)
    shares: dict[tuple[int, bool], list[float]] = field(default_factory=dict)
    """(task, whether the base version answered) -> covered fraction of the image for each mask."""

    def between(self, times_s: Sequence[float], inside: bool) -> list[float]:
        """Latencies of the answers that were, or were not, in flight around any of the times."""
        near = [
            any(began - AROUND_S <= at <= began + took + AROUND_S for at in times_s)
            for began, took in zip(self.began_s, self.took_s, strict=True)
        ]
        return [took for took, is_near in zip(self.took_s, near, strict=True) if is_near == inside]


def share_of(prediction: dict[str, Any]) -> float:
    """Fraction of the image covered by the mask; 0 without one."""
    for one in prediction["result"]:
        if one["type"] == "brushlabels":
            mask = brush_rle_to_mask(one["value"]["rle"], one["original_height"], one["original_width"])
            return float(mask.mean())
    return 0.0


def inverted(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights whose masks are the complement of these weights' masks."""
    return {name: -tensor if name.startswith(LAST) else tensor for name, tensor in state.items()}


@dataclass(frozen=True)
class Running:
    """A backend that serves the base version, with a second one in its store."""

    url: str
    redis_url: str
    shown: Scenes
    store: VersionStore
    other: str
    process: psutil.Process

    def annotate(self, task: int, answers: Answers, stop: threading.Event) -> None:
        """Sends the same phrase without a pause; the covered fraction identifies the version."""
        scene, phrase = self.shown.server.tasks[task], self.shown.phrases[task][0]
        with requests.Session() as session:
            while not stop.is_set():
                since_s = time.monotonic()
                try:
                    prediction = predict(session, self.url, scene, phrase)
                except (RuntimeError, requests.RequestException) as error:
                    answers.failed.append(str(error))
                    continue
                answers.began_s.append(since_s)
                answers.took_s.append(time.monotonic() - since_s)
                share, is_base = share_of(prediction), prediction["model_version"] == self.store.base_version
                answers.shares.setdefault((task, is_base), []).append(share)

    def swap(self, back: bool) -> None:
        """Promotes the second version or rolls back, and notifies the backend."""
        if back:
            self.store.rollback()
        else:
            self.store.promote(self.other)
        with Redis.from_url(self.redis_url) as redis:
            redis.publish(VERSIONS_CHANNEL, self.store.current())


@contextmanager
def running(clients: int) -> Iterator[Running]:
    """Starts it, with an embedded image per client."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sspsam-")))
        shown = stack.enter_context(scenes(folder / "pictures", clients))
        redis_url = stack.enter_context(redis_at(folder))
        store = VersionStore(folder / "models", PRESET)
        state = Predictor.from_preset(PRESET, "cpu").trainable_state()
        other = store.publish(inverted(state), VersionCard(), {}).version_id
        limits = {"QUEUE_LIMIT": str(4 * clients), "MIN_SPECK": "0"}
        told = environment(shown.server.url, redis_url, folder / "models", **limits)
        before = set(psutil.Process().children())
        url = stack.enter_context(backend(told))
        [process] = set(psutil.Process().children()) - before
        with requests.Session() as session:
            for task, phrases in shown.phrases.items():
                predict(session, url, shown.server.tasks[task], phrases[0])
        yield Running(url, redis_url, shown, store, other, process)


def mixed(answers: Answers) -> int:
    """Answers that differ from the other answers of their named version for the same image."""
    count = 0
    for shares in answers.shares.values():
        count += int((np.abs(np.array(shares) - np.median(shares)) > MOST_APART).sum())
    return count


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--swaps", type=int, default=10)
    parser.add_argument("--seconds", type=float, default=5, help="time between two swaps")
    options = parser.parse_args()
    answers, stop = Answers(), threading.Event()
    swapped_s: list[float] = []
    sizes: list[float] = []
    with running(options.clients) as service:
        clients = [
            threading.Thread(target=service.annotate, args=(task, answers, stop))
            for task in service.shown.phrases
        ]
        for client in clients:
            client.start()
        for turn in range(options.swaps + 1):
            time.sleep(options.seconds)
            sizes.append(service.process.memory_info().rss / 2**20)
            if turn < options.swaps:
                swapped_s.append(time.monotonic())
                service.swap(back=bool(turn % 2))
        stop.set()
        for client in clients:
            client.join()
    usual, during = (np.quantile(answers.between(swapped_s, inside), 0.99) for inside in (False, True))
    apart = [
        abs(np.median(answers.shares[task, True]) - np.median(answers.shares[task, False]))
        for task, is_base in answers.shares
        if is_base and (task, False) in answers.shares
    ]
    rows = [
        ["responses", len(answers.took_s)],
        ["failed", len(answers.failed)],
        ["not from the version named", mixed(answers)],
        ["images on which the versions are distinguishable", sum(one > 2 * MOST_APART for one in apart)],
        ["p99 otherwise, s", f"{usual:.2f}"],
        ["p99 around a swap, s", f"{during:.2f}"],
        ["ratio", f"{during / usual:.2f}"],
        ["memory after the first swap, MiB", f"{sizes[1]:.0f}"],
        ["memory after the last, MiB", f"{sizes[-1]:.0f}"],
    ]
    write_section(
        "Weight swaps under load",
        f"{options.clients} clients send phrases to `{PRESET}` without a pause during {options.swaps} "
        "alternating promotions and rollbacks of a version whose masks are the complement. `p99 around a "
        f"swap` covers requests in flight within {AROUND_S:g} s of it.",
        table(["", ""], rows),
    )


if __name__ == "__main__":
    main()
