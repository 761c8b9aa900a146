"""Projects that were deleted in Label Studio.

Their records and exports go at once, their versions with the next prune.
"""

from __future__ import annotations

import logging
import shutil

from backend.errors import LabelStudioNotFound
from backend.shared_redis import (
    COLLECTED_KEY,
    CORRECTION_DAYS_KEY,
    CORRECTIONS_KEY,
    LAST_WEBHOOK_KEY,
    PREFETCH_FAILED_KEY,
    PREFETCHED_KEY,
    PROBLEMS_KEY,
    PROJECTS_KEY,
    RECONCILED_KEY,
    SKIPPED_KEY,
    SUBMITTED_KEY,
)
from backend.worker_requests import EXPORTS
from sspsam.version_store import sharing
from sspsam.version_store.store import VersionError
from worker.corrections import collector
from worker.services import Services

KEYS = (
    COLLECTED_KEY,
    CORRECTION_DAYS_KEY,
    CORRECTIONS_KEY,
    PREFETCH_FAILED_KEY,
    PREFETCHED_KEY,
    PROBLEMS_KEY,
    RECONCILED_KEY,
    SKIPPED_KEY,
    SUBMITTED_KEY,
)
"""Of a project."""

logger = logging.getLogger(__name__)


def drop_if_deleted(services: Services, project: int) -> int | None:
    """Removes what was collected of a project that Label Studio no longer has, and retires its line.

    That the project is not found may be due to a wrong address: Label Studio's list must lack it, too.

    Returns:
        The number of annotations that had been collected; None if the project was not deleted.

    Raises:
        LabelStudioError: Label Studio cannot be asked.
        VersionError, OSError: the version store cannot be changed; the next reconciliation tries again.
    """
    try:
        if project in {int(listed["id"]) for listed in services.label_studio.projects()}:
            return None
    except LabelStudioNotFound:
        return None
    sharing.retire(services.store, project)
    collection = services.collection(project)
    forgotten = collector.forget(services, project, collection.annotations())
    shutil.rmtree(collection.folder, ignore_errors=True)
    shutil.rmtree(services.settings.model_dir / EXPORTS / str(project), ignore_errors=True)
    services.redis.delete(*(key.format(project=project) for key in KEYS))
    for key in (PROJECTS_KEY, LAST_WEBHOOK_KEY):
        services.redis.hdel(key, str(project))
    logger.info("project %d was deleted in Label Studio: %d annotations forgotten", project, forgotten)
    return forgotten


def note_existing(services: Services, project: int) -> None:
    """Keeps the versions of a project that was taken for deleted, as while its server was replaced."""
    try:
        sharing.restore(services.store, project)
    except (VersionError, OSError) as error:
        logger.warning("project %d: %s", project, error)
