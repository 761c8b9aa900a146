"""Services shared by jobs and commands: built from the settings on first use."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cached_property
from typing import Any

from redis import Redis

from backend.corrections import CorrectionLog
from backend.images.store import ImageStore
from backend.labelstudio.client import LabelStudioClient
from backend.service import image_store, label_studio_client, version_store
from backend.settings import Settings
from backend.shared_redis import SERVED_KEY, connect
from backend.state.known_projects import is_project_id
from backend.state.redis_store import KEPT_S, RedisStore
from backend.state.skipped_items import SkippedItems
from sspsam import VersionStore
from sspsam.version_store.lines import SHARED_LINE
from worker.lines import Line
from worker.records import Collection, ServedMask, collected_projects


class Services:
    """Dependencies of jobs, created on first use."""

    def __init__(self, settings: Settings) -> None:
        self.settings = settings

    @cached_property
    def redis(self) -> Redis:
        return connect(self.settings.redis_url)

    @cached_property
    def label_studio(self) -> LabelStudioClient:
        return label_studio_client(self.settings)

    @cached_property
    def images(self) -> ImageStore:
        return image_store(self.settings, self.label_studio)

    @cached_property
    def store(self) -> VersionStore:
        return version_store(self.settings)

    def collection(self, project: int) -> Collection:
        return Collection(self.settings.model_dir, project)

    @cached_property
    def redis_store(self) -> RedisStore:
        return RedisStore(self.redis)

    @cached_property
    def corrections(self) -> CorrectionLog:
        return CorrectionLog(self.redis)

    @cached_property
    def skipped(self) -> SkippedItems:
        return SkippedItems(self.redis)

    def served(self, region_id: str, submitted: Callable[[], Mapping[str, Any]] = dict) -> ServedMask | None:
        """The mask served under a region id, and when, computed from the log entry's remaining lifetime.

        Args:
            region_id: ID of the region.
            submitted: Returns the mask that was submitted in it. Of several that were served, to several
                annotators, it is the one that was accepted if it equals one of them; else the latest counts.
        """
        proposals = self.redis_store.proposals(region_id)
        if not proposals:
            return None
        served = proposals[0]
        if len(proposals) > 1:
            rle = dict(submitted())
            served = next((each for each in proposals if dict(each.rle) == rle), served)
        left_s = int(self.redis.ttl(SERVED_KEY.format(region=region_id)))
        served_at = datetime.now(UTC) - timedelta(seconds=KEPT_S - left_s)
        return ServedMask(served.rle, served.version, served_at, served.phrase, served.answer)

    def known_projects(self) -> list[int]:
        """The projects registered with the backend and those with collected annotations."""
        told = [
            int(project.project_id)
            for project in self.redis_store.projects.all()
            if is_project_id(project.project_id)
        ]
        return sorted({*told, *collected_projects(self.settings.model_dir)})

    def line(self, project: int) -> Line:
        """The line of versions that serves a project."""
        state = self.store.state()
        name = state.line_of(project)
        if name == SHARED_LINE:
            return Line(name, tuple(sorted({project, *self.known_projects()})))
        return Line(name, tuple(sorted(state.groups.get(name, (project,)))))

    def image_hw(self, value: object, task_id: str = "") -> tuple[int, int]:
        """Fetches the image of a task and returns its (H, W).

        Args:
            value: Image reference in the task's data.
            task_id: Id of the task, with which Label Studio resolves its storages.

        Raises:
            ImageError: the image cannot be fetched or read.
        """
        height, width = self.images.decode(self.images.digest(value, task_id)).shape[:2]
        return height, width
