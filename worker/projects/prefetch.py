"""Pictures embedded before anybody opens their task: the backend then finds the embedding on disk."""

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
"""After so long without another one, pictures are looked at again: their files may have had to go."""

Json = dict[str, Any]
logger = logging.getLogger(__name__)


class Prefetched:
    """Which tasks' pictures have been embedded, in Redis: so that nobody fetches them to find out.

    Args:
        redis: That all workers share.
        settings: Which model embeds.
        project: Of the tasks.
    """

    def __init__(self, redis: Redis, settings: Settings, project: int) -> None:
        self._redis = redis
        self._model = f"{settings.preset} {settings.weights}"
        self._key = PREFETCHED_KEY.format(project=project)

    def missing(self, tasks: Iterable[Json], config: LabelingConfig) -> list[int]:
        """Ids of the tasks whose picture nobody has noted."""
        noted: dict[bytes, bytes] = self._redis.hgetall(self._key)  # type: ignore[assignment]
        known = {key.decode(): mark.decode() for key, mark in noted.items()}
        return [
            int(task["id"])
            for task in tasks
            if known.get(str(task["id"])) != self._mark(task["data"], config)
        ]

    def note(self, task: Task, config: LabelingConfig) -> None:
        """Keeps that a task's picture is embedded."""
        self._redis.hset(self._key, task.task_id, self._mark(task.data, config))
        self._redis.expire(self._key, PREFETCHED_TTL_S)

    def _mark(self, data: Any, config: LabelingConfig) -> str:
        content = f"{self._model} {_address(data, config)}"
        return hashlib.sha256(content.encode()).hexdigest()[:16]


class Prefetcher:
    """Embeds the pictures of tasks.

    Args:
        client: To Label Studio.
        images: Fetches pictures.
        engine: Embeds them, and keeps what comes out on disk.
        prefetched: Where it is noted.
        project: Of the tasks.
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
        """Works on the tasks; yields the report so far after each. What was on disk already is skipped.

        Raises:
            LabelStudioError: it does not answer.
            LabelingConfigError: the form has no image.
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
    """What a task's data says about where its picture is."""
    return data.get(config.image.value) if config.image is not None else None
