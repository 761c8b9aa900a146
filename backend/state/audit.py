"""The audit log of the console: who did what, when, from which address, and what came of it.

Two files of JSON lines in `MODEL_DIR/audit`, one for actions and one for sign-ins: sign-ins never displace
actions. Both are bounded; wrong passwords are in neither, so strangers displace nothing. Several processes
may write.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path

FILE_MAX_BYTES = 2**20
"""A fuller file is renamed to `<name>.1` and replaces the one before: twice this much is kept of each."""
TEXT_CHARACTERS = 300
"""Of each field."""
READ_BYTES = 2**17
"""Of each file, for the page."""
ACTIONS = "actions.jsonl"
SIGN_INS = "sign-ins.jsonl"

_DAMAGED = (ValueError, TypeError, KeyError, RecursionError)

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class AuditEntry:
    """An action of a person."""

    at: str
    """ISO 8601, UTC."""
    address: str
    role: str
    action: str
    subject: str
    """What it was done to; may be empty."""
    outcome: str


class AuditLog:
    """Appends and reads entries. The constructor opens nothing. Thread-safe.

    Args:
        folder: Of its files; created on first use.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def note(
        self, address: str, role: str, action: str, subject: str, outcome: str, sign_in: bool = False
    ) -> None:
        """Appends an entry; it also goes to the service's log, in case the disk is full."""
        at = datetime.now(UTC).isoformat(timespec="seconds")
        entry = AuditEntry(
            at, *(text[:TEXT_CHARACTERS] for text in (address, role, action, subject, outcome))
        )
        logger.info("audit: %s, %s: %s %s: %s", entry.address, entry.role, entry.action, subject, outcome)
        try:
            self._append(self._folder / (SIGN_INS if sign_in else ACTIONS), entry)
        except OSError as error:
            logger.error("the audit log cannot be written: %s", error)

    def latest(self, count: int) -> list[AuditEntry]:
        """The newest entries of both files, newest first."""
        found = [entry for name in (ACTIONS, SIGN_INS) for entry in self._read(self._folder / name)]
        return sorted(found, key=lambda entry: entry.at, reverse=True)[:count]

    def _append(self, path: Path, entry: AuditEntry) -> None:
        path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        line = (json.dumps(asdict(entry)) + "\n").encode()
        with _locked(path.with_suffix(".lock")):
            with suppress(FileNotFoundError):
                if path.stat().st_size + len(line) > FILE_MAX_BYTES:
                    path.replace(_older(path))
            handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
            with os.fdopen(handle, "ab") as file:
                file.write(line)

    def _read(self, path: Path) -> Iterator[AuditEntry]:
        for part in (_older(path), path):
            try:
                lines = _tail(part).split(b"\n")
            except OSError:
                continue
            for line in lines:
                with suppress(*_DAMAGED):  # cut off at the start, or damaged
                    values = json.loads(line)
                    yield AuditEntry(**{one.name: str(values[one.name]) for one in fields(AuditEntry)})


def _older(path: Path) -> Path:
    return path.with_name(f"{path.name}.1")


def _tail(path: Path) -> bytes:
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - READ_BYTES))
        return file.read(READ_BYTES)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    handle = os.open(path, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield
    finally:
        os.close(handle)
