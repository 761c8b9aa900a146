"""Embeds images before their tasks are opened; the backend then finds the embeddings on disk."""

from __future__ import annotations

import hashlib
import json
import logging
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

from redis import Redis

from backend.errors import LabelStudioNotFound
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.queries import Task
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from backend.settings import Settings
from backend.shared_redis import PREFETCH_FAILED_KEY, PREFETCHED_KEY
from backend.state.skipped_items import SkippedItems
from worker.isolation import Outcome, left_out
from worker.projects.batch_jobs import enqueue_once
from worker.projects.chunks import ChunkReport, in_parallel
from worker.queueing.queues import prelabel_queue
from worker.services import Services

PREFETCHED_TTL_S = 24 * 3600
"""Expiry of the record after its last change: embedding files may have been evicted by then."""

PREFETCH = "prefetch"
"""Kind of work under which images that could not be embedded are recorded."""
FIRST_DELAY_S = 120
LONGEST_DELAY_S = 24 * 3600
"""Delays of further attempts at an image that could not be embedded."""

Json = dict[str, Any]
logger = logging.getLogger(__name__)


class Prefetched:
    """Records in Redis which tasks' images are embedded, so that they need not be fetched to find out.

    Args:
        redis: The Redis shared by all workers.
        settings: Select the embedding model.
        project: Project of the tasks.
    """

    def __init__(self, redis: Redis, settings: Settings, project: int) -> None:
        self._redis = redis
        self._model = f"{settings.preset} {settings.weights}"
        self._key = PREFETCHED_KEY.format(project=project)
        self._failed_key = PREFETCH_FAILED_KEY.format(project=project)

    def missing(self, tasks: Iterable[Json], config: LabelingConfig) -> list[int]:
        """Ids of the tasks whose image is not recorded as embedded."""
        noted = cast("dict[bytes, bytes]", self._redis.hgetall(self._key))
        known = {key.decode(): mark.decode() for key, mark in noted.items()}
        return [
            int(task["id"])
            for task in tasks
            if known.get(str(task["id"])) != self._mark(task["data"], config)
        ]

    def note(self, task: Task, config: LabelingConfig) -> None:
        """Records that a task's image is embedded."""
        self._redis.hset(self._key, task.task_id, self._mark(task.data, config))
        self._redis.expire(self._key, PREFETCHED_TTL_S)
        self._redis.hdel(self._failed_key, task.task_id)

    def note_failure(self, task_id: int, now_s: float) -> None:
        """Records a failed attempt: the next one is made after twice the delay, at most after a day."""
        attempts = self._failures().get(task_id, (0, 0.0))[0] + 1
        delay_s = min(FIRST_DELAY_S * 2 ** min(attempts - 1, 20), LONGEST_DELAY_S)
        self._redis.hset(self._failed_key, str(task_id), json.dumps([attempts, now_s + delay_s]))
        self._redis.expire(self._failed_key, 2 * LONGEST_DELAY_S)

    def due(self, task_ids: Iterable[int], now_s: float) -> list[int]:
        """Those of the tasks that have not failed recently."""
        failures = self._failures()
        return [
            number
            for number in task_ids
            if not now_s < failures.get(number, (0, 0.0))[1] <= now_s + LONGEST_DELAY_S
        ]

    def _failures(self) -> dict[int, tuple[int, float]]:
        """By task: the number of attempts, and the earliest time of the next."""
        found = {}
        for task, value in self._redis.hgetall(self._failed_key).items():
            with suppress(ValueError, TypeError):  # not in our format
                attempts, next_s = json.loads(value)
                found[int(task)] = (int(attempts), float(next_s))
        return found

    def _mark(self, data: Any, config: LabelingConfig) -> str:
        content = f"{self._model} {_address(data, config)}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


@dataclass(frozen=True)
class FetchedImage:
    """The image of a task, on this machine."""

    task: Task
    digest: str


class Prefetcher:
    """Embeds the images of tasks: first fetches them, then loads the model if one could be read.

    Args:
        client: Label Studio client.
        images: Fetches images.
        prefetched: Records the embedded tasks.
        skipped: Records the tasks whose image cannot be embedded.
        project: Project of the tasks.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        images: ImageStore,
        prefetched: Prefetched,
        skipped: SkippedItems,
        project: int,
    ) -> None:
        self._client = client
        self._images = images
        self._prefetched = prefetched
        self._skipped = skipped
        self._project = project

    def run(
        self, task_ids: Sequence[int], model: Callable[[], AbstractContextManager[Engine]]
    ) -> Iterator[ChunkReport]:
        """Processes the tasks; yields the report so far after each. Images already on disk are skipped.

        Args:
            task_ids: The tasks.
            model: Loads the model that embeds images and stores the embeddings on disk.

        Raises:
            LabelStudioError: it does not respond.
            LabelingConfigError: the labeling config has no image.
        """
        config = LabelingConfig.parse(self._client.project(self._project)["label_config"])
        config.require("image")
        report, fetched = ChunkReport(), list[FetchedImage]()
        for _, future in in_parallel(partial(self._fetch, config), task_ids):
            done = future.result()
            if isinstance(done, FetchedImage):
                fetched.append(done)
            else:
                report.add(done)
        yield report
        if not fetched:
            return
        for image in fetched:  # a process that is killed while it embeds leaves this behind
            self._prefetched.note_failure(int(image.task.task_id), time.time())
        with model() as engine:
            for _, embedded in in_parallel(partial(self._embed, engine, config), fetched):
                report.add(embedded.result())
                yield report

    def _fetch(self, config: LabelingConfig, number: int) -> FetchedImage | ChunkReport:
        """Downloads and decodes an image, in one of several threads.

        Returns:
            The image; what to report if that fails, or the task has been deleted.
        """
        try:
            with self._left_out(str(number)) as outcome:
                task = Task.parse(self._client.task(number))
                digest = self._images.digest(_address(task.data, config), task.task_id)
                self._images.decode(digest)
                return FetchedImage(task, digest)
            self._prefetched.note_failure(number, time.time())
            return ChunkReport(1, problems={str(number): outcome.reason})
        except LabelStudioNotFound:
            return ChunkReport(1, skipped=1)

    def _embed(self, engine: Engine, config: LabelingConfig, image: FetchedImage) -> ChunkReport:
        """Stores an image's embedding, in one of several threads: the engine encodes some together."""
        report, task = ChunkReport(1), image.task
        with self._left_out(task.task_id) as outcome:
            caller = Caller(f"task {task.task_id}", project=str(self._project))
            source = engine.embed(image.digest, partial(self._images.decode, image.digest), caller)
            report.skipped += source != "encoder"
            self._prefetched.note(task, config)
            self._skipped.clear(self._project, PREFETCH, [f"task {task.task_id}"])
        if outcome.reason:
            report.problems[task.task_id] = outcome.reason
        return report

    def _left_out(self, number: str) -> AbstractContextManager[Outcome]:
        item = f"task {number}"
        return left_out(self._skipped, self._project, PREFETCH, item, passes=(LabelStudioNotFound,))


def _address(data: Any, config: LabelingConfig) -> Any:
    """The image reference in a task's data."""
    return config.image.of(data) if config.image is not None else None


def queue_next_tasks(services: Services, project: int) -> list[int]:
    """Queues a project's next tasks that are not embedded yet; returns their ids."""
    config = LabelingConfig.parse(services.label_studio.project(project)["label_config"])
    config.require("image")
    tasks = services.label_studio.next_tasks(project, services.settings.prefetch_tasks)
    prefetched = Prefetched(services.redis, services.settings, project)
    missing = prefetched.due(prefetched.missing(tasks, config), time.time())
    run, chunk = f"prefetch-{project}", "next"
    kwargs = {"project_id": project, "run": run, "chunk": chunk, "task_ids": missing}
    services.skipped.clear(project, PREFETCH, ["project"])
    if missing:
        queue = prelabel_queue(services.redis)
        enqueue_once(queue, "worker.jobs.prefetch_chunk", f"{run}-{chunk}", kwargs, at_front=True)
    return missing
