"""Metadata of versions, as JSON: one card per version.

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
from dataclasses import MISSING, asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any, Literal

Status = Literal["candidate", "promoted", "rejected"]

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


class OutpacedError(VersionStateError):
    """The serving version was changed in the meantime."""


class UnreachableStoreError(VersionError):
    """The storage of versions failed."""


@dataclass(frozen=True)
class VersionCard:
    """Metadata of a version."""

    version_id: str = ""
    """Set by `publish`; identical to Label Studio's model_version."""
    preset: str = ""
    line: str = ""
    """The line of versions it belongs to; empty for versions without one, which any line may promote."""
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
            known = {entry.name: entry for entry in fields(cls)}
            for name in values.keys() & known.keys():
                kind = str if known[name].default is not MISSING else dict
                if not isinstance(values[name], kind):
                    raise ValueError(f"{name!r} is {type(values[name]).__name__}, not {kind.__name__}")
            return cls(**{name: value for name, value in values.items() if name in known})
        except (ValueError, TypeError, AttributeError, RecursionError) as error:
            raise DamagedVersionError(f"not a version card: {error}") from error


def now_text() -> str:
    """ISO 8601, UTC."""
    return datetime.now(UTC).isoformat(timespec="seconds")
