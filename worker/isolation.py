"""One bad value stops only itself: the loops of the worker over projects, tasks and annotations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from redis import RedisError
from rq.timeouts import BaseTimeoutException

from backend.errors import LabelStudioUnavailable, ModelUnavailableError
from backend.state.skipped_items import SkippedItems, reason_of

CONCERN_ALL: tuple[type[Exception], ...] = (
    RedisError,
    LabelStudioUnavailable,
    ModelUnavailableError,
    BaseTimeoutException,
    MemoryError,
)
"""Errors after which the next item would fail as well."""


@dataclass
class Outcome:
    """Of the work on one item."""

    reason: str = ""
    """Why the item was left out; empty if it was not."""


@contextmanager
def left_out(
    skipped: SkippedItems,
    project: int | str,
    work: str,
    item: str,
    passes: tuple[type[Exception], ...] = (),
) -> Iterator[Outcome]:
    """Runs the block for one item. An error in it is recorded, and what follows the block goes on.

    Args:
        skipped: Receives the item and the reason.
        project: Project of the item.
        work: What is done to the item.
        item: For people, such as "task 7".
        passes: Further errors that are raised.

    Raises:
        RedisError, LabelStudioUnavailable, ModelUnavailableError, MemoryError: the next item would fail too.
    """
    outcome = Outcome()
    try:
        yield outcome
    except CONCERN_ALL + passes:
        raise
    except Exception as error:
        outcome.reason = reason_of(error)
        skipped.note(project, work, item, error)
