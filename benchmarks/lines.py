"""Many lines of versions in one backend: throughput, the first phrase of a cold line, memory per line.

Throughput: a real `sspsam serve` with the shipped weights and one version per line. Clients with an image
each send phrases without a pause, from projects on 1, 4 or 16 lines in turn. Processor time per phrase is
that of the server; unlike phrases per second, it depends little on other load. Cold lines and memory: the
engine in this process, the shipped weights and `ssp-sam-224` with random ones; SAM's image encoder is left
out, because all lines share its embeddings.

    python benchmarks/lines.py [--clients 32] [--seconds 4] [--rounds 3]
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import common.as_served  # noqa: F401 - before torch
import numpy as np
import psutil
import requests
import torch
from common.sections import table, write_section
from common.serving import Scenes, backend, environment, metric, predict, redis_at, scenes
from torch import Tensor, nn

from backend.serving.batch_queue import Caller
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.engine import Engine
from sspsam import ImageEmbedding, Predictor, VersionStore, build_model
from sspsam.checkpoints.bundles import load_bundle, packaged_weights
from sspsam.images.frames import UInt8Image, image_to_clip
from sspsam.presets import IMAGE_ENCODERS
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import VersionCard

LINES = (1, 4, 16)
SERVED = "ssp-sam-demo"
PRESETS = (SERVED, "ssp-sam-224")
LEAST_OF_ONE_LINE = 0.8
"""Target of the throughput on 4 lines, as a fraction of that on one."""
COLD = 8
"""Number of lines whose first phrase is timed."""
WARM_PHRASES = 3


def near(state: Mapping[str, Tensor], seed: int) -> dict[str, Tensor]:
    """Other weights with about the same masks: speed depends on them only through masks."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: value + 1e-3 * value.std(correction=0) * torch.randn(value.shape, generator=generator)
        if value.is_floating_point()
        else value
        for name, value in state.items()
    }


def publish_lines(store: VersionStore, state: Mapping[str, Tensor], count: int) -> list[str]:
    """Publishes a version for each of the first projects; returns the versions."""
    published = []
    for project in range(1, count + 1):
        card = VersionCard(line=line_of_project(project))
        published.append(store.publish(near(state, project), card, {}).version_id)
        store.promote(published[-1])
    return published


@dataclass
class Load:
    """Measurements of the clients on some number of lines."""

    rates: list[float] = field(default_factory=list)
    """Phrases per second, by round."""
    took_s: list[float] = field(default_factory=list)
    counts: list[int] = field(default_factory=list)
    """Answers by client."""
    wrong: int = 0
    """Answers from another version than that of their line."""
    failed: int = 0
    phrases: float = 0
    passes: float = 0
    cpu_s: list[float] = field(default_factory=list)
    """Processor time of the server per phrase, by round."""


@dataclass(frozen=True)
class Running:
    """A backend with a version for each of its projects."""

    url: str
    shown: Scenes
    versions: Sequence[str]
    process: psutil.Process

    def cpu_s(self) -> float:
        """Processor time so far, of the server's processes."""
        times = [one.cpu_times() for one in (self.process, *self.process.children(recursive=True))]
        return sum(one.user + one.system for one in times)


def measure(load: Load, running: Running, lines: int, clients: int, seconds: float) -> None:
    """Runs the clients for some seconds; those of a line share a project."""
    url, shown, versions = running.url, running.shown, running.versions
    before = [metric(url, f"sspsam_batch_size_{what}") for what in ("sum", "count")]
    cpu_s = running.cpu_s()
    until_s = time.monotonic() + seconds
    counts = [0] * clients

    def annotate(client: int) -> None:
        task, phrases = shown.server.tasks[client + 1], shown.phrases[client + 1]
        project = 1 + client % lines
        with requests.Session() as session:
            while time.monotonic() < until_s:
                since_s = time.perf_counter()
                try:
                    phrase = phrases[counts[client] % len(phrases)]
                    answer = predict(session, url, task, phrase, project)
                except (RuntimeError, requests.RequestException):
                    load.failed += 1
                    continue
                load.took_s.append(time.perf_counter() - since_s)
                load.wrong += answer["model_version"] != versions[project - 1]
                counts[client] += 1

    threads = [threading.Thread(target=annotate, args=(client,)) for client in range(clients)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    load.rates.append(sum(counts) / seconds)
    load.cpu_s.append((running.cpu_s() - cpu_s) / max(sum(counts), 1))
    load.counts += counts
    after = [metric(url, f"sspsam_batch_size_{what}") for what in ("sum", "count")]
    load.phrases += after[0] - before[0]
    load.passes += after[1] - before[1]


def throughput(clients: int, seconds: float, rounds: int) -> dict[int, Load]:
    """Measurements by number of lines, taken in turn in every round."""
    loads = {lines: Load() for lines in LINES}
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sspsam-")))
        shown = stack.enter_context(scenes(folder / "pictures", clients))
        redis_url = stack.enter_context(redis_at(folder))
        state = Predictor.from_preset(SERVED, "cpu").trainable_state()
        versions = publish_lines(VersionStore(folder / "models", SERVED), state, max(LINES))
        told = environment(shown.server.url, redis_url, folder / "models", QUEUE_LIMIT=str(2 * clients))
        others = set(psutil.Process().children())
        url = stack.enter_context(backend(told))
        [process] = set(psutil.Process().children()) - others
        running = Running(url, shown, versions, process)
        with requests.Session() as session:  # embeds the images and loads the lines beforehand
            for task, phrases in shown.phrases.items():
                project = 1 + task % max(LINES)
                predict(session, url, shown.server.tasks[task], phrases[0], project)
        for lines in LINES:  # fills the caches of phrases
            measure(Load(), running, lines, clients, seconds / 4)
        for _ in range(rounds):
            for lines, load in loads.items():
                measure(load, running, lines, clients, seconds)
    return loads


class WithoutImageEncoder(Predictor):
    """Embeds every image as noise."""

    def embed(self, image: UInt8Image) -> ImageEmbedding:
        clip = self.model.preset.clip
        canvas, frame = image_to_clip(image, clip.image_size, clip.centred)
        config = IMAGE_ENCODERS[self.model.preset.image_encoder]
        noise = torch.randn(1, config.embedding_dim, config.embedding_size, config.embedding_size)
        with torch.inference_mode():
            return ImageEmbedding(frame.original_hw, noise, self.model.encode_image(canvas[None]), frame)


def load_model(preset: str) -> WithoutImageEncoder:
    path = packaged_weights(preset)
    torch.manual_seed(0)
    model = build_model(preset) if path is None else load_bundle(preset, path)[0]
    return WithoutImageEncoder(model, nn.Identity(), preset, "cpu")


@contextmanager
def engine_of(preset: str, count: int) -> Iterator[tuple[Engine, Predictor]]:
    """A running engine with a store of some lines."""
    predictor = load_model(preset)
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
        store = VersionStore(Path(folder), preset)
        publish_lines(store, predictor.trainable_state(), count)
        engine = Engine(lambda: predictor, store, EmbeddingCache(2**30), poll_s=0.5, version_bytes=8 * 2**30)
        engine.start()
        engine.wait(600)
        try:
            yield engine, predictor
        finally:
            engine.stop()


@dataclass(frozen=True)
class Cold:
    """Measurements of cold lines of a preset."""

    first_s: float
    """Median time of the first phrase of a line."""
    further_s: float
    """Median time of a new phrase of a line in memory."""
    others_s: float
    """Median time of another line's phrases while lines are loaded."""
    of_a_line_bytes: int
    measured_bytes: float
    """Growth of the process per line."""
    model_bytes: int
    """Of a whole model, without the image encoder."""


def measure_cold(preset: str) -> Cold:
    """Times the first phrases of COLD lines, beside a line that is asked without a pause."""
    picture = np.random.default_rng(0).integers(0, 256, (700, 1024, 3), dtype=np.uint8)
    with engine_of(preset, COLD + 1) as (engine, predictor):
        numbers = iter(range(10**6))

        def ask(project: int) -> float:
            phrase = f"the man number {next(numbers)} in red on the left"
            since_s = time.perf_counter()
            engine.predict("image", lambda: picture, [phrase], Caller(f"{project}", project=str(project)))
            return time.perf_counter() - since_s

        busy = COLD + 1
        for _ in range(WARM_PHRASES):
            ask(busy)
        gc.collect()
        process = psutil.Process()
        before = process.memory_info().rss
        first = [ask(project) for project in range(1, COLD + 1)]
        grown = process.memory_info().rss - before
        further = [ask(project) for _ in range(WARM_PHRASES) for project in range(1, COLD + 1)]
        status = engine.status()
        for project in range(1, COLD + 1):
            engine._loaded_versions.drop(engine.version_of(str(project)))
        others: list[float] = []
        stop = threading.Event()

        def annotate() -> None:
            while not stop.is_set():
                others.append(ask(busy))

        thread = threading.Thread(target=annotate)
        thread.start()
        for project in range(1, COLD + 1):
            ask(project)
        stop.set()
        thread.join()
        model_bytes = sum(part.nbytes for part in predictor.model.parameters())
    return Cold(
        statistics.median(first),
        statistics.median(further),
        statistics.median(others),
        status.loaded_bytes // status.loaded_versions,
        grown / COLD,
        model_bytes,
    )


def rows_of_throughput(loads: Mapping[int, Load]) -> list[list[object]]:
    one, one_cpu_s = (statistics.median(values) for values in (loads[1].rates, loads[1].cpu_s))
    rows: list[list[object]] = []
    for lines, load in loads.items():
        rate = statistics.median(load.rates)
        rows.append(
            [
                lines,
                f"{rate / one:.2f}",
                f"{statistics.median(load.cpu_s) / one_cpu_s:.2f}",
                f"{rate:.1f}",
                f"{load.phrases / max(load.passes, 1):.1f}",
                f"{np.quantile(load.took_s, 0.5):.2f}",
                f"{np.quantile(load.took_s, 0.95):.2f}",
                f"{min(load.counts) / max(load.counts):.2f}",
                load.wrong,
                load.failed,
            ]
        )
    return rows


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=4, help="per number of lines and round")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args()
    loads = throughput(options.clients, options.seconds, options.rounds)
    cold = {preset: measure_cold(preset) for preset in PRESETS}
    head = ["lines", "phrases/s / 1 line", "processor time per phrase / 1 line", "phrases/s"]
    head += ["phrases per pass", "p50 s", "p95 s"]
    head += ["fairness", "answers of another line's version", "failed"]
    cold_rows = [
        [
            preset,
            f"{one.first_s:.2f}",
            f"{one.first_s / one.further_s:.1f}",
            f"{one.others_s / one.further_s:.1f}",
            f"{one.of_a_line_bytes / 2**20:.1f}",
            f"{one.measured_bytes / 2**20:.1f}",
            f"{one.of_a_line_bytes / one.model_bytes:.2f}",
        ]
        for preset, one in cold.items()
    ]
    cold_head = [
        "preset",
        "first phrase, s",
        "/ further phrase",
        "other line's phrase meanwhile / further phrase",
    ]
    cold_head += ["tensors per line, MiB", "process growth per line, MiB", "tensors / whole model"]
    write_section(
        "Lines of versions",
        f"Throughput of one `sspsam serve` with `{SERVED}`, {options.clients} clients on projects of 1, 4 "
        "and 16 lines in turn, every line with a version of its own (medians of the rounds). Fairness: "
        "answers of the least served client divided by those of the most served.",
        table(head, rows_of_throughput(loads)),
        f"The first phrase of a cold line verifies, reads and loads its version: medians of {COLD} lines on "
        "an embedded image. Growth of the process includes cached features of the image and the phrase.",
        table(cold_head, cold_rows),
    )


if __name__ == "__main__":
    main()
