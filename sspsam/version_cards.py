"""What is known about versions: the card of each, and the state of a store of them, as JSON.

Errors:
    VersionError
        UnknownVersionError    no such version: choose one of `VersionStore.list()`
        DamagedVersionError    a file is missing or differs from its sha256: promote another version
        ForeignVersionError    it was trained on other frozen weights: serve with those, or promote another
        VersionStateError      this step is not possible now, such as a rollback with nothing to go back to
        UnreachableStoreError  the storage does not answer, or refuses: try again, or correct VERSIONS_URL
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
    """Something about a version; see the tree in the module's docstring."""


class UnknownVersionError(VersionError, LookupError):
    """No version of that id in the store."""


class DamagedVersionError(VersionError):
    """A version's file is missing, or is not the one that was published."""


class ForeignVersionError(VersionError):
    """A version belongs to other frozen weights than those that it would be loaded onto."""


class VersionStateError(VersionError):
    """The step asked for does not fit the state of the store."""


class UnreachableStoreError(VersionError):
    """The storage that holds the versions does not do what it is asked."""


@dataclass(frozen=True)
class VersionCard:
    """What is known about a version."""

    version_id: str = ""
    """Given by `publish`; Label Studio's model_version is exactly this."""
    preset: str = ""
    parent: str = ""
    """The version the training started from."""
    parents_sha256: dict[str, str] = field(default_factory=dict)
    """Frozen weights that these tensors belong to, as `frozen_weights` names them; empty: not known."""
    created_at: str = ""
    """ISO 8601, UTC."""
    status: Status = "candidate"
    reason: str = ""
    """Why it was promoted or rejected, in words."""
    metrics: dict[str, Any] = field(default_factory=dict)
    """{"incumbent": {...}, "candidate": {...}, "held_out_samples": n}; values in 0..1."""
    data: dict[str, Any] = field(default_factory=dict)
    """{"digest", "records", "project"} of the training data."""
    config: dict[str, Any] = field(default_factory=dict)
    code_version: str = ""
    sha256: dict[str, str] = field(default_factory=dict)
    """Of each file of the version but the card: name -> hex digest."""

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2, sort_keys=True)

    @classmethod
    def from_json(cls, text: str) -> VersionCard:
        """Reads a card; fields that this code does not know are left out.

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
    """One change of the version that serves."""

    action: Action
    version_id: str
    """The version that served from then on."""
    before: str
    at: str
    """ISO 8601, UTC."""


@dataclass(frozen=True)
class Judgement:
    """Why a version serves or does not."""

    status: Status
    reason: str


@dataclass(frozen=True)
class StoreState:
    """Which version serves, and how that came about. Replaced as a whole; cards never change."""

    version_id: str
    """Serves."""
    stack: tuple[str, ...] = ()
    """What to roll back to, the newest last."""
    history: tuple[HistoryEntry, ...] = ()
    """Oldest first."""
    judgements: Mapping[str, Judgement] = field(default_factory=dict)
    """Of versions that were judged, those that are gone included."""

    def judge(self, version_id: str, status: Status, reason: str) -> StoreState:
        return replace(self, judgements={**self.judgements, version_id: Judgement(status, reason)})

    def promote(self, version_id: str) -> StoreState:
        """Lets another version serve; the one that did is what to roll back to."""
        if version_id == self.version_id:
            return self
        return self._serve("promote", version_id, (*self.stack, self.version_id))

    def roll_back(self) -> StoreState:
        """Lets the last of the stack serve.

        Raises:
            VersionStateError: the stack is empty.
        """
        if not self.stack:
            raise VersionStateError(f"nothing to roll back to: {self.version_id} serves")
        return self._serve("rollback", self.stack[-1], self.stack[:-1])

    def _serve(self, action: Action, version_id: str, stack: tuple[str, ...]) -> StoreState:
        entry = HistoryEntry(action, version_id, self.version_id, now_text())
        return replace(self, version_id=version_id, stack=stack, history=(*self.history, entry))

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)

    @classmethod
    def from_json(cls, text: str, where: str) -> StoreState:
        """Reads a state.

        Raises:
            DamagedVersionError: the text is none; the message says where it is.
        """
        try:
            values: dict[str, Any] = json.loads(text)
            version_id, stack = values["version_id"], tuple(values["stack"])
            if not all(isinstance(one, str) for one in (version_id, *stack)):
                raise TypeError("a version's id is no text")
            history = tuple(HistoryEntry(**entry) for entry in values["history"])
            judged = {str(key): Judgement(**one) for key, one in values.get("judgements", {}).items()}
        except (ValueError, TypeError, LookupError, AttributeError, RecursionError) as error:
            raise DamagedVersionError(f"{where} cannot be read: {type(error).__name__}: {error}") from error
        return cls(version_id, stack, history, judged)


def now_text() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
