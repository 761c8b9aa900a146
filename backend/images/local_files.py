"""Images in local files, only below folders named by the operator."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import unquote, urlsplit

from backend.errors import ImageFetchError, ImageFormatError, ImageMissingError

_FOLDER = os.O_DIRECTORY | os.O_CLOEXEC | getattr(os, "O_PATH", os.O_RDONLY)
"""macOS has no O_PATH, with which a folder needs no permission to be listed."""


def read_local(url: str, roots: Sequence[Path], max_bytes: int) -> bytes:
    """Reads the file of a `file://` URL.

    Args:
        url: On this host.
        roots: The file must lie below one of these folders after resolving `..` and symbolic links.
        max_bytes: Larger files are not read.

    Raises:
        ImageMissingError: it is not below a root, or not a regular file.
        ImageFetchError: it cannot be read.
        ImageFormatError: it is too large.
    """
    path = _real_path(url)
    tops = [root.resolve() for root in roots]
    root = next((top for top in tops if path is not None and top in path.parents), None)
    if path is None or root is None:
        raise ImageMissingError("the task's image is a file outside the allowed folders: see IMAGE_ROOTS")
    try:
        handle = _open_below(root, path)
    except OSError as error:
        raise ImageFetchError(f"cannot read the image file: {error.strerror}") from error
    if not stat.S_ISREG(os.fstat(handle).st_mode):
        os.close(handle)
        raise ImageMissingError("the task's image is not a regular file")
    with open(handle, "rb") as file:
        data = file.read(max_bytes + 1)
    if len(data) > max_bytes:
        raise ImageFormatError(f"the image file is larger than {max_bytes} bytes")
    return data


def _open_below(root: Path, path: Path) -> int:
    """Opens a resolved path, folder by folder from the root down.

    The path has no links: one that is found here was put in its place since, and may lead anywhere. Opening
    the path as a whole would follow it, unless it is the last part.
    """
    *folders, name = path.relative_to(root).parts
    folder = os.open(root, _FOLDER)
    try:
        for part in folders:
            inner = os.open(part, _FOLDER | os.O_NOFOLLOW, dir_fd=folder)
            os.close(folder)
            folder = inner
        # A pipe must not block us.
        return os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=folder)
    finally:
        os.close(folder)


def _real_path(url: str) -> Path | None:
    """The path without `..` and links; None if it does not exist on this host."""
    try:
        parts = urlsplit(url)
        path = Path(unquote(parts.path))
        if parts.netloc not in ("", "localhost") or not path.is_absolute():
            return None
        return None if _is_loop(path) else path.resolve()
    except (OSError, ValueError):  # a NUL
        return None


def _is_loop(path: Path) -> bool:
    """Whether links lead back to themselves: then `Path.resolve` raises, or returns the path, by version."""
    try:
        os.path.realpath(path, strict=True)
    except OSError as error:
        return error.errno == errno.ELOOP
    return False
