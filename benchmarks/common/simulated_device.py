"""A device, a Label Studio and images that only take time: what is left is the worker's own work.

`prelabel_chunk` is a job: it is run by real workers from a real queue.
"""

from __future__ import annotations

import json
import os
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from threading import Lock
from typing import Any, cast

import numpy as np
from redis import Redis

from backend.assistant.assistant import Assistant
from backend.images.store import ImageStore, UInt8Image
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.metrics import Metrics
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.engine import Engine
from backend.state.redis_store import RedisStore
from sspsam import Referent, VersionStore
from sspsam.results import Question
from tests.backend.colours import ColourPredictor, Pixels, as_referent
from worker.projects.chunks import ChunkProgress, ChunkReport, TaskClaims
from worker.projects.prelabel import PhraseSource, Prelabeler

PROJECT = 1
PHRASES = ("the red square", "the blue square")
DONE_KEY, WORKERS_KEY = "benchmark:done", "benchmark:workers"
"""Hashes: task -> number of predictions; process -> number of tasks."""


@dataclass(frozen=True)
class Times:
    """Seconds."""

    picture: float = 0.020
    """Of the device, for each picture of a batch."""
    phrase: float = 0.005
    """Of the device, for each phrase of a batch."""
    request: float = 0.010
    """Of Label Studio, for a task; posting predictions takes five times that."""
    download: float = 0.020
    decoding: float = 0.015

    def divided_by(self, speed: float) -> Times:
        values = (self.picture, self.phrase, self.request, self.download, self.decoding)
        return Times(*(value / speed for value in values))


class SimulatedDevice(ColourPredictor):
    """Takes time for pictures and phrases, one batch after the other, as a GPU and its queue do."""

    def __init__(self, times: Times) -> None:
        super().__init__()
        self.times, self.busy_s = times, 0.0
        self.batches_of_pictures: list[int] = []
        self.first_s, self.last_s = 0.0, 0.0
        self._lock = Lock()
        mask = np.zeros((480, 640), np.bool_)
        mask[100:300, 200:400] = True
        self._mask, self._picture = mask, np.zeros((8, 8, 3), np.uint8)

    def encode(self, images: Sequence[UInt8Image]) -> list[Pixels]:
        self._take(self.times.picture * len(images))
        self.batches_of_pictures.append(len(images))
        return [Pixels(self._picture) for _ in images]

    def decode(self, questions: Sequence[Question], models: Sequence[Any] | None = None) -> list[Referent]:
        self._take(self.times.phrase * len(questions))
        return [as_referent(question.phrase, self._mask) for question in questions]

    def start_measuring(self) -> None:
        self.busy_s, self.first_s, self.last_s = 0.0, 0.0, 0.0
        self.batches_of_pictures.clear()

    @property
    def busy(self) -> float:
        """Share of the time from the first batch to the end of the last."""
        return self.busy_s / (self.last_s - self.first_s)

    def _take(self, time_s: float) -> None:
        """Waits for the end of a batch, which begins when what came before it is done."""
        with self._lock:
            now_s = time.perf_counter()
            self.first_s = self.first_s or now_s
            self.last_s = max(now_s, self.last_s) + time_s
            self.busy_s += time_s
            end_s = self.last_s
        time.sleep(end_s - now_s)


class SimulatedImages:
    """Downloads and decodes images: `backend.images.store.ImageStore`, as far as the assistant uses it."""

    def __init__(self, times: Times) -> None:
        self._times, self._picture = times, np.zeros((8, 8, 3), np.uint8)

    def digest(self, value: object, task_id: str = "") -> str:
        time.sleep(self._times.download)
        return str(value)

    def decode(self, digest: str) -> UInt8Image:
        time.sleep(self._times.decoding)
        return self._picture


class SimulatedLabelStudio:
    """A project whose predictions are counted in Redis: `LabelStudioClient`, as far as it is used."""

    url = "http://label-studio.invalid"

    def __init__(self, redis: Redis, times: Times) -> None:
        self._redis, self._times = redis, times

    def project(self, project: int) -> dict[str, Any]:
        return {"id": project, "label_config": RECOMMENDED_CONFIG}

    def task(self, task: int) -> dict[str, Any]:
        time.sleep(self._times.request)
        return {"id": task, "project": PROJECT, "data": {"image": f"picture {task}"}, "predictions": []}

    def import_predictions(self, project: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        time.sleep(5 * self._times.request)
        json.dumps(predictions)
        pipeline = self._redis.pipeline()
        for prediction in predictions:
            pipeline.hincrby(DONE_KEY, str(prediction["task"]), 1)
        pipeline.hincrby(WORKERS_KEY, str(os.getppid()), len(predictions))
        pipeline.execute()

    def update_project(self, project: int, **fields: Any) -> None:
        """Nothing looks at it."""


@contextmanager
def prelabeler(
    redis: Redis, device: SimulatedDevice, run: str, chunk: str, phrases: Sequence[str] = PHRASES
) -> Iterator[Prelabeler]:
    """The worker's own code for a chunk, on a simulated device."""
    client = cast(LabelStudioClient, SimulatedLabelStudio(redis, device.times))
    images = cast(ImageStore, SimulatedImages(device.times))
    with tempfile.TemporaryDirectory(prefix="sspsam-") as folder:
        engine = Engine(lambda: device, VersionStore(Path(folder), "ssp-sam-test"), EmbeddingCache(10**8))
        engine.start()
        engine.wait(60)
        device.start_measuring()
        try:
            assistant = Assistant(engine, images, RedisStore(redis), Metrics(), 100.0, client)
            source = PhraseSource("phrases", tuple(phrases))
            yield Prelabeler(client, assistant, PROJECT, source, TaskClaims(redis, run, chunk).take)
        finally:
            engine.stop()


def prelabel_chunk(redis_url: str, speed: float, run: str, chunk: str, task_ids: list[int]) -> None:
    """`worker.jobs.prelabel_chunk` with a device that is some times as fast."""
    redis, report = Redis.from_url(redis_url), ChunkReport()
    device = SimulatedDevice(Times().divided_by(speed))
    with prelabeler(redis, device, run, chunk, PHRASES[:1]) as own:
        for report in own.run(task_ids):
            ChunkProgress(redis, run).note(chunk, report)
