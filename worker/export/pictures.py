"""Pictures of an export: the files as they were uploaded, and upright.

Masks are in the frame that annotators see, with EXIF orientation applied. Not every tool applies it, so a
picture that is stored turned is written upright; all others are copied byte for byte.
"""

from __future__ import annotations

import os
import shutil
import struct
import uuid
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image, UnidentifiedImageError

from backend.errors import ImageFormatError
from backend.images.store import FORMATS
from sspsam.images.image_io import as_displayed, without_xmp
from worker.export.file_names import DEFAULT_EXTENSION, FORMAT_EXTENSIONS

ORIENTATION = 0x0112
"""EXIF tag; 1 is upright, 5 to 8 are on their side."""
JPEG_QUALITY = 95
"""Of JPEGs that are turned upright, without chroma subsampling."""
_DAMAGED = (OSError, ValueError, SyntaxError, TypeError, LookupError, EOFError, OverflowError, struct.error)


@dataclass(frozen=True)
class StoredPicture:
    """A picture's file in the image cache."""

    path: Path
    digest: str
    """SHA-256 of its bytes."""
    hw: tuple[int, int]
    """(H, W) as displayed."""
    extension: str
    """By its content."""
    is_upright: bool


def read_header(path: Path, digest: str) -> StoredPicture:
    """Reads what a picture's header says.

    Raises:
        ImageFormatError: it cannot be read.
    """
    try:
        with Image.open(path, formats=FORMATS) as picture:
            orientation = without_xmp(picture).getexif().get(ORIENTATION, 1)
            width, height = picture.size
            extension = FORMAT_EXTENSIONS.get(picture.format or "", DEFAULT_EXTENSION)
    except (UnidentifiedImageError, *_DAMAGED) as error:
        raise ImageFormatError(f"the image file cannot be read: {error}") from error
    # Pillow gives TIFF's sides as displayed, and turns it itself.
    on_its_side = orientation in (5, 6, 7, 8) and extension != FORMAT_EXTENSIONS["TIFF"]
    hw = (width, height) if on_its_side else (height, width)
    return StoredPicture(path, digest, hw, extension, orientation not in range(2, 9))


def write_picture(picture: StoredPicture, target: Path) -> None:
    """Writes a picture as its masks lie on it, replacing the file.

    Raises:
        ImageFormatError: it cannot be decoded, and so not be turned.
        OSError: it cannot be written.
    """
    target.parent.mkdir(parents=True, exist_ok=True)
    staged = target.with_name(f".{uuid.uuid4().hex}{target.suffix}")
    try:
        if picture.is_upright:
            shutil.copyfile(picture.path, staged)
        else:
            _write_upright(picture.path, staged)
        os.replace(staged, target)
    except BaseException:
        with suppress(OSError):
            staged.unlink(missing_ok=True)
        raise


class PictureFolder:
    """Writes the pictures of an export into a folder.

    Args:
        root: Created if missing; its other files stay.
    """

    def __init__(self, root: Path) -> None:
        self._root = root

    def add(self, picture: StoredPicture, file_name: str) -> None:
        """Writes a picture under its name in the export.

        Raises:
            ImageFormatError: it cannot be decoded, or its name is that of a folder.
            OSError: it cannot be written.
        """
        try:
            write_picture(picture, self._root / file_name)
        except (FileExistsError, IsADirectoryError, NotADirectoryError) as error:
            raise ImageFormatError(f"{file_name} is a file and a folder") from error


def _write_upright(source: Path, target: Path) -> None:
    try:
        with Image.open(source, formats=FORMATS) as picture:
            # Phones write a JPEG with further pictures in it as MPO; the first one is exported.
            file_format = "JPEG" if picture.format == "MPO" else picture.format
            upright = as_displayed(picture)
    except (UnidentifiedImageError, *_DAMAGED) as error:
        raise ImageFormatError(f"the image file is damaged: {error}") from error
    options: dict[str, dict[str, Any]] = {
        "JPEG": {"quality": JPEG_QUALITY, "subsampling": 0},
        "WEBP": {"lossless": True},
    }
    profile = {} if (icc := picture.info.get("icc_profile")) is None else {"icc_profile": icc}
    upright.save(target, file_format, **options.get(file_format or "", {}), **profile)
