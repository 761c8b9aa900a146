"""Items that background work has left out because of an error, in Redis: shown on the start page and counted.

The worker loops over projects, tasks and annotations of other people. An item that fails is left out, so that
it stops no other; what it is and why is kept here until it succeeds.
"""

from __future__ import annotations

import errno
import json
import logging
from collections.abc import Collection
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from typing import cast

from redis import Redis, RedisError

from backend.errors import BackendError
from backend.shared_redis import SKIPPED_COUNTS_KEY, SKIPPED_KEY

ITEMS_KEPT = 50
"""Per project; further ones are only counted."""
ITEM_CHARACTERS = 100
"""Of an item's name."""
MOST_DIGITS = 18
"""Of a count."""
ITEMS_S = 7 * 24 * 3600
"""Expiry of a project's items after the last one was added."""
REASON_CHARACTERS = 300

_OS_ERRORS = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EFBIG: "the limit of a file's size is reached",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "no permission to write or read",
    errno.EPERM: "no permission to write or read",
}
_TORCH_WRITER = "inline_container.cc"
"""PyTorch names the source of its writer of archives instead of the system's error."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class SkippedItem:
    """An item that was left out."""

    work: str
    """What was done: collect, decide, prefetch ..."""
    item: str
    """"annotation 12", "task 7"; "project" for all of it."""
    reason: str
    at: str
    """ISO 8601, UTC."""

    @property
    def number(self) -> int | None:
        """The number in `item`, if any."""
        last = self.item.rpartition(" ")[2]
        return int(last) if last.isascii() and last.isdigit() and len(last) < 19 else None


class SkippedItems:
    """Reads and writes them. Never raises Redis errors: work goes on without the record of a failure.

    Args:
        redis: Connected lazily.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def note(self, project: int | str, work: str, item: str, error: Exception | str) -> None:
        """Records an item and counts it."""
        reason, item = reason_of(error), item[:ITEM_CHARACTERS]
        logger.warning("project %s, %s, %s is left out: %s", project, work, item, reason)
        key, field = SKIPPED_KEY.format(project=project), f"{work}/{item}"
        value = json.dumps(asdict(SkippedItem(work, item, reason, datetime.now(UTC).isoformat())))
        try:
            self._redis.hincrby(SKIPPED_COUNTS_KEY, work, 1)
            if self._redis.hlen(key) < ITEMS_KEPT or self._redis.hexists(key, field):
                self._redis.hset(key, field, value)
                self._redis.expire(key, ITEMS_S)
        except RedisError as failure:
            logger.warning("Redis does not respond: %s", failure)

    def clear(self, project: int | str, work: str, items: Collection[str]) -> None:
        """Removes items that have succeeded."""
        if not items:
            return
        names = (f"{work}/{item[:ITEM_CHARACTERS]}" for item in items)
        try:
            self._redis.hdel(SKIPPED_KEY.format(project=project), *names)
        except RedisError as failure:
            logger.warning("Redis does not respond: %s", failure)

    def of(self, project: int | str) -> list[SkippedItem]:
        """Returns a project's items, the newest first; unreadable ones are left out."""
        try:
            values = cast("list[bytes]", self._redis.hvals(SKIPPED_KEY.format(project=project)))
        except RedisError as failure:
            logger.warning("Redis does not respond: %s", failure)
            return []
        found = [item for item in map(_parsed, values) if item is not None]
        return sorted(found, key=lambda item: item.at, reverse=True)

    def counts(self) -> dict[str, int]:
        """Returns how many items each kind of work has left out so far."""
        try:
            found = cast("dict[bytes, bytes]", self._redis.hgetall(SKIPPED_COUNTS_KEY))
        except RedisError as failure:
            logger.warning("Redis does not respond: %s", failure)
            return {}
        return {
            name.decode(errors="replace"): int(value)
            for name, value in found.items()
            if value.isdigit() and len(value) <= MOST_DIGITS
        }


def reason_of(error: Exception | str) -> str:
    """One line about an error, for people."""
    return " ".join(_text_of(error).split())[:REASON_CHARACTERS]


def _text_of(error: Exception | str) -> str:
    if isinstance(error, BackendError | str):
        return str(error)
    if isinstance(error, OSError) and error.errno in _OS_ERRORS:
        return f"{_OS_ERRORS[error.errno]}{f': {error.filename}' if error.filename else ''}"
    if isinstance(error, RuntimeError) and _TORCH_WRITER in str(error):
        return "the file of a checkpoint could not be written: the disk is probably full"
    return f"{type(error).__name__}: {error}"


def _parsed(value: bytes) -> SkippedItem | None:
    try:
        fields = json.loads(value)
        return SkippedItem(**{name: str(text) for name, text in fields.items()})
    except (ValueError, TypeError, AttributeError, RecursionError):
        return None
