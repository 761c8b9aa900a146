"""Tells annotators, once for each task, that the packaged weights do not know photographs."""

from __future__ import annotations

import logging

from backend.errors import BackendError
from backend.images.store import ImageStore
from backend.state.redis_store import RedisStore
from sspsam.images.photographs import is_photograph

NOTICE = (
    "This looks like a photograph, and the demo model knows stickers only. A model for photographs: "
    "sspsam up --model photographs."
)

logger = logging.getLogger(__name__)


class PhotographNotice:
    """The notice, where it applies.

    Args:
        images: Has the pictures.
        redis_store: Knows which tasks have been told.
        version: The version that does not know photographs; empty for none. Versions trained on a project's
            own labels are not warned of.
    """

    def __init__(self, images: ImageStore, redis_store: RedisStore, version: str) -> None:
        self._images = images
        self._redis_store = redis_store
        self._version = version

    def of(self, project: str, task: str, digest: str, version: str) -> str:
        """The notice for an answer; empty if there is none.

        Args:
            project: ID of the project.
            task: ID of the task.
            digest: Of its picture.
            version: The version that answers.
        """
        if version != self._version or not self._redis_store.is_first_answer(project, task):
            return ""
        try:
            picture = self._images.thumbnail(digest)
        except BackendError as error:
            logger.info("project %s, task %s: %s", project, task, error)
            return ""
        return NOTICE if picture is not None and is_photograph(picture) else ""
