"""Reads images from files, as displayed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from sspsam.images.masks import MAX_PIXELS

IMAGE_MAX_PIXELS = 100_000_000
"""Default limit of the service, for images and masks: about 300 MB of RGB."""

_XMP = ("xmp", "XML:com.adobe.xmp")
"""Names of XMP in what Pillow reads of a file."""


class PictureError(ValueError):
    """A file that cannot be read as an image, or a path that cannot be written. The message names it."""


def read_picture(path: Path) -> npt.NDArray[np.uint8]:
    """Reads an image in its original frame: EXIF orientation applied, (H, W, 3) RGB uint8.

    Raises:
        PictureError: the file is missing, truncated, too large or not an image.
    """
    try:
        with Image.open(path) as picture:
            if picture.width * picture.height > MAX_PIXELS:  # the header is read, and nothing decoded
                raise PictureError(
                    f"{path} has {picture.width} x {picture.height} pixels; at most {MAX_PIXELS} are read"
                )
            return picture_to_pixels(picture)
    except FileNotFoundError as error:
        raise PictureError(f"there is no image {path}") from error
    except UnidentifiedImageError as error:
        raise PictureError(
            f"{path} is not an image in a supported format (JPEG, PNG, WebP, TIFF, ...)"
        ) from error
    except (OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise PictureError(f"{path} cannot be read as an image: {error}") from error


def picture_to_pixels(picture: Image.Image) -> npt.NDArray[np.uint8]:
    """Pixels as displayed: upright, transparency on white, 16-bit grey as 8-bit.

    Returns:
        (H, W, 3) uint8, RGB.

    Raises:
        OSError, ValueError, SyntaxError: the image file is damaged.
    """
    upright = as_displayed(picture)
    if upright.mode.startswith("I"):  # 16-bit grey
        grey = np.clip(np.asarray(upright) // 256, 0, 255).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if upright.has_transparency_data:
        on_white = Image.new("RGBA", upright.size, "white")
        upright = Image.alpha_composite(on_white, upright.convert("RGBA"))
    return np.array(upright.convert("RGB"), dtype=np.uint8)


def without_xmp(picture: Image.Image) -> Image.Image:
    """The picture itself, whose EXIF Pillow then reads without adding the orientation of XMP to it."""
    for name in _XMP:
        picture.info.pop(name, None)
    return picture


def as_displayed(picture: Image.Image) -> Image.Image:
    """A copy, turned as EXIF says. Pillow also turns pictures as XMP says, browsers do not."""
    upright = without_xmp(picture.copy())  # which has no EXIF that was parsed before
    ImageOps.exif_transpose(upright, in_place=True)
    return upright


def write_picture(picture: Image.Image, path: Path) -> None:
    """Writes an image in the format of the file's extension.

    Raises:
        PictureError: unsupported format, or the file cannot be written.
    """
    try:
        picture.save(path)
    except (ValueError, OSError) as error:
        raise PictureError(f"the image cannot be written to {path}: {error}") from error
