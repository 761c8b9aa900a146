"""Draws masks on their image: colour, outline, and a legend of the phrases below."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFilter, ImageFont

if TYPE_CHECKING:
    from sspsam.results import Referent

Rgb = tuple[int, int, int]

COLOURS: tuple[Rgb, ...] = (
    (230, 60, 60),
    (40, 130, 235),
    (40, 170, 90),
    (245, 160, 20),
    (150, 80, 220),
    (20, 180, 190),
    (225, 80, 170),
    (120, 110, 40),
)
"""One per phrase, in turn: distinct, and visible on dark and light images."""
OPACITY = 0.45
"""Opacity of a mask's interior."""
OUTLINE_FRACTION = 1 / 200
"""Width of the outline, as a fraction of the image's longest side."""
TEXT_FRACTION = 1 / 28
"""Height of the legend's text, as a fraction of the image's longest side."""
MIN_TEXT_PX = 12
LEGEND_BACKGROUND: Rgb = (250, 250, 250)
LEGEND_TEXT: Rgb = (30, 30, 30)
NOTHING_THERE = "nothing here fits"


def draw_referents(image: npt.NDArray[np.uint8], referents: Sequence[Referent]) -> Image.Image:
    """Draws each answer in its own colour, with a legend below.

    Args:
        image: (H, W, 3) RGB uint8.
        referents: Answers about this image; those without a target appear in the legend only.

    Returns:
        An RGB image of width W, and of height H plus the legend's.

    Raises:
        ValueError: a mask does not have the image's size.
    """
    pixels = image.copy()
    for referent, colour in zip(referents, _colours(len(referents)), strict=True):
        pixels = draw_mask(pixels, referent.mask, colour)
    return _with_legend(Image.fromarray(pixels), referents)


def draw_mask(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], colour: Rgb
) -> npt.NDArray[np.uint8]:
    """Tints and outlines a (H, W) mask on (H, W, 3) RGB uint8. Returns a new array.

    Raises:
        ValueError: the mask does not have the image's size.
    """
    if mask.shape != image.shape[:2]:
        raise ValueError(f"the mask is {mask.shape}, the image {image.shape[:2]} (H, W)")
    drawn = image.copy()
    tint = np.array(colour, dtype=np.float32)
    drawn[mask] = ((1 - OPACITY) * image[mask] + OPACITY * tint).round().astype(np.uint8)
    drawn[_outline(mask)] = colour
    return drawn


def draw_outline(
    image: npt.NDArray[np.uint8], mask: npt.NDArray[np.bool_], colour: Rgb
) -> npt.NDArray[np.uint8]:
    """Draws the outline of a (H, W) mask on (H, W, 3) RGB uint8. Returns a new array."""
    drawn = image.copy()
    drawn[_outline(mask)] = colour
    return drawn


def _outline(mask: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """The inner outline of a mask; closed at the image border."""
    width = max(1, round(max(mask.shape) * OUTLINE_FRACTION))
    framed = Image.fromarray(np.pad(mask, width).astype(np.uint8) * 255)
    inside = np.asarray(framed.filter(ImageFilter.MinFilter(2 * width + 1)))[width:-width, width:-width] > 0
    return mask & ~inside


def _with_legend(picture: Image.Image, referents: Sequence[Referent]) -> Image.Image:
    if not referents:
        return picture
    size = max(MIN_TEXT_PX, round(max(picture.size) * TEXT_FRACTION))
    font = ImageFont.load_default(size)
    line_px, margin_px = round(1.5 * size), size // 2
    swatch_px = size + margin_px
    entries = [
        (colour, referent, _wrap(_label(referent), font, picture.width - 2 * margin_px - swatch_px))
        for referent, colour in zip(referents, _colours(len(referents)), strict=True)
    ]
    lines = sum(len(text) for _, _, text in entries)
    canvas = Image.new(
        "RGB", (picture.width, picture.height + lines * line_px + 2 * margin_px), LEGEND_BACKGROUND
    )
    canvas.paste(picture)
    draw = ImageDraw.Draw(canvas)
    top = picture.height + margin_px
    for colour, referent, text in entries:
        swatch = (margin_px, top, margin_px + size - 1, top + size - 1)
        draw.rectangle(swatch, None if referent.no_target else colour, colour, max(1, size // 10))
        for line in text:
            draw.text((margin_px + swatch_px, top + size // 2), line, LEGEND_TEXT, font, anchor="lm")
            top += line_px
    return canvas


def _label(referent: Referent) -> str:
    found = NOTHING_THERE if referent.no_target else f"{referent.score:.2f}"
    return f"{referent.phrase} ({found})"


def _wrap(text: str, font: ImageFont.ImageFont | ImageFont.FreeTypeFont, width_px: int) -> list[str]:
    """Wraps text between words so that lines fit, except for words that are too long."""
    lines = [""]
    for word in text.split():
        longer = f"{lines[-1]} {word}".strip()
        if lines[-1] and font.getlength(longer) > width_px:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def _colours(count: int) -> list[Rgb]:
    return [COLOURS[index % len(COLOURS)] for index in range(count)]
