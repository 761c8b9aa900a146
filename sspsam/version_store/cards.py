"""Metadata of versions: one card per version, and the state of a version store, as JSON.

Errors:
    VersionError
        UnknownVersionError    no such version: choose one of `VersionStore.list()`
        DamagedVersionError    a file is missing or differs from its sha256: promote another version
        ForeignVersionError    trained on other frozen weights: serve with those, or promote another
        VersionStateError      not possible in this state, such as a rollback without a predecessor
        UnreachableStoreError  the storage does not respond, or refuses: try again, or correct VERSIONS_URL
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from datetime import UTC, datetime
from typing import Any, Literal

Status = Literal["candidate", "promoted", "rejected"]
Action = Literal["promote", "rollback"]

WEIGHTS = "weights.safetensors"


class VersionError(Exception):
    """Base of version errors; see the module's docstring."""


class UnknownVersionError(VersionError, LookupError):
    """The store has no version with this ID."""


class DamagedVersionError(VersionError):
    """A version's file is missing, or differs from the published one."""


class ForeignVersionError(VersionError):
    """A version was trained on other frozen weights than those it would be loaded onto."""


class VersionStateError(VersionError):
    """The operation is not possible in the store's state."""


class UnreachableStoreError(VersionError):
    """The storage of versions failed."""


@dataclass(frozen=True)
class VersionCard:
    """Metadata of a version."""

    version_id: str = ""
    """Set by `publish`; identical to Label Studio's model_version."""
    preset: str = ""
    parent: str = ""
    """Base version of the training."""
    parents_sha256: dict[str, str] = field(default_factory=dict)
    """Frozen weights that these tensors belong to, from `frozen_weights`; empty: unknown."""
    created_at: str = ""
    """ISO 8601, UTC."""
    status: Status = "candidate"
    reason: str = ""
    """Reason of its promotion or rejection, as text."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """{"incumbent": {...}, "candidate": {...}, "held_out_samples": n}; values in 0..1."""
    data: dict[str, Any] = field(default_factory=dict)
    """{"digest", "records", "project"} of the training data."""
    config: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    """Each file of the version except the card: name -> hex digest."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> VersionCard:
        """Parses a card; unknown fields are ignored.

        Raises:
            DamagedVersionError: the text is not a card.
        """
        try:
            values = json.loads(text)
            if not isinstance(values, dict):
                raise ValueError("expected an object")
            known = {entry.name for entry in fields(cls)}
            return cls(**{name: value for name, value in values.items() if name in known})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedVersionError(f"not a version card: {error}") from error


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
class StoreState:
    """The serving version and its history. Replaced as a whole; cards never change."""

    version_id: str
    """The serving version."""
    stack: tuple[str, ...] = ()
    """Rollback targets, newest last."""
    history: tuple[HistoryEntry, ...] = ()
    """Oldest first."""
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Verdicts on versions, including deleted ones."""

    def judge(self, version_id: str, status: Status, reason: str) -> StoreState:
        return replace(self, judgements={**self.judgements, version_id: Judgement(status, reason)})

    def promote(self, version_id: str) -> StoreState:
        """Promotes a version; the previous one becomes the rollback target."""
        if version_id == self.version_id:
            return self
        return self._serve("promote", version_id, (*self.stack, self.version_id))

    def roll_back(self) -> StoreState:
        """Rolls back to the top of the stack.

        Raises:
            VersionStateError: the stack is empty.
        """
        if not self.stack:
            raise VersionStateError(
                f"nothing to roll back to: {self.version_id} is the only one that has served"
            )
        return self._serve("rollback", self.stack[-1], self.stack[:-1])

    def _serve(self, action: Action, version_id: str, stack: tuple[str, ...]) -> StoreState:
        entry = HistoryEntry(action, version_id, self.version_id, now_text())
        return replace(self, version_id=version_id, stack=stack, history=(*self.history, entry))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, where: str) -> StoreState:
        """Parses a state.

        Raises:
            DamagedVersionError: invalid text; the message names its location.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            version_id, stack = values["version_id"], tuple(values["stack"])
            if not all(isinstance(name, str) for name in (version_id, *stack)):
                raise TypeError("a version ID is not a string")
            history = tuple(HistoryEntry(**entry) for entry in values["history"])
            judged = {str(key): Judgement(**one) for key, one in values.get("judgements", {}).items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DamagedVersionError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        return cls(version_id, stack, history, judged)


def now_text() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
