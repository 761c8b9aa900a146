"""Where published data sets lie on disk, and what is said when a part of one is not there."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Iterator, Sequence
from io import BytesIO
from pathlib import Path
from typing import Any, ClassVar

import ijson
import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from finetune.data.sample import DatasetFileError
from sspsam.images.image_io import PictureError, read_picture

DATA_ROOT_VARIABLE = "SSPSAM_DATA"
"""Environment: folder of the published data sets."""
DEFAULT_DATA_ROOT = "data"


def data_root(option: str | None) -> Path:
    """The folder of published data sets: the option, else `SSPSAM_DATA`, else `data` here."""
    return Path(option or os.environ.get(DATA_ROOT_VARIABLE) or DEFAULT_DATA_ROOT)


def find(candidates: Sequence[Path], what: str, source: str, exists: Callable[[Path], bool]) -> Path:
    """The first of some places that is there.

    Args:
        candidates: Where to look, in this order.
        what: Name of the thing, for the message.
        source: Where a person gets it, for the message.
        exists: `Path.is_file` or `Path.is_dir`.

    Raises:
        DatasetFileError: it is in none of the places.
    """
    for candidate in candidates:
        if exists(candidate):
            return candidate
    looked = " and ".join(str(candidate) for candidate in candidates)
    raise DatasetFileError(
        f"{what} is missing: looked for {looked}; get it from {source}, or name another folder with "
        f"{DATA_ROOT_VARIABLE} or ?root="
    )


def stream_json(path: Path, prefix: str) -> Iterator[dict[str, Any]]:
    """Objects of a JSON file one by one, so that a large file never lies in memory whole.

    Args:
        path: The file.
        prefix: Where they are: `item` in a list, `annotations.item` in that list of an object.

    Raises:
        DatasetFileError: it is no JSON, or no list of objects.
    """
    with path.open("rb") as file:
        try:
            for value in ijson.items(file, prefix, use_float=True):
                if not isinstance(value, dict):
                    raise DatasetFileError(f"{path}: expected objects at {prefix}, got {value!r:.40}")
                yield value
        except ijson.JSONError as error:
            raise DatasetFileError(f"{path} is damaged or is no JSON: {error}") from error


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values (dict, list, tuple, text, numbers, None) without running code from it.

    Files written by Python 2 (protocols 0 to 2) hold byte strings where text is meant: they are read as
    UTF-8, or as Latin-1 where they are none.

    Raises:
        DatasetFileError: it is damaged, or names a class or a function.
    """
    for encoding in ("utf-8", "latin-1"):
        try:
            # From memory: a read from a file makes room for as much as the pickle says that there is.
            return _PlainUnpickler(BytesIO(path.read_bytes()), encoding=encoding).load()
        except UnicodeDecodeError:
            continue
        except _NotPlainError as error:
            raise DatasetFileError(f"{path} was not read: {error}") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise DatasetFileError(f"{path} is damaged or is no pickle: {error}") from error
    raise DatasetFileError(f"{path} holds text of no known encoding")


class _NotPlainError(pickle.UnpicklingError):
    """A pickle that asks for more than plain values."""


class _PlainUnpickler(pickle._Unpickler):
    """Makes the values that opcodes alone make: without a class or a function no code can run.

    The one in Python: that in C makes room for as many objects as a file says that it will remember.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        opcode: load for opcode, load in pickle._Unpickler.dispatch.items() if opcode != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        raise _NotPlainError(f"it asks for {module}.{name}, expected only lists, dicts, text and numbers")

    def persistent_load(self, pid: Any) -> Any:
        raise _NotPlainError("it refers to objects outside of itself, expected only plain values")


def read_shown_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Reads a picture as people see it, EXIF orientation applied: what masks of an export were drawn on.

    Returns:
        (H, W, 3) RGB.

    Raises:
        DatasetFileError: missing, damaged or no picture.
    """
    try:
        return read_picture(path)
    except PictureError as error:
        raise DatasetFileError(str(error)) from error


def read_stored_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Reads a picture as it is stored: published masks were drawn on the pixels as they lie in the file.

    Returns:
        (H, W, 3) RGB.

    Raises:
        DatasetFileError: missing, damaged or no picture.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError as error:
        raise DatasetFileError(f"there is no picture {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetFileError(f"{path} cannot be read as a picture: {error}") from error
