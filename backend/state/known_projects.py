"""Projects that Label Studio has reported, in Redis."""

from __future__ import annotations

import json
import logging
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any

from backend.labelstudio.form_xml import MAX_CHARACTERS
from backend.shared_redis import LAST_WEBHOOK_KEY, PROJECTS_KEY
from backend.state.guarded_redis import GuardedRedis, parsed, text_of

MOST_PROJECTS = 2000
"""Projects that are known; further ones are not stored before others are deleted."""
PROJECT_ID_DIGITS = 18

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class KnownProject:
    """A project connected to this backend, as last reported by Label Studio."""

    project_id: str
    label_config: str = ""
    title: str = ""
    extra_params: Any = field(default=None)
    """Text entered at connecting: plain text or JSON."""
    seen_at: str = ""
    """ISO 8601, UTC."""


def is_project_id(text: str) -> bool:
    """Whether a text can be a project's ID in Label Studio."""
    return text.isascii() and text.isdecimal() and len(text) <= PROJECT_ID_DIGITS


class KnownProjects:
    """Reads and writes the projects. Never raises Redis errors."""

    def __init__(self, guarded: GuardedRedis) -> None:
        self._guarded, self._redis = guarded, guarded.redis

    def note(self, project: KnownProject) -> KnownProject | None:
        """Stores a project; an empty title keeps the known one.

        Returns:
            The previous record.
        """
        if not is_project_id(project.project_id):
            logger.warning("%.40r is not the ID of a project", project.project_id)
            return None
        known = self.get(project.project_id)
        values = asdict(project)
        values["label_config"] = project.label_config[: MAX_CHARACTERS + 1]  # one more is refused as too long
        if known is not None:
            values["title"] = project.title or known.title
            if project.extra_params is None:
                values["extra_params"] = known.extra_params
        self._put(PROJECTS_KEY, project.project_id, json.dumps(values))
        return known

    def _put(self, key: str, project_id: str, value: str) -> None:
        """Stores a value of a project, unless that would be one project too many."""

        def put() -> bool:
            is_new = bool(self._redis.hset(key, project_id, value))
            if is_new and int(self._redis.hlen(key)) > MOST_PROJECTS:
                self._redis.hdel(key, project_id)
                return False
            return True

        if not self._guarded.attempt(put, True):
            logger.warning("project %s is not stored: there are %d others", project_id, MOST_PROJECTS)

    def note_title(self, project_id: str, title: str) -> None:
        """Stores the title of a known project, which only its webhook contains."""
        known = self.get(project_id)
        if known is not None and title not in ("", known.title):
            self.note(replace(known, title=title))

    def get(self, project_id: str) -> KnownProject | None:
        return self._guarded.attempt(lambda: _project(self._redis.hget(PROJECTS_KEY, project_id)), None)

    def all(self) -> list[KnownProject]:
        """Returns the known projects, most recently seen first."""
        nothing: list[KnownProject | None] = []
        found = self._guarded.attempt(
            lambda: [_project(value) for value in self._redis.hvals(PROJECTS_KEY)], nothing
        )
        known = [project for project in found if project is not None and is_project_id(project.project_id)]
        return sorted(known, key=lambda project: project.seen_at, reverse=True)

    def set_last_webhook_time(self, project_id: str) -> None:
        """Records that a project's webhook has arrived."""
        if not is_project_id(project_id):
            return
        self._put(LAST_WEBHOOK_KEY, project_id, datetime.now(UTC).isoformat())

    def get_last_webhook_time(self, project_id: str) -> str:
        """Returns the time of a project's last webhook, ISO 8601; empty if there was none."""
        value = self._guarded.attempt(lambda: self._redis.hget(LAST_WEBHOOK_KEY, project_id), None)
        return "" if value is None else text_of(value)


def _project(value: Any) -> KnownProject | None:
    if value is None:
        return None
    values = parsed(partial(json.loads, value))
    if not isinstance(values, dict) or not isinstance(values.get("project_id"), str):
        return None
    texts = {entry.name: str(values.get(entry.name) or "") for entry in fields(KnownProject)}
    return replace(KnownProject(**texts), extra_params=values.get("extra_params"))
