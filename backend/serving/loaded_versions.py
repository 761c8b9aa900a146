"""Versions in memory: loaded on use beside the running passes, bounded in bytes, least recently used out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from threading import Condition
from typing import TYPE_CHECKING

from backend.errors import TooLateError
from backend.serving.batch_queue import Caller

if TYPE_CHECKING:
    from sspsam import SSPSAM


@dataclass
class _Entry:
    """A version in memory, or being loaded."""

    size_bytes: int = 0
    """Of its tensors; 0 until there is room for them."""
    model: SSPSAM | None = None
    users: int = 0
    loading: bool = True
    leaving: bool = False
    """It is removed once it is no longer in use, and accepts no further users."""
    error: Exception | None = None
    """Why it could not be loaded."""


@dataclass(frozen=True)
class LoadedVersion:
    """A version in use: it stays in memory until `release` is called, once."""

    version: str
    model: SSPSAM | None
    """None for the base version: the predictor's own model."""
    release: Callable[[], None] = field(compare=False)


class LoadedVersions:
    """Models by version. Thread-safe; the constructor loads nothing.

    A version is loaded in the thread of the first request that needs it; requests for others go on meanwhile.
    Without room, it waits for the least recently used versions to be released. The limit is exceeded only by
    a single version that is larger.

    Args:
        max_bytes: Limit of the tensors of all versions.
        find: Returns the verified file of a version.
        load: Loads a model from such a file.
    """

    def __init__(self, max_bytes: int, find: Callable[[str], Path], load: Callable[[Path], SSPSAM]) -> None:
        self._max_bytes = max_bytes
        self._find = find
        self._load = load
        self._entries: OrderedDict[str, _Entry] = OrderedDict()  # least recently used first
        self._changed = Condition()
        self._makes_room = False

    def __contains__(self, version: str) -> bool:
        entry = self._entries.get(version)
        return entry is not None and not entry.loading and not entry.leaving

    def __len__(self) -> int:
        """Number of versions in memory."""
        with self._changed:
            return sum(not entry.loading for entry in self._entries.values())

    @property
    def size_bytes(self) -> int:
        """Of all versions, including those being loaded."""
        with self._changed:
            return self._size_bytes()

    def use(self, version: str, caller: Caller) -> LoadedVersion:
        """Loads a version, unless it is in memory, and keeps it there until it is released.

        Raises:
            TooLateError: the caller timed out.
            Exception: it cannot be loaded; any exception of `find` and `load`.
        """
        entry, is_new = self._enter(version, caller)
        if is_new:
            self._fill(version, entry, caller)
        return LoadedVersion(version, entry.model, lambda: self._release(version, entry))

    def drop(self, version: str) -> None:
        """Removes a version that is no longer needed, once it is no longer in use."""
        with self._changed:
            entry = self._entries.get(version)
            if entry is not None and not entry.loading:
                self._let_go(version, entry)

    def _enter(self, version: str, caller: Caller) -> tuple[_Entry, bool]:
        """The entry with one more user, and whether the caller must load it."""
        with self._changed:
            while True:
                entry = self._entries.get(version)
                if entry is None:
                    entry = self._entries[version] = _Entry(users=1)
                    return entry, True
                if not entry.loading and not entry.leaving:
                    entry.users += 1
                    self._entries.move_to_end(version)
                    return entry, False
                self._wait(caller)
                if entry.error is not None:
                    raise entry.error

    def _fill(self, version: str, entry: _Entry, caller: Caller) -> None:
        try:
            path = self._find(version)
            self._make_room(entry, path.stat().st_size, caller)
            entry.model = self._load(path)
        except BaseException as error:
            with self._changed:
                # A timeout is the caller's own: others that wait for this version load it themselves.
                if isinstance(error, Exception) and not isinstance(error, TooLateError):
                    entry.error = error
                self._remove(version, entry)
            raise
        with self._changed:
            entry.loading = False
            self._entries.move_to_end(version)
            self._changed.notify_all()

    def _make_room(self, entry: _Entry, size_bytes: int, caller: Caller) -> None:
        """Removes other versions until there is room for one more; several callers take turns."""
        with self._changed:
            while self._makes_room:
                self._wait(caller)
            self._makes_room = True
            try:
                while self._size_bytes() and self._size_bytes() + size_bytes > self._max_bytes:
                    if not self._remove_oldest():
                        self._wait(caller)
                entry.size_bytes = size_bytes
            finally:
                self._makes_room = False
                self._changed.notify_all()

    def _remove_oldest(self) -> bool:
        """Removes the least recently used version; False if it has to be waited for."""
        loaded = [(name, entry) for name, entry in self._entries.items() if not entry.loading]
        unused = [(name, entry) for name, entry in loaded if not entry.users]
        if unused:
            self._let_go(*unused[0])
            return True
        if loaded and not any(entry.leaving for _, entry in loaded):
            self._let_go(*loaded[0])
        return False

    def _let_go(self, version: str, entry: _Entry) -> None:
        entry.leaving = True
        if not entry.users:
            self._remove(version, entry)

    def _release(self, version: str, entry: _Entry) -> None:
        with self._changed:
            entry.users -= 1
            if entry.leaving and not entry.users:
                self._remove(version, entry)
            self._changed.notify_all()  # it may be removed now

    def _remove(self, version: str, entry: _Entry) -> None:
        entry.model = None  # users that have released it may still hold the entry
        del self._entries[version]
        self._changed.notify_all()

    def _size_bytes(self) -> int:
        return sum(entry.size_bytes for entry in self._entries.values())

    def _wait(self, caller: Caller) -> None:
        """Waits for a change.

        Raises:
            TooLateError: the caller timed out.
        """
        timeout_s = None if caller.left_s == float("inf") else caller.left_s
        if timeout_s == 0 or not self._changed.wait(timeout_s):
            raise TooLateError("the version was not loaded in time: ask again")
