"""Embeds images before their tasks are opened; the backend then finds the embeddings on disk."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from typing import Any

from redis import Redis

from backend.errors import ImageError, LabelStudioNotFound
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.queries import Task
from backend.serving.engine import Engine
from backend.settings import Settings
from backend.shared_redis import PREFETCHED_KEY
from worker.projects.prelabel import ChunkReport

PREFETCHED_TTL_S = 24 * 3600
"""Expiry of the record after its last change: embedding files may have been evicted by then."""

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

    def missing(self, tasks: Iterable[Json], config: LabelingConfig) -> list[int]:
        """Ids of the tasks whose image is not recorded as embedded."""
        noted: dict[bytes, bytes] = self._redis.hgetall(self._key)  # type: ignore[assignment]
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

    def _mark(self, data: Any, config: LabelingConfig) -> str:
        content = f"{self._model} {_address(data, config)}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Prefetcher:
    """Embeds the images of tasks.

    Args:
        client: Label Studio client.
        images: Fetches images.
        engine: Embeds images and stores the embeddings on disk.
        prefetched: Records the embedded tasks.
        project: Project of the tasks.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        images: ImageStore,
        engine: Engine,
        prefetched: Prefetched,
        project: int,
    ) -> None:
        self._client = client
        self._images = images
        self._engine = engine
        self._prefetched = prefetched
        self._project = project

    def run(self, task_ids: Sequence[int]) -> Iterator[ChunkReport]:
        """Processes the tasks; yields the report so far after each. Images already on disk are skipped.

        Raises:
            LabelStudioError: it does not respond.
            LabelingConfigError: the labeling config has no image.
        """
        config = LabelingConfig.parse(self._client.project(self._project)["label_config"])
        config.require("image")
        report = ChunkReport()
        for number in task_ids:
            report.tasks += 1
            try:
                task = Task.parse(self._client.task(number))
            except LabelStudioNotFound:
                report.skipped += 1  # deleted meanwhile
                continue
            try:
                report.skipped += self._embed(task, config) != "encoder"
                self._prefetched.note(task, config)
            except ImageError as error:
                report.problems[task.task_id] = str(error)
            yield report
        yield report

    def _embed(self, task: Task, config: LabelingConfig) -> str:
        digest = self._images.digest(_address(task.data, config), task.task_id)
        return self._engine.embed(digest, partial(self._images.decode, digest))


def _address(data: Any, config: LabelingConfig) -> Any:
    """The image reference in a task's data."""
    return data.get(config.image.value) if config.image is not None else None
