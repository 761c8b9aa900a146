"""Counts of accepted and corrected masks, in Redis, by project, version and label.

The worker counts each annotation when it collects it, and again when it changes: an annotation's previous
counts are stored, so that new ones replace them. The backend shows the sums on the start page and in metrics.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, astuple, dataclass, fields, replace

from redis import Redis, WatchError

from backend.shared_redis import CORRECTION_DAYS_KEY, CORRECTION_SUMS_KEY, CORRECTIONS_KEY, SUBMITTED_KEY


@dataclass(frozen=True)
class Tally:
    """Counts for one version and label."""

    version: str
    label: str
    accepted: float = 0
    """Submitted exactly as proposed."""
    edited: float = 0
    """Submitted after changes by brush, eraser or clicks."""
    deleted: float = 0
    """Proposed, submitted, and deleted later. Masks that were never submitted tell nothing: the annotator may
    not have seen them."""
    added: float = 0
    """Submitted without a proposal for a phrase: drawn or clicked. Counted under the serving version."""
    missed: float = 0
    """Submitted for a phrase for which the model had found nothing."""
    iou: float = 0
    """IoU of proposed and submitted masks, summed over accepted and edited ones."""

    @property
    def submitted(self) -> float:
        """Proposed masks that were submitted."""
        return self.accepted + self.edited

    @property
    def mean_iou(self) -> float | None:
        """Mean IoU of proposed and submitted masks, 0..1; None without any."""
        return self.iou / self.submitted if self.submitted else None

    @property
    def masks(self) -> float:
        """All masks, whatever became of them."""
        return self.submitted + self.deleted + self.added + self.missed

    def share(self, outcome: str) -> float | None:
        """Share of a count in all masks, 0..1; None without any."""
        count: float = getattr(self, outcome)
        return count / self.masks if self.masks else None

    def plus(self, other: Tally) -> Tally:
        """Sum of two tallies, under this one's version and label."""
        added = {name: getattr(self, name) + getattr(other, name) for name in COUNTS}
        return replace(self, **added)


LABEL_MAX_CHARACTERS = 100
"""Of a label's name in the counts."""
SMALLEST = 1e-9
"""Smaller sums are 0, but for rounding."""
OUTCOMES = ("accepted", "edited", "deleted", "added", "missed")
"""Of a mask."""
COUNTS = tuple(entry.name for entry in fields(Tally) if entry.name not in ("version", "label"))


@dataclass(frozen=True)
class ProjectTally:
    """A tally and its project."""

    project: int
    tally: Tally


@dataclass(frozen=True)
class DayCounts:
    """What became of the masks in the annotations that were last saved on a day."""

    day: str
    """2026-05-01."""
    counts: Mapping[str, float]

    @property
    def masks(self) -> float:
        return sum(self.counts.get(name, 0.0) for name in OUTCOMES)

    def share(self, outcome: str) -> float:
        """Share of a count in all masks, 0..1; 0 without any."""
        return self.counts.get(outcome, 0.0) / self.masks if self.masks > 0 else 0.0


class CorrectionLog:
    """Reads and writes the counts. Every method raises RedisError if Redis does not respond.

    Args:
        redis: Connected lazily.
    """

    def __init__(self, redis: Redis) -> None:
        self._redis = redis

    def submitted(self, project: int, annotation: int) -> set[str]:
        """Returns the ids of the proposed masks that were ever submitted in an annotation."""
        value = self._redis.hget(SUBMITTED_KEY.format(project=project), str(annotation))
        try:
            return {str(region) for region in json.loads(value)} if value else set()
        except (ValueError, TypeError, RecursionError):  # not in our format
            return set()

    def note_submitted(self, project: int, annotation: int, regions: Iterable[str]) -> None:
        """Replaces the ids of the proposed masks that were ever submitted in an annotation."""
        key = SUBMITTED_KEY.format(project=project)
        self._redis.hset(key, str(annotation), json.dumps(sorted(regions)))

    def note(self, project: int, annotation: int, tallies: Sequence[Tally], day: str = "") -> None:
        """Replaces an annotation's counts.

        The caller must hold the annotation's lock: concurrent calls would count it twice.

        Args:
            project: ID of the project.
            annotation: ID of the annotation.
            tallies: Its counts now.
            day: On which it was last saved, ISO 8601; empty if unknown.
        """
        key = CORRECTIONS_KEY.format(project=project)
        tallies = merged(replace(tally, label=tally.label[:LABEL_MAX_CHARACTERS]) for tally in tallies)
        before, day_before = self._of(key, annotation)
        if tallies == before and (day_before or not day):
            return
        names: list[str] = []
        with self._redis.pipeline() as pipeline:
            for sign, counted in ((-1, before), (1, tallies)):
                for name, value in _numbers(project, counted):
                    names.append(name)
                    pipeline.hincrbyfloat(CORRECTION_SUMS_KEY, name, sign * value)
            for sign, counted, at in ((-1, before, day_before), (1, tallies, day)):
                for name, value in _day_numbers(at, counted):
                    pipeline.hincrbyfloat(CORRECTION_DAYS_KEY.format(project=project), name, sign * value)
            if tallies:
                stored = [{**asdict(tally), "day": day} for tally in tallies]
                pipeline.hset(key, str(annotation), json.dumps(stored))
            else:
                pipeline.hdel(key, str(annotation))
            sums = dict(zip(names, pipeline.execute(), strict=False))
        self._drop([name for name, value in sums.items() if _is_zero(value)])

    def _drop(self, names: Sequence[str]) -> None:
        """Removes sums of 0: annotators choose labels, and each would stay."""
        if not names:
            return
        # If another annotation is counted at the same time, they stay until one of them changes again.
        with self._redis.pipeline() as pipeline, suppress(WatchError):
            pipeline.watch(CORRECTION_SUMS_KEY)  # type: ignore[no-untyped-call]
            now = zip(names, pipeline.hmget(CORRECTION_SUMS_KEY, names), strict=True)
            gone = [name for name, value in now if value is not None and _is_zero(value)]
            pipeline.multi()
            if gone:
                pipeline.hdel(CORRECTION_SUMS_KEY, *gone)
            pipeline.execute()

    def days(self, project: int) -> list[DayCounts]:
        """Returns a project's counts by day, in order."""
        found: dict[str, dict[str, float]] = {}
        for name, value in self._redis.hgetall(CORRECTION_DAYS_KEY.format(project=project)).items():
            with suppress(ValueError, TypeError, OverflowError):  # not in our format
                day, count = json.loads(name)
                if count in OUTCOMES and math.isfinite(float(value)):
                    found.setdefault(str(day)[:10], {})[count] = max(0.0, round(float(value), 9))
        return [DayCounts(day, counts) for day, counts in sorted(found.items())]

    def forget(self, project: int, annotations: Iterable[int]) -> None:
        """Subtracts the counts of deleted annotations."""
        for annotation in annotations:
            self.note(project, annotation, [])
            self._redis.hdel(SUBMITTED_KEY.format(project=project), str(annotation))

    def sums(self) -> list[ProjectTally]:
        """Returns the sums by project, version and label, in this order."""
        found: dict[tuple[int, str, str], dict[str, float]] = {}
        for name, value in self._redis.hgetall(CORRECTION_SUMS_KEY).items():
            with suppress(ValueError, TypeError, OverflowError):  # not in our format
                project, version, label, count = json.loads(name)
                if count in COUNTS and math.isfinite(float(value)):
                    key = (int(project), str(version), str(label))
                    found.setdefault(key, {})[count] = round(float(value), 9)
        tallies = [
            ProjectTally(project, Tally(version, label, **counts))
            for (project, version, label), counts in sorted(found.items())
        ]
        return [tally for tally in tallies if any(astuple(tally.tally)[2:])]

    def _of(self, key: str, annotation: int) -> tuple[list[Tally], str]:
        """An annotation's counts, and their day; an earlier release stored none."""
        value = self._redis.hget(key, str(annotation))
        with suppress(ValueError, TypeError, AttributeError, OverflowError, RecursionError):  # not our format
            stored = json.loads(value) if value else []
            days = [str(counts.pop("day", "")) for counts in stored]
            found = [Tally(**counts) for counts in stored]
            if found and all(map(_is_counted, found)):
                return found, days[0]
        return [], ""


def merged(tallies: Iterable[Tally]) -> list[Tally]:
    """Adds up tallies of the same version and label, in order of first occurrence."""
    sums: dict[tuple[str, str], Tally] = {}
    for tally in tallies:
        key = (tally.version, tally.label)
        sums[key] = sums[key].plus(tally) if key in sums else tally
    return list(sums.values())


def _numbers(project: int, tallies: Iterable[Tally]) -> Iterable[tuple[str, float]]:
    for tally in tallies:
        counts: Mapping[str, float] = {name: getattr(tally, name) for name in COUNTS}
        for name, value in counts.items():
            if value:
                yield json.dumps([project, tally.version, tally.label, name]), value


def _is_counted(tally: Tally) -> bool:
    """Whether a tally that was read has texts and finite numbers where they belong."""
    is_named = isinstance(tally.version, str) and isinstance(tally.label, str)
    return is_named and all(math.isfinite(getattr(tally, name)) for name in COUNTS)


def _is_zero(value: bytes | str | float) -> bool:
    return abs(float(value)) < SMALLEST


def _day_numbers(day: str, tallies: Iterable[Tally]) -> Iterable[tuple[str, float]]:
    if not day:
        return
    for tally in tallies:
        for name in OUTCOMES:
            if value := getattr(tally, name):
                yield json.dumps([day, name]), value
