"""Atomic file writes, also across crashes, and checksums."""

from __future__ import annotations

import hashlib
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """A temporary file next to a path, for the caller to write; it is renamed to the path at the end.

    Its name is unique, so that several processes may write concurrently: the last one wins. On errors the
    path is unchanged.
    """
    staged = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        yield staged
        os.replace(staged, path)
    finally:
        with suppress(OSError):  # a read-only file system refuses this too: the first error counts
            staged.unlink(missing_ok=True)


def replace_text(path: Path, text: str) -> None:
    """Replaces a text file atomically.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    with replacing(path) as staged, staged.open("w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(handle.fileno())
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder durable across power failures."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of_file(path: Path) -> str:
    """The file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
