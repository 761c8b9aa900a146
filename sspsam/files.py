"""Files that readers see either as they were or whole, also after a crash; and what is in them."""

from __future__ import annotations

import hashlib
import os
import uuid
from pathlib import Path


def replace_text(path: Path, text: str) -> None:
    """Writes a text file in the place of the one that is there: aside first, then moved in.

    Raises:
        OSError: it cannot be written; the old file is unchanged.
    """
    aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
    try:
        with aside.open("w", encoding="utf-8") as handle:
            handle.write(text)
            handle.flush()
            os.fsync(handle.fileno())
        os.replace(aside, path)
    finally:
        aside.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Makes renames in a folder last through a power cut."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sha256_of_file(path: Path) -> str:
    """The file's sha256, in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
