"""Versions as folders on a disk, which may be shared: each moved in with one rename.

<folder>/<version id>/     card.json, weights.safetensors, and what else belongs to it
<folder>/current.json      the state of the store, only ever replaced as a whole, under a lock
<folder>/.<anything>       being written, or left by a crash
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from sspsam.files import replace_text, sha256_of_file, sync_folder
from sspsam.version_cards import DamagedVersionError, UnknownVersionError, VersionCard

CARD = "card.json"
CURRENT = "current.json"
LEFTOVER_AGE_S = 24 * 3600
"""What is being written is not older than this."""


class VersionFolders:
    """Where a store's versions are: folders. Making one opens nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_place = str(folder / CURRENT)

    def names(self) -> list[str]:
        """Names that a version has, or that cannot be given to one."""
        return [entry.name for entry in self._entries() if not entry.name.startswith(".")]

    def has(self, version_id: str) -> bool:
        return version_id in self.names() and (self.folder / version_id / CARD).is_file()

    def card(self, version_id: str) -> str:
        """Reads a card, as text.

        Raises:
            UnknownVersionError: there is none.
            DamagedVersionError: it is no text.
        """
        try:
            return (self.folder / version_id / CARD).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UnknownVersionError(f"no version {version_id!r}") from error
        except UnicodeDecodeError as error:
            raise DamagedVersionError(f"not a version card: {error}") from error

    def path(self, card: VersionCard) -> Path:
        """The folder of a version."""
        return self.folder / card.version_id

    def checked(self, card: VersionCard, name: str, sha256: str) -> Path:
        """A file of a version, when it is the one that was published.

        Raises:
            DamagedVersionError: it is missing or differs.
        """
        path = self.folder / card.version_id / name
        if not path.is_file():
            raise DamagedVersionError(f"{card.version_id}: {name} is missing")
        if sha256_of_file(path) != sha256:
            raise DamagedVersionError(f"{card.version_id}: {name} differs from what was published (sha256)")
        return path

    @contextmanager
    def aside(self) -> Iterator[Path]:
        """A folder to write a version into; it is gone afterwards, unless the version was claimed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        aside = self.folder / f".{uuid.uuid4().hex}"
        aside.mkdir()
        try:
            yield aside
        finally:
            shutil.rmtree(aside, ignore_errors=True)

    def upload(self, aside: Path) -> None:
        """Makes sure that what was written is on the disk."""
        for path in aside.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())

    def withdraw(self, aside: Path) -> None:
        """Nothing to take back: the folder goes with `aside`."""

    def claim(self, aside: Path, card: VersionCard) -> bool:
        """Makes a version of the folder; False when its id is taken, as a rename onto a folder fails."""
        replace_text(aside / CARD, card.to_json())
        try:
            os.rename(aside, self.folder / card.version_id)
        except OSError:
            if not (self.folder / card.version_id).exists():
                raise
            return False
        sync_folder(self.folder)
        return True

    def remove(self, card: VersionCard) -> None:
        """Takes a version away at once; then its files."""
        gone = self.folder / f".{uuid.uuid4().hex}"
        os.rename(self.folder / card.version_id, gone)
        sync_folder(self.folder)
        shutil.rmtree(gone)

    def size_bytes(self, card: VersionCard) -> int:
        return _size_bytes(self.folder / card.version_id)

    def leftovers(self) -> dict[str, int]:
        """What writers that crashed have left: name -> bytes."""
        oldest = time.time() - LEFTOVER_AGE_S
        hidden = (entry for entry in self._entries() if entry.name.startswith("."))
        return {entry.name: _size_bytes(entry) for entry in hidden if entry.stat().st_mtime < oldest}

    def remove_leftover(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def state(self) -> str | None:
        """Reads the state, None before anything was decided."""
        try:
            return (self.folder / CURRENT).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DamagedVersionError(f"{self.state_place} cannot be read: {error}") from error

    def change_state(self, change: Callable[[str | None], str]) -> None:
        """Replaces the state by what the function makes of it; one writer at a time."""
        self.folder.mkdir(parents=True, exist_ok=True)
        with (self.folder / ".lock").open("a") as handle:
            fcntl.flock(handle, fcntl.LOCK_EX)
            replace_text(self.folder / CURRENT, change(self.state()))

    def _entries(self) -> list[Path]:
        if not self.folder.is_dir():
            return []
        return sorted(entry for entry in self.folder.iterdir() if entry.is_dir())


def _size_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
