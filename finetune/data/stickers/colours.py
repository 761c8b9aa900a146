"""Colour names as people use them."""

import numpy as np
import numpy.typing as npt

COLOURS = ("red", "orange", "yellow", "green", "blue", "purple", "pink", "brown", "white", "grey", "black")

CONFUSABLE = {
    "red": {"orange", "pink", "brown"},
    "orange": {"red", "yellow", "brown"},
    "yellow": {"orange", "brown", "green"},
    "green": {"yellow", "blue"},
    "blue": {"purple", "green"},
    "purple": {"blue", "pink"},
    "pink": {"red", "purple"},
    "brown": {"red", "orange", "yellow", "black"},
    "white": {"grey"},
    "grey": {"white", "black"},
    "black": {"grey", "brown"},
}
"""Colours with disputed borders: some people use the other name."""

_UNCLEAR = len(COLOURS)
"""Index of a pixel between two colours."""
_HUES = (
    (0, "red"), (12, ""), (18, "orange"), (38, ""), (45, "yellow"), (62, ""), (78, "green"), (158, ""),
    (188, "blue"), (248, ""), (262, "purple"), (288, ""), (300, "pink"), (334, ""), (348, "red"),
)  # fmt: skip
"""Hues in degrees at which the ranges of vivid colours begin, including unnamed ranges."""
_HUE_FROM = np.array([degrees for degrees, _ in _HUES[1:]], np.float32)
_HUE_NAMES = np.array([COLOURS.index(name) if name else _UNCLEAR for _, name in _HUES])
_PINK, _BROWN, _WHITE, _GREY, _BLACK = (
    COLOURS.index(name) for name in ("pink", "brown", "white", "grey", "black")
)


PREVAILS = 0.5
"""Minimum fraction of an object's visible part in a colour for it to have that colour."""


def colour_shares(pixels: npt.NDArray[np.uint8]) -> dict[str, float]:
    """Fraction of pixels (N, 3) RGB in each colour.

    Returns:
        A fraction for each of COLOURS; the remainder to 1 has no clear colour.
    """
    names = _name_pixels(pixels.astype(np.float32))
    shares = np.bincount(names, minlength=len(COLOURS) + 1) / max(len(names), 1)
    return {name: float(share) for name, share in zip(COLOURS, shares, strict=False)}


def _name_pixels(pixels: npt.NDArray[np.float32]) -> npt.NDArray[np.intp]:
    """Index into COLOURS for each pixel, by hue, chroma and brightness, or _UNCLEAR."""
    brightest, darkest = pixels.max(axis=1), pixels.min(axis=1)
    chroma = brightest - darkest
    hue = _hue(pixels, brightest, chroma)
    names = _HUE_NAMES[np.searchsorted(_HUE_FROM, hue, side="right")]
    warm = (hue < 62) | (hue >= 348)
    names[warm & (brightest < 215)] = _UNCLEAR
    names[warm & (brightest < 165)] = _BROWN
    names[warm & (chroma < 0.5 * brightest)] = _UNCLEAR
    names[(hue >= 12) & (hue < 38) & (chroma < 0.5 * brightest) & (brightest < 200)] = _BROWN
    names[(hue >= 300) & (hue < 348) & (brightest < 190)] = _UNCLEAR
    names[((hue < 5) | (hue > 330)) & (chroma < 0.55 * brightest) & (brightest > 220)] = _PINK
    names[chroma < 0.22 * brightest] = _UNCLEAR
    pale = chroma < 0.1 * brightest + 6
    names[pale] = _GREY
    names[pale & (darkest > 190)] = _UNCLEAR
    names[pale & (darkest > 215)] = _WHITE
    names[brightest < 90] = _UNCLEAR
    names[brightest < 65] = _BLACK
    return np.asarray(names)


def _hue(
    pixels: npt.NDArray[np.float32], brightest: npt.NDArray[np.float32], chroma: npt.NDArray[np.float32]
) -> npt.NDArray[np.float32]:
    """Hue in degrees, 0 to 360; 0 for greys."""
    red, green, blue = pixels.T
    spread = np.maximum(chroma, 1)
    sector = np.where(
        brightest == red,
        (green - blue) / spread % 6,
        np.where(brightest == green, (blue - red) / spread + 2, (red - green) / spread + 4),
    )
    return np.asarray(sector * 60, np.float32)
