"""The versions that serve the lines in use: resolved from a snapshot of the version store, and followed.

A line is in use once it was asked. Each has its own swaps, and its own refusal: a version that cannot be
loaded leaves its line with the version that served before, and all other lines alone.
"""

from __future__ import annotations

import logging
from collections import OrderedDict
from collections.abc import Iterator
from dataclasses import dataclass
from threading import Lock

from backend.errors import TooLateError
from backend.metrics import Metrics
from backend.serving.batch_queue import Caller
from backend.serving.loaded_versions import LoadedVersion, LoadedVersions
from sspsam import VersionStore
from sspsam.version_store.lines import DEFAULT_LINE, StoreState
from sspsam.version_store.store import UnreachableStoreError, VersionError

PASSING = (UnreachableStoreError, OSError)
"""Errors that say nothing about a version itself, as does a lack of memory."""
MOST_LINES = 1000
"""Lines in use that are kept: callers name projects, and the line that was asked longest ago goes."""
MOST_DIGITS = 18
"""Of a project's ID; Label Studio's are 32-bit numbers."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Refusal:
    """A promoted version that could not be loaded."""

    line: str
    version: str
    reason: str
    serving: str
    """The version that serves the line instead."""


class ServedLines:
    """Lines in use, and their versions. Thread-safe; the constructor reads nothing.

    Args:
        versions: The store. It is read by `read` and `refresh` alone, never for a request.
        loaded: Versions in memory.
        metrics: Counts swaps.
    """

    def __init__(self, versions: VersionStore, loaded: LoadedVersions, metrics: Metrics) -> None:
        self._versions = versions
        self._loaded = loaded
        self._metrics = metrics
        self._base = versions.base_version
        self._state: StoreState | None = None
        self._serving: OrderedDict[str, str] = OrderedDict()  # the line asked longest ago first
        self._refused: dict[str, str] = {}
        self._away: set[str] = set()  # could not be fetched at the last try
        self._lock = Lock()

    def line_of(self, project: str) -> str:
        """The line of a project; empty for the line of requests without a project."""
        number = int(project) if project.isdecimal() and len(project) <= MOST_DIGITS else None
        return DEFAULT_LINE if self._state is None else self._state.line_of(number)

    def version_of(self, project: str) -> str:
        """The version that serves a project; never waits."""
        line = self.line_of(project)
        return self._serving.get(line) or next(self._candidates(line))

    def in_use(self) -> dict[str, str]:
        """Line -> version, of all lines that were asked."""
        with self._lock:
            return dict(sorted(self._serving.items()))

    def refusals(self) -> list[Refusal]:
        """By line, of the lines in use."""
        wanted = {line: self._wanted(line) for line in self.in_use()}
        return [
            Refusal(line, version, self._refused[version], self._serving.get(line, self._base))
            for line, version in wanted.items()
            if version in self._refused
        ]

    def use(self, project: str, caller: Caller) -> LoadedVersion:
        """The version that serves a project, loaded; it stays in memory until it is released.

        Raises:
            TooLateError: the caller timed out.
        """
        line = self.line_of(project)
        while True:
            version = self._serving.get(line) or ""
            if not self._is_usable(version):
                version = next(self._candidates(line))
            try:
                used = self._load(version, caller)
            except TooLateError:
                raise
            except Exception as error:  # whatever the error, the line must be served
                self._note_failure(line, version, error)
                continue
            with self._lock:
                # Not if another version was promoted during the load: the next request takes that one.
                is_first = not self._is_usable(self._serving.get(line, ""))
                if is_first and version == next(self._candidates(line)):
                    self._serving[line] = version
                self._note_use(line)
            return used

    def _note_use(self, line: str) -> None:
        """Keeps the lines that were asked last. The lock is held."""
        if line in self._serving:
            self._serving.move_to_end(line)
        while len(self._serving) > MOST_LINES:
            self._serving.popitem(last=False)

    def read(self) -> None:
        """Reads the store's state; the last one stays if it is unreadable."""
        try:
            self._state = self._versions.state()
        except (VersionError, OSError):
            logger.exception("cannot read the version store")

    def forgive(self) -> None:
        """Tries refused versions again at the next refresh."""
        self._refused = {}

    def refresh(self) -> None:
        """Reads the store, and swaps the lines in use whose version has changed.

        A version is loaded before it serves, beside the running passes, if the line is in memory; a line that
        is not loads its version for its next request.
        """
        self.read()
        self._away = set()
        for line, version in self.in_use().items():
            wanted = next(self._candidates(line))
            if wanted == version:
                continue
            if version != self._base and version not in self._loaded:
                with self._lock:
                    self._serving.pop(line, None)
                continue
            try:
                self._load(wanted, Caller("versions")).release()
            except Exception as error:  # whatever the error, the serving version must stay
                self._note_failure(line, wanted, error)
                continue
            self._swap(line, wanted)

    def _swap(self, line: str, version: str) -> None:
        with self._lock:
            before = self._serving.get(line)
            self._serving[line] = version
            is_needed = before in self._serving.values()
        if before is not None and not is_needed:
            self._loaded.drop(before)
        logger.info("line %r is now served by %s", line, version)
        self._metrics.swaps.inc()

    def _load(self, version: str, caller: Caller) -> LoadedVersion:
        if version == self._base:
            return LoadedVersion(version, None, lambda: None)
        return self._loaded.use(version, caller)

    def _note_failure(self, line: str, version: str, error: Exception) -> None:
        from sspsam.runtime.out_of_memory import is_out_of_memory

        if isinstance(error, PASSING) or is_out_of_memory(
            error
        ):  # the version may be good: retry at the next refresh
            logger.warning("line %r: cannot load version %s yet: %s", line, version, error)
            self._away.add(version)
        else:
            logger.error("line %r: cannot load version %s", line, version, exc_info=error)
            self._refused[version] = str(error)

    def _wanted(self, line: str) -> str:
        return self._base if self._state is None else self._state.current(line)

    def _candidates(self, line: str) -> Iterator[str]:
        """Versions that may serve a line, best first: the store's, the one that serves, those before it.

        A line without its own version goes on with what serves requests without a project.
        """
        versions = [self._wanted(line), self._serving.get(line, "")]
        if self._state is not None:
            if not self._state.stored_line(line).version_id:
                versions.append(self._serving.get(DEFAULT_LINE, ""))
            versions += reversed(self._state.line(line).stack)
        yield from filter(self._is_usable, versions)
        yield self._base

    def _is_usable(self, version: str) -> bool:
        return bool(version) and version not in self._refused and version not in self._away
