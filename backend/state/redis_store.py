"""State in Redis: served and displayed masks, phrases that found nothing, errors, known projects.

Answers never depend on it: if Redis is unavailable, a warning is logged once a minute and the request
continues without it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from functools import partial
from typing import Any

from redis import Redis

from backend.labelstudio.predictions import ProposedRegion
from backend.labelstudio.prompt_text import phrase_key
from backend.logs import request_id
from backend.shared_redis import (
    ANSWERED_KEY,
    MESSAGE_SENT_KEY,
    NOTHING_FOUND_KEY,
    PROBLEMS_KEY,
    PROMPT_BOX_KEY,
    SERVED_KEY,
    SERVED_OF_KEY,
    SESSION_ENDED_KEY,
    SHOWN_KEY,
)
from backend.state.displayed_masks import DisplayedMask
from backend.state.guarded_redis import GuardedRedis, parsed, text_map, text_of
from backend.state.known_projects import KnownProjects
from backend.state.worker_state import WorkerState
from sspsam.images.masks import merge_coco_rles

KEPT_S = 30 * 24 * 3600
SHOWN_S = 24 * 3600
"""How long after the last answer on a task clicks can correct its masks."""
MOST_SHOWN = 200
"""Masks of a task that clicks can correct: the latest."""
PROBLEMS_S = 24 * 3600
"""How long after its last error a project's errors are shown."""
PROBLEMS_KEPT = 5
MOST_SERVED = 2000
"""Proposed masks of a task that are kept: the latest. Each phrase that is asked has one."""
PROPOSALS_KEPT = 4
"""Under one region ID, the latest: annotators of a task may be shown masks of different versions."""
PROBLEM_CHARACTERS = 1000
"""Of an error's reason."""
MOST_NOT_FOUND = 1000
"""Phrases of a task for which nothing was found."""
BOX_CHARACTERS = 2**18
"""Of a prompt box, as JSON; a larger one is not stored."""
Fields = dict[Any, Any]
"""Type of a hash's fields in redis-py."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Served:
    """A mask proposed to an annotator."""

    rle: dict[str, Any]
    """COCO RLE in the original frame."""
    version: str
    """Model version that proposed it."""
    phrase: str
    answer: dict[str, Any] | None = None
    """COCO RLE of the whole answer, if the mask is one object of several."""


@dataclass(frozen=True)
class WrittenBox:
    """A prompt box as last written by us."""

    result_id: str
    entries: list[str]
    """Phrases with their notes."""
    draft: str = ""
    """`Task.draft_version` when it was written: a later draft has it, or what came after it."""


@dataclass(frozen=True)
class Problem:
    """A request that failed."""

    at: str
    """ISO 8601, UTC."""
    task: str
    reason: str
    request_id: str
    """Request ID in the log."""


class RedisStore:
    """Reads and writes the state. Never raises Redis errors.

    Attributes:
        projects: The projects that Label Studio has reported.
        worker: What the worker reports.

    Args:
        redis: Connected lazily.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._guarded = GuardedRedis(redis)
        self.projects = KnownProjects(self._guarded)
        self.worker = WorkerState(self._guarded)

    def note_served(
        self,
        proposed: Sequence[tuple[ProposedRegion, Mapping[str, Any]]],
        version: str,
        project: str = "",
        task: str = "",
    ) -> None:
        """Stores proposed masks, to distinguish corrections from accepted masks.

        Args:
            proposed: Region IDs with masks as COCO RLE. Masks changed by clicks are corrections and do not
                belong here.
            version: Model version.
            project: Of the task.
            task: Of which the latest MOST_SERVED masks are kept.
        """
        listed = SERVED_OF_KEY.format(project=project, task=task)
        answers = _answers_of_several(proposed)

        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipeline:
                for region, _ in proposed:
                    pipeline.hgetall(SERVED_KEY.format(region=region.region_id))
                stored = [_proposals(text_map(values)) for values in pipeline.execute()]
                for (region, rle), before in zip(proposed, stored, strict=True):
                    key = SERVED_KEY.format(region=region.region_id)
                    answer = answers.get(phrase_key(region.phrase))
                    earlier = [asdict(mask) for mask in before if mask.rle != rle]
                    values: Fields = {
                        "rle": json.dumps(rle),
                        "version": version,
                        "phrase": region.phrase,
                        "answer": json.dumps(answer) if answer else "",
                        "earlier": json.dumps(earlier[: PROPOSALS_KEPT - 1]),
                    }
                    pipeline.hset(key, mapping=values)
                    pipeline.expire(key, KEPT_S)
                    pipeline.zadd(listed, {region.region_id: time.time()})
                if proposed:
                    pipeline.expire(listed, KEPT_S)
                pipeline.execute()
            surplus = self._redis.zrange(listed, 0, -MOST_SERVED - 1)
            if surplus:
                self._redis.delete(*(SERVED_KEY.format(region=text_of(number)) for number in surplus))
                self._redis.zrem(listed, *surplus)

        self._guarded.attempt(write, None)

    def served(self, region_id: str) -> Served | None:
        """Returns the mask last served under a region's ID."""
        return next(iter(self.proposals(region_id)), None)

    def proposals(self, region_id: str) -> list[Served]:
        """Returns the last masks served under a region's ID, the latest first: an annotator who accepts one
        may have been shown it before another annotator was shown the next.
        """
        nothing: dict[str, str] = {}
        return _proposals(
            self._guarded.attempt(
                lambda: text_map(self._redis.hgetall(SERVED_KEY.format(region=region_id))), nothing
            )
        )

    def note_nothing_found(
        self, project: str, task: str, nothing: Iterable[str], found: Iterable[str], version: str
    ) -> None:
        """Stores the phrases for which a version found nothing, and removes those that now have a mask."""
        key = NOTHING_FOUND_KEY.format(project=project, task=task)
        gone = [phrase_key(phrase) for phrase in found]
        come: Fields = {phrase_key(phrase): version for phrase in nothing}

        def write() -> None:
            if gone:
                self._redis.hdel(key, *gone)
            if come:
                self._redis.hset(key, mapping=come)
                self._redis.expire(key, KEPT_S)
                surplus = int(self._redis.hlen(key)) - MOST_NOT_FOUND
                if surplus > 0:
                    names = [name for name in self._redis.hkeys(key) if text_of(name) not in come]
                    self._redis.hdel(key, *names[:surplus], *list(come)[MOST_NOT_FOUND:])

        self._guarded.attempt(write, None)

    def nothing_found(self, project: str, task: str) -> dict[str, str]:
        """Returns the keys of phrases for which the model found nothing, with the version that was asked."""
        key = NOTHING_FOUND_KEY.format(project=project, task=task)
        nothing: dict[str, str] = {}
        return self._guarded.attempt(lambda: text_map(self._redis.hgetall(key)), nothing)

    def note_shown(self, project: str, task: str, masks: Iterable[DisplayedMask]) -> None:
        """Stores displayed masks for later clicks; replaces a region's earlier mask."""
        values: Fields = {f"{mask.region_id}/{mask.annotator}": json.dumps(mask.to_dict()) for mask in masks}
        if not values:
            return
        key = SHOWN_KEY.format(project=project, task=task)
        self._note(key, values)
        if self._guarded.attempt(lambda: int(self._redis.hlen(key)), 0) > 2 * MOST_SHOWN:
            self.shown(project, task)  # drops the oldest

    def shown(self, project: str, task: str) -> list[DisplayedMask]:
        """Returns the last displayed masks of a task, the latest last; drops the oldest of very many."""
        key = SHOWN_KEY.format(project=project, task=task)
        nothing: dict[bytes, bytes] = {}
        found = self._guarded.attempt(lambda: self._redis.hgetall(key), nothing)
        read = ((name, parsed(partial(_displayed_mask, value))) for name, value in found.items())
        masks = sorted(
            ((name, mask) for name, mask in read if mask is not None), key=lambda entry: entry[1].shown_s
        )
        surplus = [name for name, _ in masks[:-MOST_SHOWN]]
        if surplus:
            self._guarded.attempt(lambda: self._redis.hdel(key, *surplus), 0)
        return [mask for _, mask in masks[-MOST_SHOWN:]]

    def note_box(self, project: str, task: str, box: WrittenBox) -> None:
        """Stores the content of a task's prompt box, which click requests do not contain."""
        key = PROMPT_BOX_KEY.format(project=project, task=task)
        value = json.dumps({"id": box.result_id, "entries": box.entries, "draft": box.draft})
        if len(value) > BOX_CHARACTERS:  # what was stored before is not the content any more
            self._guarded.attempt(lambda: self._redis.delete(key), 0)
        else:
            self._guarded.attempt(lambda: self._redis.set(key, value, ex=SHOWN_S), None)

    def box(self, project: str, task: str) -> WrittenBox | None:
        """Returns a task's prompt box, as last written by us."""
        found = self._guarded.json(PROMPT_BOX_KEY.format(project=project, task=task))
        return parsed(lambda: _written_box(found)) if found else None

    def mark_message_sent(self, project: str, task: str) -> None:
        """Records that a task's form shows a message about a click."""
        self._guarded.attempt(
            lambda: self._redis.set(MESSAGE_SENT_KEY.format(project=project, task=task), 1, ex=SHOWN_S), None
        )

    def pop_message_sent(self, project: str, task: str) -> bool:
        """Returns whether the form shows a message about a click, and clears the record."""
        return self._guarded.attempt(
            lambda: bool(self._redis.delete(MESSAGE_SENT_KEY.format(project=project, task=task))), False
        )

    def is_first_answer(self, project: str, task: str) -> bool:
        """Whether this is the first call for a task; false if Redis does not respond."""
        key = ANSWERED_KEY.format(project=project, task=task)
        return self._guarded.attempt(lambda: bool(self._redis.set(key, 1, ex=SHOWN_S, nx=True)), False)

    def note_problem(self, project: str, task: str, reason: str) -> None:
        """Records an error on a task, for the project lead."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        value = json.dumps(asdict(Problem(at, task, reason[:PROBLEM_CHARACTERS], request_id.get())))
        key = PROBLEMS_KEY.format(project=project)

        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.lpush(key, value)
                pipeline.ltrim(key, 0, PROBLEMS_KEPT - 1)
                pipeline.expire(key, PROBLEMS_S)
                pipeline.execute()

        self._guarded.attempt(write, None)

    def problems(self, project: str) -> list[Problem]:
        """Returns recent errors, newest first."""
        nothing: list[bytes] = []
        found = self._guarded.attempt(
            lambda: self._redis.lrange(PROBLEMS_KEY.format(project=project), 0, -1), nothing
        )
        problems = (parsed(partial(_problem, value)) for value in found)
        return [problem for problem in problems if problem is not None]

    def _note(self, key: str, values: Fields) -> None:
        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(key, mapping=values)
                pipeline.expire(key, SHOWN_S)
                pipeline.execute()

        self._guarded.attempt(write, None)

    def alive(self) -> bool:
        """Whether Redis responds now."""
        return self._guarded.alive()

    def end_session(self, session: str, seconds: int) -> None:
        """Records that a console session has ended, until its cookie expires."""
        self._guarded.attempt(
            lambda: self._redis.set(SESSION_ENDED_KEY.format(session=session), 1, ex=seconds), None
        )

    def session_has_ended(self, session: str) -> bool:
        return self._guarded.attempt(
            lambda: bool(self._redis.exists(SESSION_ENDED_KEY.format(session=session))), False
        )


def _answers_of_several(
    proposed: Sequence[tuple[ProposedRegion, Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Keys of the phrases with several regions -> COCO RLE of their union."""
    by_phrase: dict[str, list[Mapping[str, Any]]] = {}
    for region, rle in proposed:
        by_phrase.setdefault(phrase_key(region.phrase), []).append(rle)
    return {key: merge_coco_rles(rles) for key, rles in by_phrase.items() if len(rles) > 1}


def _proposals(values: Mapping[str, str]) -> list[Served]:
    """The masks stored under a region's ID, the latest first; an earlier release stored only that."""
    if not {"rle", "version", "phrase"} <= set(values):
        return []
    answer = values.get("answer") or "null"
    latest = parsed(
        lambda: Served(json.loads(values["rle"]), values["version"], values["phrase"], json.loads(answer))
    )
    earlier = parsed(lambda: [Served(**each) for each in json.loads(values.get("earlier") or "[]")])
    return [*([latest] if latest else []), *(earlier or [])]


def _problem(value: bytes) -> Problem:
    values = json.loads(value)
    return Problem(**{entry.name: str(values[entry.name]) for entry in fields(Problem)})


def _written_box(values: Mapping[str, Any]) -> WrittenBox:
    entries = [str(entry) for entry in values["entries"]]
    return WrittenBox(str(values["id"]), entries, str(values.get("draft", "")))


def _displayed_mask(value: bytes) -> DisplayedMask:
    return DisplayedMask.from_dict(json.loads(value))
