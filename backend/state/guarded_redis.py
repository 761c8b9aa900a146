"""Redis as a cache: if it is unavailable, a warning is logged once a minute and the caller continues."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any, TypeVar

from redis import Redis, RedisError

_COMPLAIN_EVERY_S = 60.0
_PAUSE_S = 5.0
"""Pause after a Redis failure: each attempt may take seconds, while an annotator waits."""

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
"""What reading a value of another format raises."""

Value = TypeVar("Value")

logger = logging.getLogger(__name__)


class GuardedRedis:
    """Never raises Redis errors.

    Args:
        redis: Connected lazily.
    """

    def __init__(self, redis: Redis) -> None:
        self.redis = redis
        self._complained_s = -_COMPLAIN_EVERY_S
        self._failed_s = -_PAUSE_S

    def alive(self) -> bool:
        """Whether Redis responds now."""
        self._failed_s = -_PAUSE_S
        return self.attempt(lambda: bool(self.redis.ping()), False)

    def json(self, key: str) -> dict[str, Any]:
        """Returns the JSON object at a key; {} if there is none."""
        value = self.attempt(lambda: self.redis.get(key), None)
        found: Any = parsed(partial(json.loads, value)) if value else {}
        return found if isinstance(found, dict) else {}

    def attempt(self, action: Callable[[], Any], otherwise: Value) -> Value:
        """Runs commands; returns `otherwise` if Redis does not respond, or did not a moment ago."""
        if time.monotonic() - self._failed_s < _PAUSE_S:
            return otherwise
        try:
            result: Value = action()
            return result
        except RedisError as error:
            self._failed_s = time.monotonic()
            if time.monotonic() - self._complained_s > _COMPLAIN_EVERY_S:
                self._complained_s = time.monotonic()
                logger.warning("Redis does not respond (%s): continuing without it", type(error).__name__)
            return otherwise


def parsed(parse: Callable[[], Value]) -> Value | None:
    """Reads a value from Redis; None if it is not in our format, so that it spoils no other."""
    try:
        return parse()
    except UNREADABLE as error:
        logger.warning("a value in Redis is ignored: %s", type(error).__name__)
        return None


def text_map(values: Mapping[Any, Any]) -> dict[str, str]:
    return {text_of(name): text_of(value) for name, value in values.items()}


def text_of(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
