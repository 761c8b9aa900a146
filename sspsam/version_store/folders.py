"""Versions as folders on a disk, which may be shared; each is moved in by one rename.

<folder>/<version id>/     card.json, weights.safetensors, and further files
<folder>/current.json      the state of the store, only replaced as a whole, under a lock
<folder>/.<anything>       being written, or left behind by a crash
"""

from __future__ import annotations

import fcntl
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from sspsam.files import replace_text, sha256_of_file, sync_folder
from sspsam.version_store.cards import DamagedVersionError, UnknownVersionError, VersionCard

CARD = "card.json"
CURRENT = "current.json"
LEFTOVER_AGE_S = 24 * 3600
"""Maximum age of files being written."""


class VersionFolders:
    """Storage of versions in folders. The constructor opens nothing."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.state_place = str(folder / CURRENT)

    def names(self) -> list[str]:
        """Names of versions, and names that are reserved."""
        return [entry.name for entry in self._entries() if not entry.name.startswith(".")]

    def has(self, version_id: str) -> bool:
        return version_id in self.names() and (self.folder / version_id / CARD).is_file()

    def card(self, version_id: str) -> str:
        """Reads a card, as text.

        Raises:
            UnknownVersionError: no such version.
            DamagedVersionError: not a file, or not text.
            OSError: the disk does not let it be read, perhaps for the moment.
        """
        try:
            return (self.folder / version_id / CARD).read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise UnknownVersionError(f"no version {version_id!r}") from error
        except (UnicodeDecodeError, IsADirectoryError, NotADirectoryError) as error:
            raise DamagedVersionError(f"not a version card: {error}") from error

    def path(self, card: VersionCard) -> Path:
        """The folder of a version."""
        return self.folder / card.version_id

    def checked(self, card: VersionCard, name: str, sha256: str) -> Path:
        """A file of a version, after verification.

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
    def staging(self) -> Iterator[Path]:
        """A folder in which to write a version; removed afterwards, unless the version was claimed."""
        self.folder.mkdir(parents=True, exist_ok=True)
        staged = self.folder / f".{uuid.uuid4().hex}"
        staged.mkdir()
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def upload(self, staged: Path) -> None:
        """Flushes written files to disk."""
        for path in staged.iterdir():
            with path.open("rb") as handle:
                os.fsync(handle.fileno())

    def discard(self, staged: Path) -> None:
        """Nothing to undo: the folder is removed by `staging`."""

    def commit(self, staged: Path, card: VersionCard) -> bool:
        """Turns the folder into a version; False if its ID is taken, since a rename onto a folder fails."""
        replace_text(staged / CARD, card.to_json())
        try:
            os.rename(staged, self.folder / card.version_id)
        except OSError:
            if not (self.folder / card.version_id).exists():
                raise
            return False
        sync_folder(self.folder)
        return True

    def remove(self, card: VersionCard) -> None:
        """Removes a version atomically; then its files."""
        gone = self.folder / f".{uuid.uuid4().hex}"
        os.rename(self.folder / card.version_id, gone)
        sync_folder(self.folder)
        shutil.rmtree(gone)

    def size_bytes(self, card: VersionCard) -> int:
        return _size_bytes(self.folder / card.version_id)

    def leftovers(self) -> dict[str, int]:
        """Leftovers of crashed writers: name -> bytes."""
        oldest = time.time() - LEFTOVER_AGE_S
        found = {}
        for entry in self._entries():
            with suppress(FileNotFoundError):  # a writer has published it meanwhile
                if entry.name.startswith(".") and entry.stat().st_mtime < oldest:
                    found[entry.name] = _size_bytes(entry)
        return found

    def remove_leftover(self, name: str) -> None:
        shutil.rmtree(self.folder / name)

    def state(self) -> str | None:
        """Reads the state; None in a new store."""
        try:
            return (self.folder / CURRENT).read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DamagedVersionError(f"{self.state_place} cannot be read: {error}") from error

    def change_state(self, change: Callable[[str | None], str]) -> None:
        """Replaces the state by the function's result; one writer at a time."""
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
