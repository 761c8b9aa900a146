"""State in Redis: served masks, phrases that found nothing, known projects.

Answers never depend on it: if Redis is unavailable, a warning is logged once a minute and the request
continues without it.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from functools import partial
from typing import Any, TypeVar

from redis import Redis, RedisError

from backend.corrections import CorrectionLog, DayCounts, ProjectTally
from backend.labelstudio.config import MAX_CHARACTERS
from backend.labelstudio.predictions import ProposedRegion
from backend.labelstudio.prompt_text import phrase_key
from backend.logs import request_id
from backend.shared_redis import (
    DECISION_KEY,
    LAST_WEBHOOK_KEY,
    MESSAGE_SENT_KEY,
    NOTHING_FOUND_KEY,
    PROBLEMS_KEY,
    PROGRESS_KEY,
    PROJECTS_KEY,
    PROMPT_BOX_KEY,
    QUEUES,
    SERVED_KEY,
    SERVED_OF_KEY,
    SESSION_ENDED_KEY,
    SHOWN_KEY,
)
from backend.state.displayed_masks import DisplayedMask
from sspsam.images.masks import merge_coco_rles
from sspsam.version_store.lines import line_key

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
PROBLEM_CHARACTERS = 1000
"""Of an error's reason."""
MOST_PROJECTS = 2000
"""Projects that are known; further ones are not stored before others are deleted."""
MOST_NOT_FOUND = 1000
"""Phrases of a task for which nothing was found."""
BOX_CHARACTERS = 2**18
"""Of a prompt box, as JSON; a larger one is not stored."""
PROJECT_ID_DIGITS = 18
_COMPLAIN_EVERY_S = 60.0
_PAUSE_S = 5.0
"""Pause after a Redis failure: each attempt may take seconds, while an annotator waits."""

UNREADABLE = (ValueError, TypeError, LookupError, AttributeError, RecursionError, OverflowError)
"""What reading a value of another format raises."""

Value = TypeVar("Value")
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
class QueueState:
    """Numbers of jobs, and of workers that take from the queue."""

    waiting: int
    running: int
    failed: int
    workers: int


@dataclass(frozen=True)
class Problem:
    """A request that failed."""

    at: str
    """ISO 8601, UTC."""
    task: str
    reason: str
    request_id: str
    """Request ID in the log."""


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


class RedisStore:
    """Reads and writes the state. Never raises Redis errors.

    Args:
        redis: Connected lazily.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis
        self._complained_s = -_COMPLAIN_EVERY_S
        self._failed_s = -_PAUSE_S

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
                for region, rle in proposed:
                    key = SERVED_KEY.format(region=region.region_id)
                    answer = answers.get(phrase_key(region.phrase))
                    values: Fields = {
                        "rle": json.dumps(rle),
                        "version": version,
                        "phrase": region.phrase,
                        "answer": json.dumps(answer) if answer else "",
                    }
                    pipeline.hset(key, mapping=values)
                    pipeline.expire(key, KEPT_S)
                    pipeline.zadd(listed, {region.region_id: time.time()})
                if proposed:
                    pipeline.expire(listed, KEPT_S)
                pipeline.execute()
            surplus = self._redis.zrange(listed, 0, -MOST_SERVED - 1)
            if surplus:
                self._redis.delete(*(SERVED_KEY.format(region=_text(number)) for number in surplus))
                self._redis.zrem(listed, *surplus)

        self._try(write, None)

    def served(self, region_id: str) -> Served | None:
        """Returns the mask last served under a region's ID."""
        nothing: dict[str, str] = {}
        values = self._try(
            lambda: _text_map(self._redis.hgetall(SERVED_KEY.format(region=region_id))), nothing
        )
        if not {"rle", "version", "phrase"} <= set(values):
            return None
        answer = values.get("answer") or "null"
        return _parsed(
            lambda: Served(json.loads(values["rle"]), values["version"], values["phrase"], json.loads(answer))
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
                    names = [name for name in self._redis.hkeys(key) if _text(name) not in come]
                    self._redis.hdel(key, *names[:surplus], *list(come)[MOST_NOT_FOUND:])

        self._try(write, None)

    def nothing_found(self, project: str, task: str) -> dict[str, str]:
        """Returns the keys of phrases for which the model found nothing, with the version that was asked."""
        key = NOTHING_FOUND_KEY.format(project=project, task=task)
        nothing: dict[str, str] = {}
        return self._try(lambda: _text_map(self._redis.hgetall(key)), nothing)

    def note_shown(self, project: str, task: str, masks: Iterable[DisplayedMask]) -> None:
        """Stores displayed masks for later clicks; replaces a region's earlier mask."""
        values: Fields = {f"{mask.region_id}/{mask.annotator}": json.dumps(mask.to_dict()) for mask in masks}
        if not values:
            return
        key = SHOWN_KEY.format(project=project, task=task)
        self._note(key, values)
        if self._try(lambda: int(self._redis.hlen(key)), 0) > 2 * MOST_SHOWN:
            self.shown(project, task)  # drops the oldest

    def shown(self, project: str, task: str) -> list[DisplayedMask]:
        """Returns the last displayed masks of a task, the latest last; drops the oldest of very many."""
        key = SHOWN_KEY.format(project=project, task=task)
        nothing: dict[bytes, bytes] = {}
        found = self._try(lambda: self._redis.hgetall(key), nothing)
        read = ((name, _parsed(partial(_displayed_mask, value))) for name, value in found.items())
        masks = sorted(
            ((name, mask) for name, mask in read if mask is not None), key=lambda entry: entry[1].shown_s
        )
        surplus = [name for name, _ in masks[:-MOST_SHOWN]]
        if surplus:
            self._try(lambda: self._redis.hdel(key, *surplus), 0)
        return [mask for _, mask in masks[-MOST_SHOWN:]]

    def note_box(self, project: str, task: str, result_id: str, entries: Sequence[str]) -> None:
        """Stores the content of a task's prompt box, which click requests do not contain."""
        key = PROMPT_BOX_KEY.format(project=project, task=task)
        value = json.dumps({"id": result_id, "entries": list(entries)})
        if len(value) > BOX_CHARACTERS:  # what was stored before is not the content any more
            self._try(lambda: self._redis.delete(key), 0)
        else:
            self._try(lambda: self._redis.set(key, value, ex=SHOWN_S), None)

    def box(self, project: str, task: str) -> tuple[str, list[str]] | None:
        """Returns ID and entries of a task's prompt box, as last written by us."""
        found = self._json(PROMPT_BOX_KEY.format(project=project, task=task))
        return _parsed(lambda: (str(found["id"]), [*map(str, found["entries"])])) if found else None

    def mark_message_sent(self, project: str, task: str) -> None:
        """Records that a task's form shows a message about a click."""
        self._try(
            lambda: self._redis.set(MESSAGE_SENT_KEY.format(project=project, task=task), 1, ex=SHOWN_S), None
        )

    def pop_message_sent(self, project: str, task: str) -> bool:
        """Returns whether the form shows a message about a click, and clears the record."""
        return self._try(
            lambda: bool(self._redis.delete(MESSAGE_SENT_KEY.format(project=project, task=task))), False
        )

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

        self._try(write, None)

    def problems(self, project: str) -> list[Problem]:
        """Returns recent errors, newest first."""
        nothing: list[bytes] = []
        found = self._try(lambda: self._redis.lrange(PROBLEMS_KEY.format(project=project), 0, -1), nothing)
        problems = (_parsed(partial(_problem, value)) for value in found)
        return [problem for problem in problems if problem is not None]

    def _note(self, key: str, values: Fields) -> None:
        def write() -> None:
            with self._redis.pipeline(transaction=False) as pipeline:
                pipeline.hset(key, mapping=values)
                pipeline.expire(key, SHOWN_S)
                pipeline.execute()

        self._try(write, None)

    def note_project(self, project: KnownProject) -> KnownProject | None:
        """Stores a project; an empty title keeps the known one.

        Returns:
            The previous record.
        """
        if not is_project_id(project.project_id):
            logger.warning("%.40r is not the ID of a project", project.project_id)
            return None
        known = self.project(project.project_id)
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

        if not self._try(put, True):
            logger.warning("project %s is not stored: there are %d others", project_id, MOST_PROJECTS)

    def note_title(self, project_id: str, title: str) -> None:
        """Stores the title of a known project, which only its webhook contains."""
        known = self.project(project_id)
        if known is not None and title not in ("", known.title):
            self.note_project(replace(known, title=title))

    def project(self, project_id: str) -> KnownProject | None:
        return self._try(lambda: _project(self._redis.hget(PROJECTS_KEY, project_id)), None)

    def projects(self) -> list[KnownProject]:
        """Returns the known projects, most recently seen first."""
        nothing: list[KnownProject | None] = []
        found = self._try(lambda: [_project(value) for value in self._redis.hvals(PROJECTS_KEY)], nothing)
        known = [project for project in found if project is not None and is_project_id(project.project_id)]
        return sorted(known, key=lambda project: project.seen_at, reverse=True)

    def set_last_webhook_time(self, project_id: str) -> None:
        """Records that a project's webhook has arrived."""
        if not is_project_id(project_id):
            return
        self._put(LAST_WEBHOOK_KEY, project_id, datetime.now(UTC).isoformat())

    def get_last_webhook_time(self, project_id: str) -> str:
        """Returns the time of a project's last webhook, ISO 8601; empty if there was none."""
        value = self._try(lambda: self._redis.hget(LAST_WEBHOOK_KEY, project_id), None)
        return "" if value is None else _text(value)

    def decision(self, line: str) -> dict[str, Any]:
        """Returns the worker's last fine-tune decision on a line: at, trigger, start, reason; {} if there is
        none.
        """
        return self._json(DECISION_KEY.format(line=line_key(line)))

    def progress(self, line: str) -> dict[str, Any]:
        """Returns the progress of a line's running fine-tune: run, step, steps; {} if none runs."""
        return self._json(PROGRESS_KEY.format(line=line_key(line)))

    def corrections(self) -> list[ProjectTally]:
        """Returns the worker's counts of corrections; see `backend.corrections`."""
        nothing: list[ProjectTally] = []
        return self._try(CorrectionLog(self._redis).sums, nothing)

    def correction_days(self, project: int) -> list[DayCounts]:
        """Returns the worker's counts of a project's corrections by day."""
        nothing: list[DayCounts] = []
        return self._try(lambda: CorrectionLog(self._redis).days(project), nothing)

    def waiting_jobs(self) -> dict[str, int]:
        """Returns the number of jobs in each worker queue; {} if Redis does not respond."""

        def count() -> dict[str, int]:
            return {name: int(self._redis.llen(f"rq:queue:{name}")) for name in QUEUES}

        nothing: dict[str, int] = {}
        return self._try(count, nothing)

    def queues(self) -> dict[str, QueueState]:
        """Returns the state of each worker queue; {} if Redis does not respond."""

        def count() -> dict[str, QueueState]:
            with self._redis.pipeline(transaction=False) as pipeline:
                for name in QUEUES:
                    pipeline.llen(f"rq:queue:{name}")
                    pipeline.zcard(f"rq:wip:{name}")
                    pipeline.zcard(f"rq:failed:{name}")
                    pipeline.scard(f"rq:workers:{name}")
                found = [int(number) for number in pipeline.execute()]
            return {name: QueueState(*found[4 * at : 4 * at + 4]) for at, name in enumerate(QUEUES)}

        nothing: dict[str, QueueState] = {}
        return self._try(count, nothing)

    def end_session(self, session: str, seconds: int) -> None:
        """Records that a console session has ended, until its cookie expires."""
        self._try(lambda: self._redis.set(SESSION_ENDED_KEY.format(session=session), 1, ex=seconds), None)

    def session_has_ended(self, session: str) -> bool:
        return self._try(lambda: bool(self._redis.exists(SESSION_ENDED_KEY.format(session=session))), False)

    def alive(self) -> bool:
        """Whether Redis responds now."""
        self._failed_s = -_PAUSE_S
        return self._try(lambda: bool(self._redis.ping()), False)

    def _json(self, key: str) -> dict[str, Any]:
        value = self._try(lambda: self._redis.get(key), None)
        found: Any = _parsed(partial(json.loads, value)) if value else {}
        return found if isinstance(found, dict) else {}

    def _try(self, action: Callable[[], Any], otherwise: Value) -> Value:
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


def _answers_of_several(
    proposed: Sequence[tuple[ProposedRegion, Mapping[str, Any]]],
) -> dict[str, dict[str, Any]]:
    """Keys of the phrases with several regions -> COCO RLE of their union."""
    by_phrase: dict[str, list[Mapping[str, Any]]] = {}
    for region, rle in proposed:
        by_phrase.setdefault(phrase_key(region.phrase), []).append(rle)
    return {key: merge_coco_rles(rles) for key, rles in by_phrase.items() if len(rles) > 1}


def _project(value: Any) -> KnownProject | None:
    if value is None:
        return None
    values = _parsed(partial(json.loads, value))
    if not isinstance(values, dict) or not isinstance(values.get("project_id"), str):
        return None
    texts = {entry.name: str(values.get(entry.name) or "") for entry in fields(KnownProject)}
    return replace(KnownProject(**texts), extra_params=values.get("extra_params"))


def _problem(value: bytes) -> Problem:
    values = json.loads(value)
    return Problem(**{entry.name: str(values[entry.name]) for entry in fields(Problem)})


def _displayed_mask(value: bytes) -> DisplayedMask:
    return DisplayedMask.from_dict(json.loads(value))


def _parsed(parse: Callable[[], Value]) -> Value | None:
    """Reads a value from Redis; None if it is not in our format, so that it spoils no other."""
    try:
        return parse()
    except UNREADABLE as error:
        logger.warning("a value in Redis is ignored: %s", type(error).__name__)
        return None


def _text_map(values: Mapping[Any, Any]) -> dict[str, str]:
    return {_text(name): _text(value) for name, value in values.items()}


def _text(value: Any) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
