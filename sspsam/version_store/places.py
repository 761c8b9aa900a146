"""Storage of versions: the interface that a store needs, and its selection by URL."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from sspsam.version_store.cards import VersionCard
from sspsam.version_store.folders import VersionFolders
from sspsam.version_store.objects import VersionObjects

VERSIONS_URL_VARIABLE = "VERSIONS_URL"
"""Environment variable: storage of versions, if not below MODEL_DIR."""


class VersionFiles(Protocol):
    """A storage of versions; see VersionFolders and VersionObjects for the methods."""

    folder: Path
    """On this machine."""
    state_place: str
    """For messages."""

    def names(self) -> list[str]: ...
    def has(self, version_id: str) -> bool: ...
    def card(self, version_id: str) -> str: ...
    def path(self, card: VersionCard) -> Path: ...
    def checked(self, card: VersionCard, name: str, sha256: str) -> Path: ...
    def staging(self) -> AbstractContextManager[Path]: ...
    def upload(self, staged: Path) -> None: ...
    def discard(self, staged: Path) -> None: ...
    def commit(self, staged: Path, card: VersionCard) -> bool: ...
    def remove(self, card: VersionCard) -> None: ...
    def size_bytes(self, card: VersionCard) -> int: ...
    def leftovers(self) -> dict[str, int]: ...
    def remove_leftover(self, name: str) -> None: ...
    def state(self) -> str | None: ...
    def change_state(self, change: Callable[[str | None], str]) -> None: ...


def check_versions_url(url: str) -> None:
    """Checks a store's URL.

    Raises:
        ValueError: no scheme, no path, no filesystem for it, or one without exclusive creation of objects:
            concurrent writers would then lose versions.
    """
    from fsspec import AbstractFileSystem
    from fsspec.registry import get_filesystem_class

    parts = urlsplit(url)
    if not parts.scheme or not (parts.netloc or parts.path.strip("/")):
        raise ValueError(f"expected a URL such as s3://bucket/folder or file:///folder, got {url!r}")
    if parts.scheme == "file" and parts.netloc:
        raise ValueError(f"expected three slashes, as in file:///folder, got {url!r}")
    try:
        reader = get_filesystem_class(parts.scheme)
    except (ValueError, ImportError) as error:
        raise ValueError(f"{url!r}: {error}") from error
    looks_before_it_writes = getattr(reader, "_pipe_file", reader.pipe_file) is AbstractFileSystem.pipe_file
    if parts.scheme != "file" and looks_before_it_writes:
        raise ValueError(f"{url!r}: {parts.scheme}:// cannot refuse to overwrite, which versions require")


def open_files(root: Path, preset: str, url: str) -> VersionFiles:
    """The storage of a preset's versions: below MODEL_DIR, or at a URL. Opens nothing."""
    if not url:
        return VersionFolders(root / "versions" / preset)
    if url.startswith("file://"):
        return VersionFolders(Path(unquote(urlsplit(url).path)) / preset)
    return VersionObjects(url, preset, root / "versions-fetched" / preset)
