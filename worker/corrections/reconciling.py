"""Reconciliation: brings the records of a project up to date with Label Studio, since events may be lost.

Label Studio sets a task's `updated_at` when an annotation of it is saved or deleted, and lists tasks in that
order. A pass therefore reads only the tasks that changed since the last one, page by page, and stores how far
it came: an interrupted pass goes on from there. A deleted task changes no other; it shows in the project's
number of annotations. Once a day a pass begins from the first task.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Mapping
from contextlib import AbstractContextManager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any, cast

from backend.errors import LabelStudioNotFound
from backend.labelstudio.client import moment_of
from backend.labelstudio.config import LabelingConfig
from backend.shared_redis import COLLECTED_KEY, RECONCILE_LOCK, RECONCILED_KEY
from worker.corrections import collector
from worker.corrections.collector import COLLECT, BusyError, collected_mark
from worker.isolation import Outcome, left_out
from worker.queueing.queues import redis_lock
from worker.services import Services

logger = logging.getLogger(__name__)

BUDGET_S = 240.0
"""A pass that takes longer ends here; its job goes to the end of the queue and then continues."""
FULL_PASS_EVERY = timedelta(days=1)
OVERLAP = timedelta(seconds=60)
"""A pass begins this long before the last change it saw: slower saves become visible later."""
RETRIED_AT_ONCE = 20
"""Annotations that could not be collected, tried again in each pass."""
RECOLLECTED_AT_ONCE = 200
"""Missing or damaged files of records, collected again one by one; more than that take a full pass."""


@dataclass(frozen=True)
class Reconciled:
    """Changes made by a reconciliation."""

    project: int
    collected: int = 0
    forgotten: int = 0
    problems: int = 0
    complete: bool = True
    """False if it ran out of time."""
    busy: bool = False
    """Another process is reconciling the project."""


@dataclass(frozen=True)
class Position:
    """How far the reconciliation of a project has come; stored as JSON."""

    since: str = ""
    """`updated_at` of the last task seen; empty before the first."""
    began_at: str = ""
    """When the last full pass began, ISO 8601."""
    full: bool = True
    """Whether that pass is still under way."""
    counted: tuple[int, ...] = ()
    """Label Studio's and our number of annotations when deleted tasks were last looked for."""


def reconcile(
    services: Services, project: int, budget_s: float = BUDGET_S, now: datetime | None = None
) -> Reconciled:
    """Updates the records of a project to match Label Studio.

    Raises:
        LabelStudioError, LabelingConfigError: the project cannot be read; no record is removed.
    """
    with redis_lock(services.redis, RECONCILE_LOCK.format(project=project), wait_s=0) as locked:
        if not locked:
            return Reconciled(project, busy=True)
        return _Pass(services, project, time.monotonic() + budget_s, now or datetime.now(UTC)).run()


class _Pass:
    """One pass over a project."""

    def __init__(self, services: Services, project: int, until_s: float, now: datetime) -> None:
        self._services = services
        self._project = project
        self._until_s = until_s
        self._now = now
        self._client = services.label_studio
        self._result = Reconciled(project)
        self._key = RECONCILED_KEY.format(project=project)
        self._marks: dict[int, str] = {}
        """Of all collected annotations: `collected_mark`."""
        self._of_task: dict[int, set[int]] = {}

    def run(self) -> Reconciled:
        record = self._client.project(self._project)
        config = LabelingConfig.parse(record["label_config"])
        self._read_marks()
        position = self._position()
        files = set(self._services.collection(self._project).annotations())
        missing = sorted(self._marks.keys() - files)
        if len(missing) > RECOLLECTED_AT_ONCE:
            position = Position()
            self._marks = {number: mark for number, mark in self._marks.items() if number in files}
        if not position.began_at or (not position.full and self._is_old(position)):
            position = Position(began_at=self._now.isoformat())
        for number in [*missing[:RECOLLECTED_AT_ONCE], *self._failed()]:
            self._collect_again(number)
        position = self._read_changes(position, config)
        if self._result.complete:
            position = self._forget_gone(position, record)
        self._store(position)
        return self._result

    # What changed

    def _read_changes(self, position: Position, config: LabelingConfig) -> Position:
        """Reads the tasks that have changed since `position`; returns the new one."""
        for tasks, is_last in self._client.changed_tasks(self._project, _earlier(position.since)):
            for task in tasks:
                with self._left_out(f"task {str(task.get('id'))[:20]}") as outcome:
                    self._read_task(task, config)
                self._count(problems=int(bool(outcome.reason)))
            if tasks:
                position = replace(position, since=str(tasks[-1].get("updated_at") or position.since))
            self._store(position)
            if not is_last and time.monotonic() > self._until_s:
                self._count(complete=False)
                break
        return position

    def _read_task(self, task: Mapping[str, Any], config: LabelingConfig) -> None:
        number = int(task["id"])
        found = set()
        for annotation in task.get("annotations") or []:
            annotation_id = int(annotation["id"])
            found.add(annotation_id)
            mark = collected_mark(annotation, number)
            if self._marks.get(annotation_id) == mark or self._is_on_disk(annotation, mark):
                continue
            with self._left_out(f"annotation {annotation_id}") as outcome:
                whole = {**annotation, "task": number}
                changed = collector.keep(self._services, self._project, whole, task, config)
                self._count(collected=int(changed))
            self._count(problems=int(bool(outcome.reason)))
        gone = self._of_task.get(number, set()) - found
        self._count(forgotten=collector.forget(self._services, self._project, gone))

    def _is_on_disk(self, annotation: Mapping[str, Any], mark: str) -> bool:
        """Whether the records match the annotation although Redis does not know it, as after its loss."""
        number = int(annotation["id"])
        records = self._services.collection(self._project).of_annotation(number)
        if number in self._marks or not records or records[0].updated_at != annotation.get("updated_at"):
            return False
        self._services.redis.hset(COLLECTED_KEY.format(project=self._project), str(number), mark)
        return True

    # What is missing here

    def _failed(self) -> list[int]:
        """The annotations that failed longest ago."""
        items = self._services.skipped.of(self._project)
        numbers = [
            item.number for item in items if item.work == COLLECT and item.item.startswith("annotation ")
        ]
        return [number for number in numbers[::-1] if number is not None][:RETRIED_AT_ONCE]

    def _collect_again(self, number: int) -> None:
        if time.monotonic() > self._until_s:
            return
        with self._left_out(f"annotation {number}") as outcome, suppress(BusyError):
            found = collector.collect(self._services, self._project, number)
            failed, gone = int(bool(found.problem)), int(found.forgotten)
            self._count(problems=failed, forgotten=gone, collected=1 - max(failed, gone))
        self._count(problems=int(bool(outcome.reason)))

    # What is gone there

    def _forget_gone(self, position: Position, record: Mapping[str, Any]) -> Position:
        """Forgets the annotations of deleted tasks."""
        files = set(self._services.collection(self._project).annotations())
        self._read_marks()
        if position.full:  # every task has been read, and has marked its annotations
            strays = {number for number in files - self._marks.keys() if self._is_gone(number)}
            self._count(forgotten=collector.forget(self._services, self._project, strays))
        theirs = _annotation_count(record)
        if theirs == len(self._marks) or (theirs, len(self._marks)) == position.counted:
            return replace(position, full=False)
        tasks = {int(task["id"]) for task in self._client.task_list(self._project)}
        gone = {n for task, numbers in self._of_task.items() if task not in tasks for n in numbers}
        self._count(forgotten=collector.forget(self._services, self._project, gone))
        ours = len(self._marks) - len(gone)
        position = replace(position, counted=(theirs, ours))
        if theirs != ours and not position.full:  # some were never seen, or went without a trace
            return replace(position, since="", full=True)
        return replace(position, full=False)

    def _is_gone(self, number: int) -> bool:
        try:
            self._client.annotation(number)
        except LabelStudioNotFound:
            return True
        return False

    # State

    def _left_out(self, item: str) -> AbstractContextManager[Outcome]:
        return left_out(self._services.skipped, self._project, COLLECT, item)

    def _count(self, complete: bool = True, **numbers: int) -> None:
        sums = {name: getattr(self._result, name) + number for name, number in numbers.items()}
        self._result = replace(self._result, **sums, complete=self._result.complete and complete)

    def _read_marks(self) -> None:
        key = COLLECTED_KEY.format(project=self._project)
        stored = cast("dict[bytes, bytes]", self._services.redis.hgetall(key))
        self._marks, self._of_task = {}, {}
        for name, value in stored.items():
            with suppress(ValueError):
                number, mark = int(name), str(value, "utf-8")
                self._marks[number] = mark
                self._of_task.setdefault(int(mark.rpartition(" ")[2]), set()).add(number)

    def _is_old(self, position: Position) -> bool:
        try:
            return not timedelta(0) <= self._now - datetime.fromisoformat(position.began_at) < FULL_PASS_EVERY
        except (ValueError, TypeError):  # without a zone, too
            return True

    def _position(self) -> Position:
        """The stored position; the beginning if there is none, or it cannot be read."""
        try:
            fields = json.loads(self._services.redis.get(self._key) or b"{}")
            position = Position(**{**fields, "counted": tuple(fields.get("counted", ()))})
        except (ValueError, TypeError, AttributeError, RecursionError):
            return Position()
        since = moment_of(position.since)
        is_possible = not position.since or (since is not None and since < self._now + FULL_PASS_EVERY)
        return position if is_possible else Position()

    def _store(self, position: Position) -> None:
        self._services.redis.set(self._key, json.dumps(asdict(position)))


def _annotation_count(record: Mapping[str, Any]) -> int:
    """Label Studio's number of annotations of a project, cancelled ones included; -1 if it does not tell."""
    counts = [record.get(name) for name in ("total_annotations_number", "skipped_annotations_number")]
    return sum(count for count in counts if isinstance(count, int)) if isinstance(counts[0], int) else -1


def _earlier(since: str) -> datetime | None:
    moment = moment_of(since)
    try:
        return moment - OVERLAP if moment is not None else None
    except OverflowError:  # the beginning of time
        return None
