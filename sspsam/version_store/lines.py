"""Lines of versions: which version serves which Label Studio project.

Each project has a line, in which its versions follow one another; projects share a line by choice. A line
without its own version is served by the store's default version: in a new store the base weights, in a
store from before there were lines the version that served then.

The lines and the groups of projects are one small state, replaced as a whole; cards never change.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field, replace
from typing import Any, Literal

from sspsam.version_store.cards import DamagedVersionError, Status, VersionStateError, now_text

Action = Literal["promote", "rollback"]
ModelLines = Literal["project", "shared"]
"""A line for each project, or one for all of them."""

DEFAULT_LINE = ""
"""The version that serves lines without one of their own."""
SHARED_LINE = "shared"
MOST_DIGITS = 18
"""Of the number of a project or of a version."""
_PROJECT_PREFIX = "project-"


def line_of_project(project_id: int) -> str:
    """Name of the line of a project that shares none."""
    return f"{_PROJECT_PREFIX}{project_id}"


def project_of_line(line: str) -> int | None:
    """Inverse of `line_of_project`; None for other lines."""
    digits = line.removeprefix(_PROJECT_PREFIX)
    return int(digits) if line != digits and digits.isdecimal() and len(digits) <= MOST_DIGITS else None


def line_key(line: str) -> str:
    """Name of a line in names of runs and in keys: a project's number, or the name of a shared line."""
    return line.removeprefix(_PROJECT_PREFIX)


@dataclass(frozen=True)
class HistoryEntry:
    """A change of the serving version."""

    action: Action
    version_id: str
    """The version serving from then on."""
    before: str
    at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Judgement:
    """Why a version serves or was rejected."""

    status: Status
    reason: str


@dataclass(frozen=True)
class LineState:
    """The serving version of a line, and its history."""

    version_id: str
    """The serving version; empty as long as the line follows the default version."""
    stack: tuple[str, ...] = ()
    """Rollback targets, newest last."""
    history: tuple[HistoryEntry, ...] = ()
    """Oldest first."""
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Verdicts on versions, including deleted ones."""

    def judge(self, version_id: str, status: Status, reason: str) -> LineState:
        return replace(self, judgements={**self.judgements, version_id: Judgement(status, reason)})

    def promote(self, version_id: str) -> LineState:
        """Promotes a version; the previous one becomes the rollback target."""
        if version_id == self.version_id:
            return self
        return self._serve("promote", version_id, (*self.stack, self.version_id))

    def roll_back(self) -> LineState:
        """Rolls back to the top of the stack.

        Raises:
            VersionStateError: the stack is empty.
        """
        if not self.stack:
            raise VersionStateError(
                f"nothing to roll back to: {self.version_id} is the only one that has served"
            )
        return self._serve("rollback", self.stack[-1], self.stack[:-1])

    def _serve(self, action: Action, version_id: str, stack: tuple[str, ...]) -> LineState:
        entry = HistoryEntry(action, version_id, self.version_id, now_text())
        return replace(self, version_id=version_id, stack=stack, history=(*self.history, entry))

    @classmethod
    def parse(cls, values: Mapping[str, Any]) -> LineState:
        """Reads a state from JSON; ValueError, TypeError, LookupError or AttributeError if it is invalid."""
        version_id, stack = values["version_id"], tuple(values["stack"])
        history = tuple(HistoryEntry(**entry) for entry in values["history"])
        judged = {str(key): Judgement(**one) for key, one in values.get("judgements", {}).items()}
        texts = [version_id, *stack]
        texts += [text for entry in history for text in astuple(entry)]
        texts += [text for one in judged.values() for text in astuple(one)]
        if not all(isinstance(text, str) for text in texts):
            raise TypeError("a version ID, a time or a reason is not a string")
        return cls(version_id, stack, history, judged)


@dataclass(frozen=True)
class StoreState:
    """A snapshot of all lines and groups."""

    default: LineState
    """Serves lines without a version of their own."""
    lines: Mapping[str, LineState] = field(default_factory=dict)
    """Lines in which a version was promoted, rolled back or rejected."""
    groups: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Line -> the projects that share it."""
    retired: frozenset[str] = frozenset()
    """Lines whose projects were deleted: nothing of them is needed any more."""
    former: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    """Shared line -> deleted projects, which come back to it if they exist after all."""
    model_lines: ModelLines = "project"
    """Setting MODEL_LINES of the reader; not stored."""

    def line_of(self, project_id: int | None) -> str:
        """The line that serves a project; None stands for requests without a project."""
        if self.model_lines == "shared":
            return SHARED_LINE
        if project_id is None:
            return DEFAULT_LINE
        shared = (name for name, projects in self.groups.items() if project_id in projects)
        return next(shared, line_of_project(project_id))

    def line(self, name: str) -> LineState:
        """State of a line. One without its own version has the default version, and can be rolled
        back to the versions before it.
        """
        own, default = self.stored_line(name), self.default
        return own if own.version_id else replace(own, version_id=default.version_id, stack=default.stack)

    def stored_line(self, name: str) -> LineState:
        """As `line`, but with an empty version_id if the line follows the default version."""
        return self.default if name == DEFAULT_LINE else self.lines.get(name, LineState(""))

    def current(self, line: str) -> str:
        """ID of the version that serves a line."""
        return self.line(line).version_id

    def only_line(self) -> str:
        """The line that is meant where none is named.

        Raises:
            VersionStateError: there are several.
        """
        if self.model_lines == SHARED_LINE:
            return SHARED_LINE
        lines = sorted(
            name for name, line in self.lines.items() if line.version_id and name not in self.retired
        )
        if len(lines) > 1:
            raise VersionStateError(f"there are several lines: {', '.join(lines)}; name a project")
        return lines[0] if lines else DEFAULT_LINE

    def with_line(self, name: str, line: LineState) -> StoreState:
        if name == DEFAULT_LINE:
            return replace(self, default=line)
        return replace(self, lines={**self.lines, name: line})

    def every_line(self) -> Iterator[LineState]:
        """The default and all lines with a state of their own."""
        yield self.default
        yield from self.lines.values()

    def judgement(self, version_id: str, line: str) -> Judgement | None:
        """Verdict on a version in a line, else the one in the default line."""
        own = self.stored_line(line).judgements
        return own.get(version_id) or self.default.judgements.get(version_id)

    def to_json(self) -> str:
        """The default line's fields are at the top level, as in stores from before there were lines."""
        lines = {name: asdict(line) for name, line in self.lines.items()}
        others = {
            "lines": lines,
            "groups": self.groups,
            "retired": sorted(self.retired),
            "former": self.former,
        }
        return json.dumps({**asdict(self.default), **others}, indent=2)

    @classmethod
    def from_json(cls, text: str, where: str, model_lines: ModelLines) -> StoreState:
        """Parses a state.

        Raises:
            DamagedVersionError: invalid text; the message names its location.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            default = LineState.parse(values)
            lines = {str(name): LineState.parse(line) for name, line in values.get("lines", {}).items()}
            groups, former = (_members(values.get(name, {})) for name in ("groups", "former"))
            retired = frozenset(str(name) for name in values.get("retired", ()))
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DamagedVersionError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        return cls(default, lines, groups, retired, former, model_lines)


def _members(values: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    return {str(name): tuple(int(project) for project in projects) for name, projects in values.items()}
