"""Stickers as pictures: drawn from the art, tinted, and painted onto a canvas."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from finetune.data.stickers.art import ART_PX, CELL_PX, LEVELS, read_art

Mask = npt.NDArray[np.bool_]
Picture = npt.NDArray[np.uint8]
Matrix = npt.NDArray[np.float32]


def draw_sticker(
    noun: str, style: str, longest_px: float, angle_deg: float = 0.0, mirror: bool = False
) -> Picture:
    """Renders one sticker, scaled and rotated, in the smallest image that contains it.

    Returns:
        (h, w, 4) uint8, premultiplied RGBA.
    """
    art = read_art(noun, style)
    level = int(np.clip(np.floor(np.log2(ART_PX / longest_px)), 0, LEVELS - 1))
    scale = longest_px / (ART_PX >> level) if level else longest_px / ART_PX
    turn = np.deg2rad(angle_deg)
    cos, sin = abs(np.cos(turn)), abs(np.sin(turn))
    art_h, art_w = (side * longest_px / ART_PX for side in art.size_hw)
    width, height = int(np.ceil(art_w * cos + art_h * sin)) + 2, int(np.ceil(art_w * sin + art_h * cos)) + 2
    middle = ((CELL_PX >> level) - 1) / 2
    flip = -1.0 if mirror else 1.0
    matrix = np.array([[np.cos(turn), np.sin(turn)], [-np.sin(turn), np.cos(turn)]]) / scale
    matrix[0] *= flip
    shift = middle - matrix @ [(width - 1) / 2, (height - 1) / 2]
    to_art = np.column_stack([matrix, shift])
    how = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    return np.asarray(cv2.warpAffine(art.levels[level], to_art, (width, height), flags=how), np.uint8)


def tint(rng: np.random.Generator, sticker: Picture, recolour: bool) -> Picture:
    """Varies the colours of a sticker: slightly, or with `recolour` sometimes to another hue."""
    matrix = np.eye(4, dtype=np.float32)
    if recolour and rng.random() < 0.3:
        matrix[:3, :3] = _hue_rotation(rng.uniform(50, 310))
    elif rng.random() < 0.35:
        strength = rng.uniform(0.03, 0.18)
        matrix[:3, :3] *= np.float32((1 - strength) * rng.uniform(0.85, 1.1))
        matrix[:3, 3] = strength * rng.random(3)
    else:
        return sticker
    tinted = np.asarray(cv2.transform(sticker, matrix), np.uint8)
    return np.minimum(tinted, sticker[..., 3:])


def _hue_rotation(degrees: float) -> Matrix:
    """Matrix that rotates RGB colours around the grey axis."""
    turn = np.deg2rad(degrees)
    third, root = 1 / 3, np.sqrt(1 / 3)
    same = np.cos(turn) + third * (1 - np.cos(turn))
    left = third * (1 - np.cos(turn)) - root * np.sin(turn)
    right = third * (1 - np.cos(turn)) + root * np.sin(turn)
    return np.array([[same, left, right], [right, same, left], [left, right, same]], np.float32)


def overlap(hw: tuple[int, ...], left: int, top: int, window_hw: tuple[int, ...]) -> tuple[Any, Any]:
    """Overlap of a window and a canvas, as an index into the canvas and one into the window."""
    y0, y1 = max(top, 0), max(min(top + window_hw[0], hw[0]), 0)
    x0, x1 = max(left, 0), max(min(left + window_hw[1], hw[1]), 0)
    return np.s_[y0:y1, x0:x1], np.s_[y0 - top : y1 - top, x0 - left : x1 - left]


def paste(canvas: Picture, sticker: Picture, left: int, top: int) -> None:
    """Paints a sticker (premultiplied RGBA) onto a canvas (RGB) in place, clipped at the edges."""
    on_canvas, in_sticker = overlap(canvas.shape, left, top, sticker.shape)
    # Premultiplied alpha: colour plus what the canvas lets through. Blending unmultiplied pixels would
    # bleed the colour of transparent ones into antialiased edges.
    layer = sticker[in_sticker]
    darken(canvas, on_canvas, layer[..., 3])
    canvas[on_canvas] = cv2.add(canvas[on_canvas], layer[..., :3])


def darken(canvas: Picture, where: Any, alpha: Picture) -> None:
    """Reduces a canvas's transmittance by a given amount, 255 for fully opaque."""
    through = cv2.merge([255 - alpha] * 3)
    canvas[where] = cv2.multiply(canvas[where], through, scale=1 / 255)
