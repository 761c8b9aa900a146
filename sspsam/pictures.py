"""Reading pictures from files, as people see them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError


class PictureError(ValueError):
    """A file that cannot be read as a picture, or a place where none can be written. The message names it."""


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Reads a picture in its original frame: EXIF orientation applied, (H, W, 3) RGB uint8.

    Raises:
        PictureError: the file is missing, cut, too large or no picture.
    """
    try:
        with Image.open(path) as picture:
            return picture_to_pixels(picture)
    except FileNotFoundError as error:
        raise PictureError(f"there is no picture {path}") from error
    except UnidentifiedImageError as error:
        raise PictureError(f"{path} is not a picture of a known kind (JPEG, PNG, WebP, TIFF, ...)") from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} cannot be read as a picture: {error}") from error


def picture_to_pixels(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """The pixels as people see them: upright, transparency on white, 16 bits of grey as 8.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        OSError, ValueError, SyntaxError: the file behind the picture is damaged.
    """
    upright = ImageOps.exif_transpose(picture)
    if upright.mode.startswith("I"):  # 16 bits of grey
        grey = np.clip(np.asarray(upright) // 256, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        on_white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(on_white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def write_picture(picture: Image.Image, path: Path) -> None:
    """Writes a picture in the format that the file's name ends in.

    Raises:
        PictureError: no such format, or the file cannot be written.
    """
    try:
        picture.save(path)
    except (ValueError, OSError) as error:
        raise PictureError(f"the picture cannot be written to {path}: {error}") from error
