"""Locates and reads the files of published data sets; errors name missing parts and their source."""

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
    """The folder of published data sets: the option, else `SSPSAM_DATA`, else `./data`."""
    return Path(option or os.environ.get(DATA_ROOT_VARIABLE) or DEFAULT_DATA_ROOT).expanduser()


def find(candidates: Sequence[Path], what: str, source: str, exists: Callable[[Path], bool]) -> Path:
    """Returns the first existing path.

    Args:
        candidates: Paths to check, in this order.
        what: What is searched for; used in the message.
        source: Where to get it; used in the message.
        exists: `Path.is_file` or `Path.is_dir`.

    Raises:
        DatasetFileError: none of the paths exists.
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
    """Streams the objects of a JSON file, so a large file is never in memory as a whole.

    Args:
        path: The file.
        prefix: Location of the objects: `item` for a list, `annotations.item` for a list inside an object.

    Raises:
        DatasetFileError: it is not JSON, or not a list of objects.
    """
    with path.open("rb") as file:
        try:
            for value in ijson.items(file, prefix, use_float=True):
                if not isinstance(value, dict):
                    raise DatasetFileError(f"{path}: expected objects at {prefix}, got {value!r:.40}")
                yield value
        except ijson.JSONError as error:
            raise DatasetFileError(f"{path} is damaged or not JSON: {error}") from error


def read_plain_pickle(path: Path) -> Any:
    """Reads a pickle of plain values (dict, list, tuple, string, number, None) without executing its code.

    Files written by Python 2 (protocols 0 to 2) hold text as byte strings, which are decoded as UTF-8, else
    as Latin-1.

    Raises:
        DatasetFileError: it is damaged, or refers to a class or a function.
    """
    for encoding in ("utf-8", "latin-1"):
        try:
            # From memory: reading from a file would allocate whatever size the pickle claims.
            return _PlainUnpickler(BytesIO(path.read_bytes()), encoding=encoding).load()
        except UnicodeDecodeError:
            continue
        except _NotPlainError as error:
            raise DatasetFileError(f"{path} was not read: {error}") from error
        except Exception as error:  # a damaged pickle can raise anything
            raise DatasetFileError(f"{path} is damaged or not a pickle: {error}") from error
    raise DatasetFileError(f"{path} holds text in an unknown encoding")


class _NotPlainError(pickle.UnpicklingError):
    """A pickle holds more than plain values."""


class _PlainUnpickler(pickle._Unpickler):
    """Builds only values that need no class or function, so no code can run.

    The pure Python unpickler: the one in C allocates a memo of whatever size the file claims.
    """

    dispatch: ClassVar[dict[int, Any]] = {
        opcode: load for opcode, load in pickle._Unpickler.dispatch.items() if opcode != pickle.BYTEARRAY8[0]
    }

    def find_class(self, module: str, name: str) -> Any:
        raise _NotPlainError(f"it asks for {module}.{name}, expected only lists, dicts, text and numbers")

    def persistent_load(self, pid: Any) -> Any:
        raise _NotPlainError("it refers to objects outside of itself, expected only plain values")


def read_shown_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Reads an image as displayed, with EXIF orientation applied: the frame of exported masks.

    Returns:
        (H, W, 3) RGB.

    Raises:
        DatasetFileError: missing, damaged or not an image.
    """
    try:
        return read_picture(path)
    except PictureError as error:
        raise DatasetFileError(str(error)) from error


def read_stored_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Reads an image as stored, ignoring EXIF orientation: the frame of published masks.

    Returns:
        (H, W, 3) RGB.

    Raises:
        DatasetFileError: missing, damaged or not an image.
    """
    try:
        with Image.open(path) as picture:
            return np.array(picture.convert("RGB"), dtype=np.uint8)
    except FileNotFoundError as error:
        raise DatasetFileError(f"no such image: {path}") from error
    except (UnidentifiedImageError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise DatasetFileError(f"{path} cannot be read as an image: {error}") from error
