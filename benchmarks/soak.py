"""Mixed traffic for half an hour: unexpected errors, and growth of memory, files and threads.

    python benchmarks/soak.py [--plot docs/images/soak.png]   # 30 minutes; SOAK_MINUTES or --minutes for less

A real `sspsam serve` with a real Redis, and a fake Label Studio over HTTP that serves images. Phrases,
clicks, webhooks, batches and pages come from several threads; 1 % of the requests are invalid. Halfway, a
fine-tune runs in its own process, and its weights are promoted under traffic. The output gives slopes per
hour after the warm-up, with twice their standard error.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import Any

sys.path.insert(0, str(Path(__file__).parents[1]))

import numpy as np
import psutil
import requests
from redis import Redis, RedisError

from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam import VersionStore
from sspsam.version_store.store import VersionCard
from tests.worker.label_studio_server import KEY, LabelStudioServer
from worker.local.redis_program import redis_program

PICTURE = Path(__file__).parents[1] / "docs/images/soak.png"
AUTH = ("soak", "soak-password-of-this-run")
SECRET = "soak-secret-of-this-run"
PRESET = os.environ.get("SOAK_PRESET", "ssp-sam-test")
CLIENTS = 4
BURST = 64
"""Concurrent phrases at the start, so that the server creates all its threads."""
PAUSE_S = 0.05
"""Average interval between a client's requests."""
PICTURES = 60
WARM_UP = 0.3
"""Fraction of the time: caches fill and allocators settle."""
BAD = 0.01
SAMPLE_S = 1.0
EXPECTED = {"good": {200, 201}, "bad": {200, 400, 401, 404, 405, 413, 415, 422}}
UNITS = {"memory": "MiB", "files": "", "threads": ""}
MOST_PER_HOUR = {"memory": 40.0, "files": 5.0, "threads": 5.0}
"""Slopes above these, beyond their error, count as leaks."""
JUDGED_MINUTES = 15
"""Minimum length for a verdict: in a shorter run, one more open connection looks like dozens per hour."""
HEADERS = {"Content-Type": "application/json"}


@dataclass
class Tally:
    """Requests and responses; shared between threads."""

    kinds: Counter[str] = field(default_factory=Counter)
    unexpected: list[str] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    versions: Counter[str] = field(default_factory=Counter)
    _lock: Lock = field(default_factory=Lock)

    def note(self, kind: str, answer: requests.Response, seconds: float) -> None:
        expected = EXPECTED["bad" if kind == "bad" else "good"]
        with self._lock:
            self.kinds[kind] += 1
            self.seconds.append(seconds)
            if answer.status_code not in expected or "error inside" in answer.text:
                self.unexpected.append(f"{kind}: {answer.status_code} {answer.text[:200]}")
            elif kind == "phrase":
                self.versions[answer.json()["results"][0]["model_version"]] += 1


@dataclass
class Samples:
    """Resources of the backend's process over time."""

    at_s: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    files: list[float] = field(default_factory=list)
    threads: list[float] = field(default_factory=list)

    def take(self, process: psutil.Process, at_s: float) -> None:
        family = [process, *process.children(recursive=True)]
        self.at_s.append(at_s)
        self.memory.append(sum(one.memory_info().rss for one in family) / 2**20)
        self.files.append(sum(one.num_fds() for one in family))
        self.threads.append(sum(one.num_threads() for one in family))

    def slope(self, name: str) -> tuple[float, float]:
        """Slope per hour after the warm-up, and twice its standard error.

        Samples of one minute are averaged: neighbours are not independent.
        """
        first = int(len(self.at_s) * WARM_UP)
        hours = np.array(self.at_s[first:]) / 3600
        values = np.array(getattr(self, name)[first:])
        blocks = np.array_split(np.arange(hours.size), max(8, int(hours[-1] * 60) - int(hours[0] * 60)))
        x = np.array([hours[block].mean() for block in blocks])
        y = np.array([values[block].mean() for block in blocks])
        centred = x - x.mean()
        slope = float((centred * y).sum() / (centred**2).sum())
        residual = y - y.mean() - slope * centred
        error = float(np.sqrt((residual**2).sum() / (x.size - 2) / (centred**2).sum()))
        return slope, 2 * error


class Traffic:
    """Sends requests like Label Studio and its users."""

    def __init__(self, url: str, label_studio: LabelStudioServer, tally: Tally) -> None:
        self._url, self._tally = url, tally
        self._images = [str(task["data"]["image"]) for task in label_studio.tasks.values()]

    def run(self, seed: int, stop: Event) -> None:
        draw = random.Random(seed)
        kinds: list[tuple[float, str, Callable[[random.Random], Any]]] = [
            (BAD, "bad", self._bad),
            (0.10, "webhook", self._webhook),
            (0.17, "click", self._click),
            (0.19, "batch", self._batch),
            (0.20, "page", self._page),
            (1.00, "phrase", self._phrase),
        ]
        while not stop.wait(2 * PAUSE_S * draw.random()):
            number = draw.random()
            kind, make = next((kind, make) for most, kind, make in kinds if number < most)
            since_s = time.monotonic()
            try:
                self._tally.note(kind, make(draw), time.monotonic() - since_s)
            except requests.RequestException as error:
                self._tally.unexpected.append(f"{kind}: {type(error).__name__}")

    def phrase(self, seed: int) -> None:
        """Sends one phrase."""
        self._phrase(random.Random(seed))

    def _phrase(self, draw: random.Random) -> requests.Response:
        prompt = {
            "id": "p",
            "from_name": "prompt",
            "to_name": "image",
            "value": {"text": [self._words(draw)]},
        }
        return self._predict(draw, [prompt])

    def _click(self, draw: random.Random) -> requests.Response:
        where = {
            "x": 100 * draw.random(),
            "y": 100 * draw.random(),
            "width": 0.2,
            "keypointlabels": ["refine"],
        }
        click = {
            "id": f"k{draw.random()}",
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
        }
        size = {"original_width": 96, "original_height": 64, "image_rotation": 0}
        return self._predict(draw, [click | size | {"value": where, "is_positive": draw.random() < 0.8}])

    def _batch(self, draw: random.Random) -> requests.Response:
        tasks = [self._task(draw) for _ in range(5)]
        for task in tasks:
            task["data"]["phrase"] = self._words(draw)
        return self._post("/predict", self._body(tasks, None))

    def _webhook(self, draw: random.Random) -> requests.Response:
        event = {
            "action": draw.choice(["ANNOTATION_CREATED", "ANNOTATION_UPDATED"]),
            "annotation": {"id": draw.randrange(10**6), "task": 1, "result": []},
            "project": {"id": 5},
        }
        return requests.post(f"{self._url}/webhook", json=event, headers={"X-ML-Secret": SECRET}, timeout=60)

    def _page(self, draw: random.Random) -> requests.Response:
        path = draw.choice(["/", "/health", "/metrics", "/versions"])
        return requests.get(self._url + path, auth=AUTH, timeout=60)

    def _bad(self, draw: random.Random) -> requests.Response:
        bodies = [b"", b"[", b"{}", b"[" * 20_000, b'{"tasks": 7}', b'{"tasks": [null]}']
        choice = draw.randrange(4)
        if choice == 0:
            return requests.post(self._url + "/predict", data=draw.choice(bodies), auth=AUTH, timeout=60)
        if choice == 1:
            return requests.get(f"{self._url}/{draw.random()}", auth=AUTH, timeout=60)
        images = [
            "http://169.254.169.254/",
            "/data/nothing.png",
            "data:image/png;base64,AAAA",
            "/data/bad.png",
        ]
        task = {"id": 1, "data": {"image": draw.choice(images)}}
        prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "value": {"text": ["a dog"]}}
        return self._post("/predict", self._body([task], [prompt]))

    def _predict(self, draw: random.Random, results: list[Any]) -> requests.Response:
        return self._post("/predict", self._body([self._task(draw)], results))

    def _post(self, path: str, body: Any) -> requests.Response:
        return requests.post(self._url + path, data=json.dumps(body), headers=HEADERS, auth=AUTH, timeout=120)

    def _body(self, tasks: list[Any], results: list[Any] | None) -> dict[str, Any]:
        context = None if results is None else {"result": results}
        return {
            "tasks": tasks,
            "project": "5.1",
            "label_config": RECOMMENDED_CONFIG,
            "params": {"context": context},
        }

    def _task(self, draw: random.Random) -> dict[str, Any]:
        number = draw.randrange(len(self._images))
        return {"id": number + 1, "data": {"image": self._images[number]}}

    def _words(self, draw: random.Random) -> str:
        return f"the {draw.choice(['red', 'blue', 'big'])} {draw.choice(['dog', 'cup'])} {draw.randrange(50)}"


@contextmanager
def redis_at(folder: Path) -> Iterator[str]:
    """A redis-server on a socket."""
    url = f"unix://{folder}/r.sock"
    command = [str(redis_program()), "--port", "0", "--unixsocket", f"{folder}/r.sock", "--save", ""]
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: bool(Redis.from_url(url).ping()))
            yield url
        finally:
            process.terminate()


@contextmanager
def backend_with(environment: dict[str, str]) -> Iterator[subprocess.Popen[bytes]]:
    """Runs a backend; yields once its model is loaded."""
    command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), "serve"]
    url = f"http://127.0.0.1:{environment['PORT']}"
    with subprocess.Popen(command, env=os.environ | environment, stderr=subprocess.DEVNULL) as process:
        try:
            wait_for(lambda: requests.get(f"{url}/health", timeout=5).json()["model_state"] == "ready")
            yield process
        finally:
            process.terminate()


def wait_for(condition: Callable[[], bool], patience_s: float = 180.0) -> None:
    until_s = time.monotonic() + patience_s
    while time.monotonic() < until_s:
        try:
            if condition():
                return
        except (requests.RequestException, RedisError):
            pass
        time.sleep(0.1)
    raise TimeoutError("the backend did not start")


FINETUNE = """
import os, sys
from pathlib import Path
from finetune.training.config import TrainConfig
from finetune.training.train import train
os.nice(5)
config = TrainConfig(preset=sys.argv[1], output_dir=Path(sys.argv[2]), data="stickers/train?count=8",
                     steps=int(sys.argv[3]), batch_size=2)
print(train(config).weights)
"""


def finetune_and_promote(store: VersionStore, folder: Path, steps: int) -> str:
    """Fine-tunes like the worker, without the gate; returns the version that serves afterwards."""
    from sspsam.checkpoints.load import read_tensors

    command = [sys.executable, "-c", FINETUNE, PRESET, str(folder), str(steps)]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | {"OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise RuntimeError(done.stderr[-2000:])
    weights = Path(done.stdout.strip().splitlines()[-1])
    version = store.publish(read_tensors(weights), VersionCard(), {}).version_id
    store.promote(version)
    return version


def add_pictures(label_studio: LabelStudioServer) -> None:
    draw = np.random.default_rng(0)
    label_studio.add_project(5)
    for number in range(1, PICTURES + 1):
        label_studio.add_task(number, 5, draw.integers(0, 255, (40, 60, 3), dtype=np.uint8))
    label_studio.files["/data/bad.png"] = b"no picture"


def soak(minutes: float) -> tuple[Samples, Tally, str]:
    """Runs the traffic; returns the measurements and the version promoted halfway."""
    samples, tally, stop = Samples(), Tally(), Event()
    promoted = ""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="soak-")))
        label_studio = stack.enter_context(LabelStudioServer())
        add_pictures(label_studio)
        redis_url = stack.enter_context(redis_at(folder))
        port = 20_000 + os.getpid() % 20_000
        environment = {
            "LABEL_STUDIO_URL": label_studio.url,
            "LABEL_STUDIO_API_KEY": KEY,
            "BASIC_AUTH_USER": AUTH[0],
            "BASIC_AUTH_PASS": AUTH[1],
            "WEBHOOK_SECRET": SECRET,
            "MODEL_DIR": str(folder / "models"),
            "REDIS_URL": redis_url,
            "PRESET": PRESET,
            "DEVICE": "cpu",
            "PORT": str(port),
            "REQUESTS_PER_MINUTE": "1000000",
            "EMBEDDING_CACHE_BYTES": str(2**22),  # small enough to cause evictions
            "OMP_NUM_THREADS": "1",
        }
        process = psutil.Process(stack.enter_context(backend_with(environment)).pid)
        store = VersionStore(folder / "models", PRESET)
        traffic = Traffic(f"http://127.0.0.1:{port}", label_studio, tally)
        pool = stack.enter_context(ThreadPoolExecutor(CLIENTS))
        with ThreadPoolExecutor(BURST) as burst:
            list(burst.map(traffic.phrase, range(BURST)))
        clients = [pool.submit(traffic.run, seed, stop) for seed in range(CLIENTS)]
        since_s = time.monotonic()
        versions: list[str] = []

        def learn() -> None:
            versions.append(finetune_and_promote(store, folder / "run", steps=max(5, int(minutes * 4))))

        learner: Thread | None = None
        while (at_s := time.monotonic() - since_s) < minutes * 60:
            samples.take(process, at_s)
            if learner is None and at_s > minutes * 30:
                learner = Thread(target=learn)
                learner.start()
            time.sleep(SAMPLE_S)
        stop.set()
        for client in clients:
            client.result()
        if learner is not None:
            learner.join()
        promoted = versions[0] if versions else ""
    return samples, tally, promoted


def plot(samples: Samples, path: Path) -> None:
    """Draws the three curves."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(3, 1, figsize=(8, 6), sharex=True, layout="constrained")
    minutes = np.array(samples.at_s) / 60
    for axis, (name, unit) in zip(axes, UNITS.items(), strict=True):
        axis.plot(minutes, getattr(samples, name), linewidth=1)
        axis.axvline(minutes[-1] * WARM_UP, color="grey", linestyle=":", linewidth=1)
        axis.axvline(minutes[-1] / 2, color="grey", linestyle="--", linewidth=1)
        axis.set_ylabel(f"{name} ({unit})" if unit else name)
        axis.set_ylim(0, 1.2 * max(getattr(samples, name)))
    axes[-1].set_xlabel("minutes; dotted: end of warm-up, dashed: start of the fine-tune")
    figure.savefig(path, dpi=110)


def main() -> int:
    """Prints the results; exits with 1 if they are not acceptable."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--minutes", type=float, default=float(os.environ.get("SOAK_MINUTES", "30")))
    parser.add_argument("--plot", type=Path, default=PICTURE, help="file for the curves")
    options = parser.parse_args()
    samples, tally, promoted = soak(options.minutes)
    plot(samples, options.plot)
    print(f"{sum(tally.kinds.values())} requests in {options.minutes:g} minutes: {dict(tally.kinds)}")
    print(f"median {np.median(tally.seconds):.3f} s, 99 % {np.quantile(tally.seconds, 0.99):.3f} s")
    print(f"answered by: {dict(tally.versions)}; promoted halfway: {promoted or 'nothing'}")
    print(f"unexpected: {len(tally.unexpected)}")
    for line in tally.unexpected[:10]:
        print(f"  {line}")
    judged = options.minutes >= JUDGED_MINUTES
    good = not tally.unexpected and tally.versions[promoted] > 0
    for name, unit in UNITS.items():
        slope, error = samples.slope(name)
        flat = slope - error <= MOST_PER_HOUR[name]
        good &= flat or not judged
        verdict = "" if flat else ": it grows" if judged else ": the run was too short for a verdict"
        print(f"{name}: {slope:+.2f} ± {error:.2f} {unit} per hour{verdict}")
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main())
