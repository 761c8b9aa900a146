"""Backgrounds of scenes: plain colours, gradients and patterns, generated for each scene."""

from collections.abc import Callable
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

Colour = npt.NDArray[np.float64]
"""(3,) RGB, 0 to 255."""
Pixels = npt.NDArray[np.uint8]
"""(H, W, 3) uint8 RGB."""


def draw_background(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Draws one background: (height, width, 3) uint8 RGB."""
    drawing = _DRAWINGS[int(rng.choice(len(_DRAWINGS), p=_SHARES))]
    return drawing(rng, height, width)


def _colour(rng: np.random.Generator) -> Colour:
    """A random colour, biased as in photographs: light rather than dark, pale rather than vivid."""
    value = rng.uniform(150, 255) if rng.random() < 0.6 else rng.uniform(25, 255)
    vividness = rng.choice((0.08, 0.3, 0.8), p=(0.45, 0.4, 0.15))
    return np.asarray(value * (1 - vividness * rng.random(3)))


def _second_colour(rng: np.random.Generator, first: Colour) -> Colour:
    """A random second colour: mostly a shade of the first."""
    if rng.random() < 0.35:
        return _colour(rng)
    return np.asarray(np.clip(first + rng.uniform(-60, 60) + rng.uniform(-15, 15, 3), 0, 255))


def _mix(weights: Pixels, first: Colour, second: Colour) -> Pixels:
    """Blends two colours by uint8 weights (H, W)."""
    steps = np.linspace(0, 1, 256)[:, None]
    palette = (first * (1 - steps) + second * steps).astype(np.uint8)
    return np.asarray(cv2.LUT(cv2.merge([weights] * 3), palette[None]))


def _two_tone(rng: np.random.Generator, weights: Pixels) -> Pixels:
    first = _colour(rng)
    return _mix(weights, first, _second_colour(rng, first))


def _flat(rng: np.random.Generator, height: int, width: int) -> Pixels:
    return np.broadcast_to(_colour(rng).astype(np.uint8), (height, width, 3)).copy()


def _gradient(rng: np.random.Generator, height: int, width: int) -> Pixels:
    first = _colour(rng)
    top_left, top_right, bottom_left, bottom_right = (_second_colour(rng, first) for _ in range(4))
    steps = np.linspace(0, 1, 9)[:, None, None]
    left = top_left * (1 - steps) + bottom_left * steps  # (9, 1, 3)
    right = top_right * (1 - steps) + bottom_right * steps
    across = steps.reshape(1, 9, 1)
    grid = (left * (1 - across) + right * across).astype(np.uint8)
    return _enlarge(grid, height, width, cv2.INTER_LINEAR)


def _enlarge(small: npt.NDArray[Any], height: int, width: int, interpolation: int) -> npt.NDArray[Any]:
    return np.asarray(cv2.resize(small, (width, height), interpolation=interpolation))


def _phase(rng: np.random.Generator, height: int, width: int, angle: float) -> npt.NDArray[np.float32]:
    """Distance across stripes of a random width, in periods: (height, width) float32."""
    period_px = rng.uniform(0.03, 0.25) * min(height, width)
    across = (np.arange(width, dtype=np.float32) * np.cos(angle) / period_px).astype(np.float32)
    down = (np.arange(height, dtype=np.float32) * np.sin(angle) / period_px).astype(np.float32)
    return np.asarray(down[:, None] + across + np.float32(rng.random()))


def _stripes(rng: np.random.Generator, height: int, width: int) -> Pixels:
    phase = _phase(rng, height, width, rng.uniform(0, np.pi))
    share = np.float32(rng.uniform(0.2, 0.8))
    return _two_tone(rng, np.where(phase - np.floor(phase) < share, 255, 0).astype(np.uint8))


def _checks(rng: np.random.Generator, height: int, width: int) -> Pixels:
    angle = rng.choice((0.0, rng.uniform(0, np.pi)))
    odd_across = np.floor(_phase(rng, height, width, angle)).astype(np.int32)
    odd_down = np.floor(_phase(rng, height, width, angle + np.pi / 2)).astype(np.int32)
    return _two_tone(rng, ((odd_across + odd_down & 1) * 255).astype(np.uint8))


def _noise(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Cloudy noise: the sum of random fields at several scales."""
    total = np.zeros((height, width), np.float32)
    for cells in rng.choice((3, 6, 12, 25, 60), size=3, replace=False):
        total += _enlarge(rng.random((cells, cells), dtype=np.float32), height, width, cv2.INTER_CUBIC)
    return _two_tone(rng, np.clip(total * (255 / 3), 0, 255).astype(np.uint8))


def _speckle(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Fine grain around one colour."""
    grain = rng.integers(0, 256, (height, width), dtype=np.uint8)
    first = _colour(rng)
    return _mix(grain, first, np.clip(first + rng.uniform(-50, 50), 0, 255))


def _blobs(rng: np.random.Generator, height: int, width: int) -> Pixels:
    """Soft or sharp-edged discs and boxes in a few colours."""
    canvas = _flat(rng, height, width)
    base = canvas[0, 0].astype(np.float64)
    for _ in range(int(rng.integers(3, 16))):
        colour = [float(part) for part in _second_colour(rng, base)]
        x, y = int(rng.uniform(0, width)), int(rng.uniform(0, height))
        reach = rng.uniform(0.03, 0.3, 2) * min(height, width)
        half_w, half_h = int(reach[0]), int(reach[1])
        if rng.random() < 0.6:
            cv2.ellipse(
                canvas, (x, y), (half_w, half_h), rng.uniform(0, 180), 0, 360, colour, -1, cv2.LINE_AA
            )
        else:
            cv2.rectangle(canvas, (x - half_w, y - half_h), (x + half_w, y + half_h), colour, -1)
    return canvas


_DRAWINGS: tuple[Callable[[np.random.Generator, int, int], Pixels], ...]
_DRAWINGS = (_flat, _gradient, _stripes, _checks, _noise, _speckle, _blobs)
_SHARES = (0.2, 0.2, 0.12, 0.12, 0.16, 0.08, 0.12)
