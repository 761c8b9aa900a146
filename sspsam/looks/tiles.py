"""Tiles of a large picture, in which a phrase is looked for if the whole picture gives no sure answer.

A picture is shrunk to the encoders' input, where an object of a few percent of a large picture's side is too
small to be recognised. The rule:

1. Large is a picture with a longer side of at least LARGE_PX.
2. An answer is as sure as its presence times its score; below SURE, and without a target, tiles are asked.
   Phrases about places, order or size compare objects of the whole picture (`is_about_the_whole`), and are
   never asked of a tile.
3. Tiles are squares of a half of the longer side, each half a tile from the next, then of a quarter, at three
   quarters of a tile: 26 for a picture of 4:3. Sizes that would make more than MOST_TILES are left out.
4. An answer that touches an edge of its tile within the picture may be cut off, and counts as CUT times as
   sure. The surest answer wins, if it is surer than the whole picture's and at least FOUND. A phrase for
   several objects (`is_about_several`) gets all of the tiles' answers that are about as sure.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace

import numpy as np

from sspsam.images.frames import BoolMask, Hw
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.images.views import Window, view_logits_to_mask
from sspsam.looks.second_look import LookRules, Viewer
from sspsam.results import Decoded, Referent, is_no_target

LARGE_PX = 2000
SURE = 0.8
FOUND = 0.7
CUT = 0.8
ABOUT_AS_SURE = 0.9
"""Least sureness of a further object, as a fraction of the surest."""
MOST_TILES = 36
LEVELS = ((1 / 2, 1 / 2), (1 / 4, 3 / 4))
"""Side of the tiles, as a fraction of the picture's longer side, and their distance, as one of their side."""

_WHOLE = re.compile(
    r"\b(left|right|top|bottom|middle|cent(?:er|re)|upper|lower|corner|side|half|edge"
    r"|(?:left|right|top|bottom|upper|inner|outer)-?most|highest|lowest|furthest|farthest|far"
    r"|first|second|third|fourth|fifth|sixth|last|next|\d+(?:st|nd|rd|th)"
    r"|big|bigger|biggest|large|larger|largest|huge|small|smaller|smallest|little|littler|littlest"
    r"|tiny|tinier|tiniest)\b",
    re.IGNORECASE,
)
_SEVERAL = re.compile(
    r"\b(all|both|every|each|several|and|two|three|four|five|six|seven|eight|[a-z]+(?<![su])s)\b",
    re.IGNORECASE,
)
_NEXT_TO = re.compile(r"\bnext to\b", re.IGNORECASE)


@dataclass(frozen=True)
class _Sighting:
    """What a tile's answer shows."""

    window: Window
    decoded: Decoded
    sureness: float


def is_about_the_whole(phrase: str) -> bool:
    """Whether a phrase compares objects of the whole picture: by place, order or size."""
    return _WHOLE.search(_NEXT_TO.sub(" by ", phrase)) is not None


def is_about_several(phrase: str) -> bool:
    """Whether a phrase may refer to several objects: a number, "all", "and", or a plural."""
    return _SEVERAL.search(phrase) is not None


def tiles_of(original_hw: Hw) -> list[Window]:
    """The tiles of a picture, the larger ones first."""
    longest = max(original_hw)
    tiles: list[Window] = []
    for part, distance in LEVELS:
        side = min(round(part * longest), *original_hw)
        tops, lefts = (_starts(length, side, distance) for length in original_hw)
        level = [Window(left, top, side) for top in tops for left in lefts]
        if len(tiles) + len(level) <= MOST_TILES:
            tiles += level
    return list(dict.fromkeys(tiles))


def needs_tiles(referent: Referent, decoded: Decoded) -> bool:
    """Whether an answer about a whole picture is to be looked for in its tiles."""
    question = decoded.question
    if question.has_clicks or max(referent.mask.shape) < LARGE_PX or is_about_the_whole(question.phrase):
        return False
    return referent.no_target or sureness_of(decoded) < SURE


def sureness_of(decoded: Decoded) -> float:
    """How sure an answer is, 0..1."""
    return decoded.score * (1.0 if decoded.presence is None else decoded.presence)


def search_tiles(
    referent: Referent,
    decoded: Decoded,
    viewer: Viewer,
    rules: LookRules,
) -> Referent:
    """Looks for a phrase in the tiles of a large picture, by the rule above.

    Args:
        referent: The answer about the whole picture.
        decoded: The same, as decoded.
        viewer: Runs the networks; the model is that of the first answer.
        rules: A tile without target is one below their presence.

    Returns:
        The surest answer: that of a tile, or of the whole picture.
    """
    hw = referent.mask.shape[0], referent.mask.shape[1]
    tiles = tiles_of(hw)
    views = [
        (tile, view) for tile, view in zip(tiles, viewer.embed_tiles(tiles), strict=True) if view is not None
    ]
    answers = viewer.decode([replace(decoded.question, embedding=view) for _, view in views]) if views else []
    sightings = [
        sighting
        for (window, _), answer in zip(views, answers, strict=True)
        if (sighting := _sighting(window, answer, hw, rules)) is not None
    ]
    best = max(sightings, key=lambda sighting: sighting.sureness, default=None)
    first = 0.0 if referent.no_target else sureness_of(decoded)
    if best is None or best.sureness < max(FOUND, first):
        return referent
    chosen = [best]
    if is_about_several(decoded.question.phrase):
        chosen = [one for one in sightings if one.sureness >= ABOUT_AS_SURE * best.sureness]
    mask = np.zeros_like(referent.mask)
    for sighting in chosen:
        mask[sighting.window.visible(hw)] |= view_logits_to_mask(
            sighting.decoded.mask_logits.numpy(), sighting.window, hw, rules.mask_threshold
        )
    return Referent(
        referent.phrase,
        mask,
        best.decoded.score,
        mask_to_box_xyxy(mask),
        no_target=False,
        reading=referent.reading,
    )


def _sighting(window: Window, decoded: Decoded, original_hw: Hw, rules: LookRules) -> _Sighting | None:
    """What a tile shows of the phrase; None without a target."""
    cells: BoolMask = decoded.mask_logits.numpy() > rules.mask_threshold
    if is_no_target(cells, decoded.presence, rules.min_presence, has_positive_click=False):
        return None
    height, width = original_hw
    cut = (
        (window.left > 0 and cells[:, 0].any())
        or (window.top > 0 and cells[0].any())
        or (window.left + window.side < width and cells[:, -1].any())
        or (window.top + window.side < height and cells[-1].any())
    )
    return _Sighting(window, decoded, sureness_of(decoded) * (CUT if cut else 1.0))


def _starts(length: int, side: int, distance: float) -> list[int]:
    """Where tiles begin along one axis of the picture: evenly, at most so far apart."""
    if length <= side:
        return [0]
    count = 1 + int(np.ceil((length - side) / (distance * side) - 1e-9))
    return [round(start) for start in np.linspace(0, length - side, count)]
