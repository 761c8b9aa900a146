"""Where versions lie: what a store asks of such a place, and which place a URL means."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Protocol
from urllib.parse import unquote, urlsplit

from sspsam.version_cards import VersionCard
from sspsam.version_folders import VersionFolders
from sspsam.version_objects import VersionObjects

VERSIONS_URL_VARIABLE = "VERSIONS_URL"
"""Environment: where versions lie, if not below MODEL_DIR."""


class VersionFiles(Protocol):
    """A place for versions; VersionFolders and VersionObjects say what each does."""

    folder: Path
    """On this machine."""
    state_place: str
    """For messages."""

    def names(self) -> list[str]: ...
    def has(self, version_id: str) -> bool: ...
    def card(self, version_id: str) -> str: ...
    def path(self, card: VersionCard) -> Path: ...
    def checked(self, card: VersionCard, name: str, sha256: str) -> Path: ...
    def aside(self) -> AbstractContextManager[Path]: ...
    def upload(self, aside: Path) -> None: ...
    def withdraw(self, aside: Path) -> None: ...
    def claim(self, aside: Path, card: VersionCard) -> bool: ...
    def remove(self, card: VersionCard) -> None: ...
    def size_bytes(self, card: VersionCard) -> int: ...
    def leftovers(self) -> dict[str, int]: ...
    def remove_leftover(self, name: str) -> None: ...
    def state(self) -> str | None: ...
    def change_state(self, change: Callable[[str | None], str]) -> None: ...


def check_versions_url(url: str) -> None:
    """Refuses what cannot be a store's URL.

    Raises:
        ValueError: there is no scheme, no place, nothing that reads such URLs, or nothing that can make an
            object only where there is none: writers at once would then lose versions.
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
        raise ValueError(f"{url!r}: {parts.scheme}:// cannot refuse to overwrite, which versions rely on")


def open_files(root: Path, preset: str, url: str) -> VersionFiles:
    """The place of a preset's versions: below MODEL_DIR, or where a URL says. Opens nothing."""
    if not url:
        return VersionFolders(root / "versions" / preset)
    if url.startswith("file://"):
        return VersionFolders(Path(unquote(urlsplit(url).path)) / preset)
    return VersionObjects(url, preset, root / "versions-fetched" / preset)
