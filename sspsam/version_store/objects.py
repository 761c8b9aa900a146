"""Versions in an object store, by an fsspec URL: s3://bucket/folder, gs://..., and the like.

Object stores have neither rename nor locks, but create objects atomically, and can refuse to overwrite. So
objects are only created, never changed:

    <url>/<preset>/files/<random>/<name>   files of a version, uploaded first
    <url>/<preset>/cards/<version id>.json its card, created last: a version exists once its card does
    <url>/<preset>/states/<number>.json    states of the store; the highest number is current

Files are cached on this machine by sha256, and verified on each use.
"""

from __future__ import annotations

import json
import os
import shutil
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from functools import cached_property
from pathlib import Path
from typing import Any

from sspsam.files import sha256_of_file
from sspsam.version_store.cards import (
    DamagedVersionError,
    UnknownVersionError,
    UnreachableStoreError,
    VersionCard,
    VersionError,
)

LEFTOVER_AGE_S = 24 * 3600
"""Maximum age of files being uploaded."""
KEPT_STATES = 20
"""Number of states to keep; older ones are not needed."""
_NUMBER_DIGITS = 8
_SUFFIX = ".json"


class VersionObjects:
    """Storage of versions in objects. The constructor opens nothing.

    Args:
        url: fsspec URL; credentials and endpoints come from its libraries' usual sources.
        preset: Its versions are stored under this name below the URL.
        folder: Local cache of downloaded files.
        filesystem: Replaces the URL's own, for tests.
    """

    def __init__(self, url: str, preset: str, folder: Path, filesystem: Any = None) -> None:
        self.url = url.rstrip("/")
        self.preset = preset
        self.folder = folder
        self.state_place = f"{self.url}/{preset}/states"
        self._filesystem = filesystem
        self._cards: dict[str, str] = {}  # they never change

    @cached_property
    def _fs(self) -> Any:
        if self._filesystem is not None:
            return self._filesystem
        import fsspec

        with self._reaching():
            return fsspec.core.url_to_fs(self.url, use_listings_cache=False)[0]

    def names(self) -> list[str]:
        """IDs of all versions."""
        return sorted(name.removesuffix(_SUFFIX) for name in self._list("cards"))

    def has(self, version_id: str) -> bool:
        return version_id in self.names()

    def card(self, version_id: str) -> str:
        """Reads a card, as text.

        Raises:
            UnknownVersionError: no such version.
            DamagedVersionError: not text.
            UnreachableStoreError: it cannot be read.
        """
        if version_id not in self._cards:
            text = self._read(f"cards/{version_id}{_SUFFIX}")
            if text is None:
                raise UnknownVersionError(f"no version {version_id!r}")
            self._cards[version_id] = text
        return self._cards[version_id]

    def path(self, card: VersionCard) -> Path:
        """A local folder with all files of a version."""
        folder = self.folder / card.version_id
        folder.mkdir(parents=True, exist_ok=True)
        for name, sha256 in card.sha256.items():
            staged = folder / f".{uuid.uuid4().hex}"
            shutil.copyfile(self.checked(card, name, sha256), staged)
            os.replace(staged, folder / name)
        return folder

    def checked(self, card: VersionCard, name: str, sha256: str) -> Path:
        """A file of a version on this machine, downloaded if necessary, and verified.

        Raises:
            DamagedVersionError: it is missing or differs.
            UnreachableStoreError: it cannot be downloaded.
        """
        if len(sha256) != 64 or not sha256.isalnum():
            raise DamagedVersionError(f"{card.version_id}: {name} differs from what was published (sha256)")
        kept = self.folder / "by-sha256" / sha256 / name
        if kept.is_file() and sha256_of_file(kept) == sha256:
            return kept
        kept.parent.mkdir(parents=True, exist_ok=True)
        staged = kept.with_name(f".{uuid.uuid4().hex}")
        try:
            with self._reaching(passing=FileNotFoundError):
                self._fs.get_file(self._place(f"files/{self._location(card)}/{name}"), str(staged))
            if sha256_of_file(staged) != sha256:
                raise DamagedVersionError(
                    f"{card.version_id}: {name} differs from what was published (sha256)"
                )
            os.replace(staged, kept)
        except FileNotFoundError as error:
            raise DamagedVersionError(f"{card.version_id}: {name} is missing") from error
        finally:
            staged.unlink(missing_ok=True)
        return kept

    @contextmanager
    def staging(self) -> Iterator[Path]:
        """A local folder in which to write a version; removed afterwards."""
        staged = self.folder / f".{uuid.uuid4().hex}"
        staged.mkdir(parents=True)
        try:
            yield staged
        finally:
            shutil.rmtree(staged, ignore_errors=True)

    def upload(self, staged: Path) -> None:
        """Uploads the files, which are not a version yet."""
        for path in sorted(staged.iterdir()):
            with self._reaching():
                self._fs.put_file(str(path), self._place(f"files/{staged.name[1:]}/{path.name}"))

    def discard(self, staged: Path) -> None:
        """Removes uploaded files that did not become a version."""
        self.remove_leftover(staged.name[1:])

    def commit(self, staged: Path, card: VersionCard) -> bool:
        """Turns uploaded files into a version, by creating its card; False if its ID is taken."""
        text = json.dumps({"files": staged.name[1:], **asdict(card)}, indent=2, sort_keys=True)
        return self._create("cards", card.version_id, text)

    def remove(self, card: VersionCard) -> None:
        """Removes a version atomically by its card; then its files."""
        location = self._location(card)
        with self._reaching():
            self._fs.rm_file(self._place(f"cards/{card.version_id}{_SUFFIX}"))
        self._cards.pop(card.version_id, None)
        self.remove_leftover(location)

    def size_bytes(self, card: VersionCard) -> int:
        return self._size_bytes(self._location(card))

    def leftovers(self) -> dict[str, int]:
        """Leftovers of crashed writers: name -> bytes. Files of unknown age are kept."""
        used = {self._location_in(self.card(version_id)) for version_id in self.names()}
        oldest = time.time() - LEFTOVER_AGE_S
        return {
            name: self._size_bytes(name)
            for name in self._list("files")
            if name not in used and 0 < self._newest(name) < oldest
        }

    def remove_leftover(self, name: str) -> None:
        with self._reaching():
            self._fs.rm(self._place(f"files/{name}"), recursive=True)

    def state(self) -> str | None:
        """Reads the state; None in a new store."""
        return self._newest_state()[1]

    def change_state(self, change: Callable[[str | None], str]) -> None:
        """Appends the state returned by the function; repeats it if another writer was faster."""
        while True:
            number, text = self._newest_state()
            if self._create("states", f"{number + 1:0{_NUMBER_DIGITS}d}", change(text)):
                break
        for name in self._list("states")[:-KEPT_STATES]:
            with suppress(FileNotFoundError), self._reaching(passing=FileNotFoundError):
                self._fs.rm_file(self._place(f"states/{name}"))

    def _newest_state(self) -> tuple[int, str | None]:
        numbers = [int(stem) for name in self._list("states") if (stem := name[: -len(_SUFFIX)]).isdecimal()]
        if not numbers:
            return 0, None
        number = max(numbers)
        text = self._read(f"states/{number:0{_NUMBER_DIGITS}d}{_SUFFIX}")
        return (number, text) if text is not None else self._newest_state()  # removed meanwhile

    def _location(self, card: VersionCard) -> str:
        return self._location_in(self.card(card.version_id))

    def _location_in(self, card_text: str) -> str:
        """Location of a version's files, from its card.

        Raises:
            DamagedVersionError: the card has none.
        """
        try:
            location = json.loads(card_text)["files"]
        except (ValueError, TypeError, LookupError, RecursionError) as error:
            raise DamagedVersionError(f"not a version card: {error}") from error
        if not (isinstance(location, str) and location.isalnum()):
            raise DamagedVersionError(f"not a version card: its files are at {location!r:.60}")
        return location

    def _create(self, kind: str, name: str, text: str) -> bool:
        """Creates an object; False if the name exists."""
        try:
            with self._reaching(passing=FileExistsError):
                self._fs.pipe_file(self._place(f"{kind}/{name}{_SUFFIX}"), text.encode(), mode="create")
        except FileExistsError:
            return False
        return True

    def _read(self, name: str) -> str | None:
        try:
            with self._reaching(passing=FileNotFoundError):
                data: bytes = self._fs.cat_file(self._place(name))
            return data.decode()
        except FileNotFoundError:
            return None
        except UnicodeDecodeError as error:
            raise DamagedVersionError(f"{self.url}/{self.preset}/{name} is not text: {error}") from error

    def _list(self, kind: str) -> list[str]:
        """Names of the objects of a kind, in order."""
        try:
            with self._reaching(passing=FileNotFoundError):
                found = self._fs.ls(self._place(kind), detail=False)
        except FileNotFoundError:
            return []
        return sorted(name for path in found if (name := str(path).rstrip("/").rpartition("/")[2]) != kind)

    def _size_bytes(self, location: str) -> int:
        with self._reaching():
            return int(self._fs.du(self._place(f"files/{location}")))

    def _newest(self, location: str) -> float:
        """Creation time of the newest file, in seconds since 1970; 0 if the store does not tell."""
        with self._reaching():
            found = self._fs.find(self._place(f"files/{location}"), detail=True).values()
        times = [entry.get("LastModified") or entry.get("mtime") or entry.get("created") for entry in found]
        return max((getattr(at, "timestamp", lambda at=at: float(at or 0))() for at in times), default=0.0)

    def _place(self, name: str) -> str:
        return f"{self.url}/{self.preset}/{name}"

    @contextmanager
    def _reaching(self, *, passing: type[Exception] = VersionError) -> Iterator[None]:
        """Converts exceptions of the store's library, except those handled by the caller.

        Raises:
            UnreachableStoreError: it does not respond, or refuses.
        """
        try:
            yield
        except (VersionError, passing):
            raise
        except Exception as error:  # the libraries' errors have no better common base class
            raise UnreachableStoreError(
                f"{self.url}: {type(error).__name__}: {error} (VERSIONS_URL names this store)"
            ) from error
