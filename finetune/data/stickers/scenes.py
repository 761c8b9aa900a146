"""Synthetic scenes of stickers: images of everyday objects with exact masks.

A scene is determined by its seed. Stickers are placed front to back, so what covers a sticker is known when
it is placed: its mask is its visible part, and a sticker that would be less than half visible is left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property

import cv2
import numpy as np

from finetune.data.stickers.art import STYLES
from finetune.data.stickers.backgrounds import draw_background
from finetune.data.stickers.colours import PREVAILS, colour_shares
from finetune.data.stickers.drawing import Mask, Picture, darken, draw_sticker, overlap, paste, tint
from finetune.data.stickers.vocabulary import nouns as nouns_of
from finetune.data.stickers.vocabulary import select_nouns, vocabulary

SPLITS = {"train": 1, "val": 2, "test": 3}
"""Random stream of each split: no scene is in two splits."""

SIZE_RANGE_PX = (320, 1024)
MIN_SIDE_PX = 32
STICKER_RANGE = (0.05, 0.45)
"""Longest side of a sticker, as a fraction of the canvas's short side."""
CLOSE_UP_RANGE = (0.35, 0.95)
"""The same in close-ups."""
MAX_ANGLE_DEG = 25.0
MAX_STICKERS = 12
MIN_VISIBLE = 0.5
"""Minimum visible fraction of a sticker."""
WHOLE = 0.97
"""The same in uncrowded scenes, and for stickers up to SMALL_STICKER."""
SMALL_STICKER = 0.12
PLACES_TRIED = 12
"""Positions tried for a sticker before it is left out."""
SOLID_ALPHA = 128
"""Minimum alpha of a pixel that belongs to a sticker."""

_COUNT_SHARES = (0.06, 0.10, 0.14, 0.16, 0.15, 0.12, 0.09, 0.06, 0.05, 0.03, 0.02, 0.02)
RECOLOURED = frozenset(["vehicle", "clothing", "object", "place", "tool", "music", "sport"])
"""Categories whose objects exist in any colour; a blue banana would be wrong training data."""


@dataclass(frozen=True, eq=False)
class SceneObject:
    """The visible part of a sticker in a scene."""

    noun: str
    plural: str
    category: str
    style: str
    mask: Mask
    """(H, W), the visible part."""
    box_xyxy: tuple[int, int, int, int]
    """Box of the visible part, px; x1 and y1 are exclusive."""
    area_px: int
    """Area of the visible part, px."""
    colours: dict[str, float]
    """Colour name -> fraction of the visible part in that colour."""

    @property
    def centre(self) -> tuple[float, float]:
        """(x, y) of the box's centre, px."""
        x0, y0, x1, y1 = self.box_xyxy
        return (x0 + x1) / 2, (y0 + y1) / 2

    @property
    def colour(self) -> str | None:
        """Its dominant colour, or None."""
        name = max(self.colours, key=self.colours.__getitem__)
        return name if self.colours[name] >= PREVAILS else None


@dataclass(frozen=True, eq=False)
class Scene:
    """An image and its objects."""

    scene_id: str
    image: Picture
    """(H, W, 3) RGB."""
    objects: tuple[SceneObject, ...]
    """Ordered front to back."""
    nouns: tuple[str, ...] = field(repr=False)
    """The nouns from which the scene was drawn."""

    @cached_property
    def by_noun(self) -> dict[str, tuple[int, ...]]:
        """Noun -> indices of its objects."""
        found: dict[str, list[int]] = {}
        for index, thing in enumerate(self.objects):
            found.setdefault(thing.noun, []).append(index)
        return {noun: tuple(indices) for noun, indices in found.items()}

    def mask_of(self, indices: Sequence[int]) -> Mask:
        """(H, W) union of the visible parts of the given objects."""
        union = np.zeros(self.image.shape[:2], bool)
        for index in indices:
            union |= self.objects[index].mask
        return union


def make_scene(
    seed: int,
    split: str = "train",
    nouns: Sequence[str] | None = None,
    styles: Sequence[str] | None = None,
    size_range: tuple[int, int] = SIZE_RANGE_PX,
    max_stickers: int = MAX_STICKERS,
    sticker_range: tuple[float, float] | None = None,
    canvas_hw: tuple[int, int] | None = None,
) -> Scene:
    """Draws a scene. The same arguments always give the same scene.

    Args:
        seed: Selects a scene of the split.
        split: "train", "val" or "test".
        nouns: Nouns that may appear, or names of groups (see `select_nouns`); None: all but the novel ones.
        styles: Drawing styles to use; all if None.
        size_range: Shortest and longest side of the canvas, px.
        max_stickers: Maximum number of stickers.
        sticker_range: Smallest and largest longest side of a sticker, as a fraction of the canvas's short
            side, such as CLOSE_UP_RANGE: logarithms are uniform. None: most are of 0.18 to 0.42, within
            STICKER_RANGE.
        canvas_hw: Size of the canvas, px, instead of a random one.

    Raises:
        ValueError: an unknown split, noun or style, or an empty range.
    """
    if split not in SPLITS:
        raise ValueError(f"split is {split!r}, expected one of {', '.join(SPLITS)}")
    if not MIN_SIDE_PX <= size_range[0] <= size_range[1]:
        raise ValueError(
            f"size_range is {size_range}, expected two sides of at least {MIN_SIDE_PX} px, the smaller first"
        )
    if sticker_range is not None and not 0 < sticker_range[0] <= sticker_range[1] <= 1:
        raise ValueError(f"sticker_range is {sticker_range}, expected two fractions, the smaller first")
    chosen = nouns_of("core", "base") if nouns is None else select_nouns(nouns)
    rng = np.random.default_rng((SPLITS[split], seed))
    width, height = (int(side) for side in rng.integers(size_range[0], size_range[1] + 1, 2))
    if canvas_hw is not None:
        height, width = canvas_hw
    pile = StickerStack(rng, height, width, sticker_range)
    for noun, style in _plan(rng, chosen, tuple(styles or STYLES), max_stickers):
        pile.lay(noun, style)
    image = _develop(rng, pile.paint(draw_background(rng, height, width)))
    return Scene(f"{split}/{seed}", image, pile.objects(image), chosen)


def _plan(
    rng: np.random.Generator, nouns: Sequence[str], styles: Sequence[str], max_stickers: int
) -> list[tuple[str, str]]:
    """Chooses the nouns of a scene, front first: often several of the same noun, else different ones."""
    shares = np.array(_COUNT_SHARES[:max_stickers])
    count = 1 + int(rng.choice(len(shares), p=shares / shares.sum()))
    different = [nouns[index] for index in rng.permutation(len(nouns))[:count]]
    things: list[str] = []
    for noun in different:
        # Positions, order, sizes and "all dogs" need repeated nouns; without them a noun alone would answer
        # most phrases.
        repeats = int(rng.choice((2, 2, 3, 3, 4))) if rng.random() < (0.35 if things else 0.7) else 1
        things += [noun] * repeats
        if len(things) >= count:
            break
    # One style for the whole scene, or one for each noun: otherwise style alone would tell two dogs apart,
    # and the model would learn that.
    only_style = styles[int(rng.integers(len(styles)))] if rng.random() < 0.4 else None
    drawn = {noun: styles[int(rng.integers(len(styles)))] for noun in different if rng.random() < 0.5}
    chosen = [
        (noun, only_style or drawn.get(noun) or styles[int(rng.integers(len(styles)))])
        for noun in things[:count]
    ]
    return [chosen[index] for index in rng.permutation(len(chosen))]


@dataclass(frozen=True, eq=False)
class PlacedSticker:
    """A sticker at its position."""

    noun: str
    style: str
    sticker: Picture
    left: int
    top: int
    shows: Mask
    """(h, w) mask of the sticker's pixels that are solid, on the canvas and not covered."""


class StickerStack:
    """Stickers placed on a canvas front to back, then painted back to front."""

    def __init__(
        self,
        rng: np.random.Generator,
        height: int,
        width: int,
        sticker_range: tuple[float, float] | None = None,
    ) -> None:
        self.rng = rng
        self.sticker_range = sticker_range
        self.hw = (height, width)
        self.taken = np.zeros((height, width), bool)
        self.laid: list[PlacedSticker] = []
        self.typical = rng.uniform(0.18, 0.42) if rng.random() < 0.92 else rng.uniform(0.07, 0.18)
        self.crowded = rng.random() < 0.35
        self.shadow = self._choose_shadow() if rng.random() < 0.3 else None
        self.row = rng.random() < 0.22
        self.line = rng.uniform(0.3, 0.7)

    def _choose_shadow(self) -> tuple[float, float, float]:
        """(dx, dy, strength), offsets as fractions of the sticker's side."""
        return self.rng.uniform(-0.07, 0.07), self.rng.uniform(0.01, 0.08), self.rng.uniform(0.2, 0.5)

    def lay(self, noun: str, style: str) -> None:
        """Places a sticker behind the others if enough of it is visible there."""
        rng = self.rng
        part = self._choose_side()
        angle = rng.uniform(-MAX_ANGLE_DEG, MAX_ANGLE_DEG) if rng.random() < 0.6 else 0.0
        sticker = draw_sticker(noun, style, part * min(self.hw), angle, mirror=rng.random() < 0.3)
        sticker = tint(rng, sticker, vocabulary()[noun].category in RECOLOURED)
        solid = sticker[..., 3] >= SOLID_ALPHA
        place = self._find_place(solid, MIN_VISIBLE if self.crowded and part > SMALL_STICKER else WHOLE)
        if place is None:
            return
        left, top, shows = place
        self.laid.append(PlacedSticker(noun, style, sticker, left, top, shows))
        on_canvas, in_window = overlap(self.hw, left, top, solid.shape)
        self.taken[on_canvas] |= solid[in_window]

    def _choose_side(self) -> float:
        """Longest side of the next sticker, as a fraction of the canvas's short side."""
        if self.sticker_range is not None:
            return float(np.exp(self.rng.uniform(*np.log(self.sticker_range))))
        return float(np.clip(self.typical * np.exp(self.rng.normal(0, 0.35)), *STICKER_RANGE))

    def _find_place(self, solid: Mask, share: float) -> tuple[int, int, Mask] | None:
        """Returns (left, top, visible part (h, w)) of the first tried position that shows enough, or None."""
        whole = int(solid.sum())
        for _ in range(PLACES_TRIED):
            left, top = self._propose(*solid.shape)
            on_canvas, in_window = overlap(self.hw, left, top, solid.shape)
            shows = np.zeros_like(solid)
            # Front to back: occupied pixels hide this one, so visible masks need no second pass.
            shows[in_window] = solid[in_window] & ~self.taken[on_canvas]
            if shows.sum() >= share * whole:
                return left, top, shows
        return None

    def _propose(self, height: int, width: int) -> tuple[int, int]:
        """A random position with the centre on the canvas; on a horizontal line if arranged in a row."""
        rng = self.rng
        # In crowded scenes, up to half of a sticker may lie beyond the edge, as in cropped photographs.
        slack = 0.5 if self.crowded else 0.92
        reach_w, reach_h = self.hw[1] - width * slack, self.hw[0] - height * slack
        x = (1 - slack) * width / -2 + rng.random() * reach_w
        down = self.line + rng.normal(0, 0.05) if self.row else rng.random()
        y = (1 - slack) * height / -2 + down * reach_h
        return round(x), round(y)

    def paint(self, background: Picture) -> Picture:
        """Paints the stickers, and the shadow of each under it, on a background (H, W, 3)."""
        canvas = background.copy()
        for laid in reversed(self.laid):
            if self.shadow is not None:
                self._paint_shadow(canvas, laid, *self.shadow)
            paste(canvas, laid.sticker, laid.left, laid.top)
        return canvas

    def _paint_shadow(
        self, canvas: Picture, laid: PlacedSticker, dx: float, dy: float, strength: float
    ) -> None:
        alpha = laid.sticker[..., 3]
        side = max(alpha.shape)
        soft = int(side * 0.04)
        shape = cv2.copyMakeBorder(alpha, soft, soft, soft, soft, cv2.BORDER_CONSTANT)
        shade = cv2.convertScaleAbs(cv2.blur(shape, (2 * soft + 1,) * 2), alpha=strength)
        left, top = laid.left - soft + round(dx * side), laid.top - soft + round(dy * side)
        on_canvas, in_shade = overlap(self.hw, left, top, shade.shape)
        darken(canvas, on_canvas, np.asarray(shade[in_shade], np.uint8))

    def objects(self, image: Picture) -> tuple[SceneObject, ...]:
        """The placed objects, with their colours in the finished image."""
        return tuple(self._object(image, laid) for laid in self.laid)

    def _object(self, image: Picture, laid: PlacedSticker) -> SceneObject:
        shows, left, top = laid.shows, laid.left, laid.top
        on_canvas, in_window = overlap(self.hw, left, top, shows.shape)
        mask = np.zeros(self.hw, bool)
        mask[on_canvas] = shows[in_window]
        x, y, w, h = cv2.boundingRect(shows.view(np.uint8))
        step = max(1, max(shows.shape) // 24)
        # Colours are read from the finished image, where tint and shadow have changed them; a sample of the
        # pixels is enough to name them.
        seen = image[on_canvas][::step, ::step][shows[in_window][::step, ::step]]
        word = vocabulary()[laid.noun]
        return SceneObject(
            noun=laid.noun,
            plural=word.plural,
            category=word.category,
            style=laid.style,
            mask=mask,
            box_xyxy=(left + x, top + y, left + x + w, top + y + h),
            area_px=int(shows.sum()),
            colours=colour_shares(seen),
        )


def _develop(rng: np.random.Generator, image: Picture) -> Picture:
    """Applies photographic defects: exposure, blur, grain, compression."""
    if rng.random() < 0.35:
        brightness = np.arange(256) * rng.uniform(0.75, 1.15) + rng.uniform(-15, 25)
        image = np.asarray(cv2.LUT(image, np.clip(brightness, 0, 255).astype(np.uint8)), np.uint8)
    if rng.random() < 0.15:
        sigma_px = rng.uniform(0.4, 1.4) * min(image.shape[:2]) / 512
        image = np.asarray(cv2.GaussianBlur(image, (0, 0), sigma_px), np.uint8)
    if rng.random() < 0.15:
        grain = rng.integers(0, int(rng.integers(6, 40)), image.shape, dtype=np.uint8)
        image = np.asarray(cv2.add(cv2.subtract(image, grain // 2), grain), np.uint8)
    if rng.random() < 0.3:
        coded = cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, int(rng.integers(35, 95))])[1]
        image = np.asarray(cv2.imdecode(coded, cv2.IMREAD_COLOR), np.uint8)
    return image
