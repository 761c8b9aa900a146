"""Predicates about the objects of a scene.

A predicate has a verdict for each object: True, False, or None if people could disagree. The constants
delimit the doubtful range.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from finetune.data.stickers.colours import CONFUSABLE, PREVAILS
from finetune.data.stickers.scenes import Scene, SceneObject

Verdict = bool | None

ON_SIDE = 0.4
"""An object is on the left if its centre is within this fraction of the width, not from NOT_ON_SIDE on."""
NOT_ON_SIDE = 0.58
IN_MIDDLE = 0.13
"""An object is in the middle if it is this close to it on both axes; beyond NOT_IN_MIDDLE, it is not."""
NOT_IN_MIDDLE = 0.24
BESIDE_GAP = 0.08
"""An object is left of another if their centres are this far apart, as a fraction of the width."""
NOT_BESIDE_GAP = -0.03
SAME_DIRECTION = 0.7
"""Maximum ratio of the offset across the direction to that along it; beyond, "left of" is unnatural."""
NEAR = 0.10
"""Objects are next to each other if their gap is at most this fraction of the short side."""
NOT_NEAR = 0.32
LACKS_COLOUR = 0.12
"""An object is not red if less than this fraction of it is, and not much of it is nearly red."""

SIDES = {"left": (0, 1.0), "right": (0, -1.0), "top": (1, 1.0), "bottom": (1, -1.0)}
"""Side -> axis (0 for x), and the sign of the direction away from it."""


@dataclass(frozen=True)
class SpatialPredicate:
    """A predicate: its wordings, with `{}` for the subject, and a verdict per object."""

    sayings: tuple[str, ...]
    verdicts: tuple[Verdict, ...]

    def true_of(self, indices: Sequence[int]) -> tuple[int, ...] | None:
        """The given objects of which it is true; None if it is doubtful for one of them."""
        verdicts = [self.verdicts[index] for index in indices]
        if None in verdicts:
            return None
        return tuple(index for index, verdict in zip(indices, verdicts, strict=True) if verdict)


def _verdict(value: float, true_up_to: float, false_from: float) -> Verdict:
    if value <= true_up_to:
        return True
    return False if value >= false_from else None


def _both(one: Verdict, other: Verdict) -> Verdict:
    if one is False or other is False:
        return False
    return True if one and other else None


def distance_from(scene: Scene, thing: SceneObject, side: str) -> float:
    """Distance of an object's centre from a side of the image, 0 to 1."""
    axis, sign = SIDES[side]
    along: float = thing.centre[axis] / scene.image.shape[1 - axis]
    return along if sign > 0 else 1 - along


def on_side(scene: Scene, side: str) -> SpatialPredicate:
    """Whether objects are in the left, right, top or bottom part of the image."""
    said = {
        "left": ("{} on the left", "{} at the left", "{} on the left side", "left {}"),
        "right": ("{} on the right", "{} at the right", "{} on the right side", "right {}"),
        "top": ("{} at the top", "{} in the upper part", "{} on top", "top {}"),
        "bottom": ("{} at the bottom", "{} in the lower part", "{} on the bottom", "bottom {}"),
    }[side]
    return SpatialPredicate(said, _on_side(scene, side))


def _on_side(scene: Scene, side: str) -> tuple[Verdict, ...]:
    distances = (distance_from(scene, thing, side) for thing in scene.objects)
    return tuple(_verdict(distance, ON_SIDE, NOT_ON_SIDE) for distance in distances)


def in_corner(scene: Scene, rows: str, columns: str) -> SpatialPredicate:
    """Whether objects are in a corner of the image: top or bottom, and left or right."""
    both = zip(_on_side(scene, rows), _on_side(scene, columns), strict=True)
    level = {"top": "upper", "bottom": "lower"}[rows]
    said = (
        f"{{}} at the {rows} {columns}",
        f"{{}} in the {rows} {columns}",
        f"{{}} in the {level} {columns}",
        f"{rows} {columns} {{}}",
    )
    return SpatialPredicate(said, tuple(_both(one, other) for one, other in both))


def in_middle(scene: Scene) -> SpatialPredicate:
    """Whether objects are in the middle of the image."""
    verdicts = []
    for thing in scene.objects:
        off = max(abs(distance_from(scene, thing, side) - 0.5) for side in ("left", "top"))
        verdicts.append(_verdict(off, IN_MIDDLE, NOT_IN_MIDDLE))
    return SpatialPredicate(("{} in the middle", "{} in the center", "{} in the centre"), tuple(verdicts))


def has_colour(scene: Scene, name: str) -> SpatialPredicate:
    """Whether objects have a colour."""
    spelled = ("grey", "gray") if name == "grey" else (name,)
    said = tuple(
        saying for word in spelled for saying in (f"{word} {{}}", f"{word} {{}}", f"{{}} that is {word}")
    )
    return SpatialPredicate(said, tuple(_has_colour(thing, name) for thing in scene.objects))


def _has_colour(thing: SceneObject, name: str) -> Verdict:
    share = thing.colours[name]
    if share >= PREVAILS:
        return True
    alike = sum(thing.colours[other] for other in CONFUSABLE[name])
    return False if share <= LACKS_COLOUR and alike <= 0.35 else None


def beside(scene: Scene, anchor: int, side: str) -> SpatialPredicate:
    """Whether objects are left of, right of, above or below another."""
    said = {
        "left": ("{} left of {anchor}", "{} to the left of {anchor}"),
        "right": ("{} right of {anchor}", "{} to the right of {anchor}"),
        "top": ("{} above {anchor}", "{} over {anchor}"),
        "bottom": ("{} below {anchor}", "{} under {anchor}", "{} beneath {anchor}"),
    }[side]
    other = scene.objects[anchor]
    return SpatialPredicate(said, tuple(_beside(scene, thing, other, side) for thing in scene.objects))


def _beside(scene: Scene, thing: SceneObject, other: SceneObject, side: str) -> Verdict:
    axis, sign = SIDES[side]
    along = (other.centre[axis] - thing.centre[axis]) * sign
    part = along / scene.image.shape[1 - axis]
    if part <= NOT_BESIDE_GAP:
        return False
    across = abs(other.centre[1 - axis] - thing.centre[1 - axis])
    near, far = (thing, other) if sign > 0 else (other, thing)
    overlap_px = near.box_xyxy[axis + 2] - far.box_xyxy[axis]
    shorter_px = min(box[axis + 2] - box[axis] for box in (thing.box_xyxy, other.box_xyxy))
    clear = part >= BESIDE_GAP and across * SAME_DIRECTION <= along and overlap_px <= 0.3 * shorter_px
    return True if clear else None


def gap_between(scene: Scene, one: SceneObject, other: SceneObject) -> float:
    """Gap between the boxes of two objects, as a fraction of the image's short side; 0 if they overlap."""
    a, b = one.box_xyxy, other.box_xyxy
    across = max(a[0] - b[2], b[0] - a[2], 0)
    down = max(a[1] - b[3], b[1] - a[3], 0)
    short_side_px: int = min(scene.image.shape[:2])
    return float(np.hypot(across, down)) / short_side_px


def near(scene: Scene, anchors: Sequence[int]) -> SpatialPredicate:
    """Whether objects are next to any of the given others."""
    said = ("{} next to {anchor}", "{} beside {anchor}", "{} near {anchor}", "{} close to {anchor}")
    return SpatialPredicate(said, tuple(_near(scene, thing, anchors) for thing in scene.objects))


def far(scene: Scene, anchors: Sequence[int]) -> SpatialPredicate:
    """Whether objects are away from all of the given others."""
    said = ("{} that is not next to {anchor}", "{} not near {anchor}", "{} away from {anchor}")
    verdicts = (_near(scene, thing, anchors) for thing in scene.objects)
    return SpatialPredicate(said, tuple(None if verdict is None else not verdict for verdict in verdicts))


def _near(scene: Scene, thing: SceneObject, anchors: Sequence[int]) -> Verdict:
    return _verdict(min(gap_between(scene, thing, scene.objects[index]) for index in anchors), NEAR, NOT_NEAR)


def between(scene: Scene, one: int, other: int) -> SpatialPredicate:
    """Whether objects are between two others."""
    start, end = (np.array(scene.objects[index].centre) for index in (one, other))
    span = end - start
    length = max(float(np.hypot(*span)), 1.0)
    verdicts: list[Verdict] = []
    for thing in scene.objects:
        offset = np.array(thing.centre) - start
        along = float(offset @ span) / length**2
        aside = abs(float(offset[0] * span[1] - offset[1] * span[0])) / length**2
        verdicts.append(_both(_verdict(abs(along - 0.5), 0.3, 0.5), _verdict(aside, 0.18, 0.4)))
    return SpatialPredicate(("{} between {anchor}", "{} in between {anchor}"), tuple(verdicts))


Ranking = Callable[[SceneObject], float]


def ranked(scene: Scene, indices: Sequence[int], key: Ranking) -> list[int]:
    """Objects in ascending order of a key."""
    return sorted(indices, key=lambda index: key(scene.objects[index]))
