"""Clicks on wrong masks of phrases, and plain SAM clicks from scratch, with the shipped weights.

A mask is wrong if its IoU with the referent is below 0.8. A simulated annotator clicks in the middle of the
largest error, positive on a missing part, negative on a surplus; what the click does is decided by the
backend's own rules (`backend.assistant.click_rules`):

    corrected    clicks on the mask of the phrase; a click outside it adds the missing part, as in a series
                 with Auto-Accept off
    annotated    as docs/label-studio.md advises: a mask of which less than half is right is deleted, and the
                 object clicked; others are corrected
    plain SAM    clicks from scratch: SAM's mask of all points, however it treats them

With --photographs: 252 clicks on 7 photographs of scikit-image, which have no labels: 9 places of each, each
after 4 phrases. A click on the phrase's mask is negative, any other positive. Obeyed: the point is on the
mask afterwards, or off it. Alone: the same click without the phrase, positive.

    python benchmarks/clicks.py [--masks 200] [--clicks 3] [--wrong 0.8]
    python benchmarks/clicks.py --photographs
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from itertools import product

import cv2
import numpy as np
from skimage import data

from backend.assistant.click_rules import State, apply, is_obeyed
from backend.labelstudio.interactions import Interaction
from backend.serving.shared_model import Clicks
from finetune.data.stickers.dataset import StickerDataset
from sspsam import ImageEmbedding, Predictor
from sspsam.images.frames import BoolMask, UInt8Image
from sspsam.results import Question

SEED = 9
SCENES = 2000
"""More than are needed."""
PHRASES_PER_SCENE = 4
HALF_RIGHT = 0.5
PHOTOGRAPH_PHRASES = ("the cat", "the cup", "the person on the left", "all round things")
PLACES = (0.25, 0.5, 0.75)
"""Of clicks on photographs, as fractions of width and height."""


@dataclass(frozen=True)
class WrongMask:
    """What the model took for the referent of a phrase, and the referent."""

    predictor: Predictor
    embedding: ImageEmbedding
    phrase: str
    mask: BoolMask
    truth: BoolMask

    def segment(self, phrase: str, clicks: Clicks) -> BoolMask:
        """As `click_rules.Segment`."""
        question = Question(self.embedding, phrase, **clicks.in_pixels(self.truth.shape))
        return self.predictor.finish(self.predictor.decode([question])[0]).mask


@dataclass
class Row:
    """IoU after each click, and whether each click was obeyed."""

    ious: list[list[float]] = field(default_factory=list)
    obeyed: list[list[bool]] = field(default_factory=list)


def click_on_fault(mask: BoolMask, truth: BoolMask) -> Interaction:
    """A click at the point deepest inside the largest error."""
    faults = np.pad((mask != truth).astype(np.uint8), 1)
    depth = cv2.distanceTransform(faults, cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    x, y = (column + 0.5) / mask.shape[1], (row + 0.5) / mask.shape[0]
    return Interaction("", "click", (x, y, x, y), bool(truth[row, column]))


def overlap(one: BoolMask, other: BoolMask) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def wrong_masks(predictor: Predictor, wrong: float) -> Iterator[WrongMask]:
    """Masks of phrases on unseen scenes of the core nouns; phrases that found nothing have none."""
    scenes = StickerDataset("val", SCENES, seed=SEED, nouns=["core"], phrases_per_scene=PHRASES_PER_SCENE)
    for number in range(SCENES):
        scene, phrases = scenes.scene(number)
        embedding = predictor.embed(scene.image)
        for phrase in phrases:
            if not phrase.targets:
                continue
            truth = scene.mask_of(phrase.targets)
            mask = predictor.predict(embedding, [phrase.phrase])[0].mask
            if mask.any() and overlap(mask, truth) < wrong:
                yield WrongMask(predictor, embedding, phrase.phrase, mask, truth)


def corrected(case: WrongMask, clicks: int) -> Iterator[tuple[BoolMask, bool]]:
    """The mask after each click on the phrase's mask, and whether it obeys all clicks."""
    yield from _clicked(case, State(case.mask, (), case.phrase), clicks)


def annotated(case: WrongMask, clicks: int) -> Iterator[tuple[BoolMask, bool]]:
    """The same, but a mask of which less than half is right is deleted first."""
    if overlap(case.mask, case.truth) >= HALF_RIGHT:
        yield from corrected(case, clicks)
    else:
        yield from _clicked(case, State(None, from_clicks=True), clicks)


def _clicked(case: WrongMask, state: State, clicks: int) -> Iterator[tuple[BoolMask, bool]]:
    points: list[Interaction] = []
    for _ in range(clicks):
        seen = np.zeros_like(case.truth) if state.mask is None else state.mask
        click = click_on_fault(seen, case.truth)
        mask = apply(click, state, case.segment)
        if mask is None:
            yield seen, False
            continue
        points.append(click)
        state = replace(state, mask=mask, earlier=tuple(points))
        yield mask, all(is_obeyed(point, mask) for point in points)


def plain_sam(case: WrongMask, clicks: int) -> Iterator[tuple[BoolMask, bool]]:
    """SAM's mask of all points; the first is in the middle of the object."""
    mask = np.zeros_like(case.truth)
    points: list[tuple[float, float, bool]] = []
    for _ in range(clicks):
        click = click_on_fault(mask, case.truth)
        points.append((*click.xy, click.positive))
        mask = case.segment("", Clicks(tuple(points)))
        yield mask, is_obeyed(click, mask)


def on_photographs(predictor: Predictor) -> None:
    """Prints how many clicks are obeyed after phrases, and alone."""
    after: list[bool] = []
    alone: list[bool] = []
    found = 0
    for image in photographs():
        embedding = predictor.embed(image)
        nothing = np.zeros(image.shape[:2], bool)
        for phrase in PHOTOGRAPH_PHRASES:
            mask = predictor.predict(embedding, [phrase])[0].mask
            found += mask.any()
            case = WrongMask(predictor, embedding, phrase, mask, nothing)
            for x, y in product(PLACES, PLACES):
                on_mask = bool(mask[int(y * mask.shape[0]), int(x * mask.shape[1])])
                click = Interaction("", "click", (x, y, x, y), not on_mask)
                changed = apply(click, State(mask if mask.any() else None, (), phrase), case.segment)
                after.append(changed is not None and is_obeyed(click, changed))
                positive = replace(click, positive=True)
                plain = case.segment("", Clicks(((x, y, True),)))
                alone.append(is_obeyed(positive, plain))
    pairs = len(after) // len(PLACES) ** 2
    print(f"{len(after)} clicks on photographs; a mask for {found} of {pairs} phrases")
    print(f"obeyed after a phrase {100 * np.mean(after):.1f} %, plain SAM alone {100 * np.mean(alone):.1f} %")


def photographs() -> Iterator[UInt8Image]:
    """Photographs of scikit-image's package, (H, W, 3) uint8."""
    for name in ("astronaut", "camera", "chelsea", "coffee", "coins", "rocket"):
        yield _rgb(getattr(data, name)())
    yield _rgb(data.stereo_motorcycle()[0])


def _rgb(image: UInt8Image) -> UInt8Image:
    return np.ascontiguousarray(image if image.ndim == 3 else np.stack([image] * 3, axis=-1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--masks", type=int, default=200)
    parser.add_argument("--clicks", type=int, default=3)
    parser.add_argument("--wrong", type=float, default=0.8)
    parser.add_argument("--photographs", action="store_true")
    options = parser.parse_args()
    predictor = Predictor.from_preset("ssp-sam-demo", device="cpu")
    if options.photographs:
        on_photographs(predictor)
        return
    ways: dict[str, Callable[[WrongMask, int], Iterator[tuple[BoolMask, bool]]]]
    ways = {"corrected": corrected, "annotated": annotated, "plain SAM": plain_sam}
    rows = {name: Row() for name in ways}
    before: list[float] = []
    for case in wrong_masks(predictor, options.wrong):
        before.append(overlap(case.mask, case.truth))
        for name, way in ways.items():
            masks, obeyed = zip(*way(case, options.clicks), strict=True)
            rows[name].ious.append([overlap(mask, case.truth) for mask in masks])
            rows[name].obeyed.append(list(obeyed))
        if len(before) == options.masks:
            break
    half = np.mean([iou < HALF_RIGHT for iou in before])
    print(f"{len(before)} masks with an IoU below {options.wrong} ({100 * half:.0f} % below {HALF_RIGHT})")
    counts = "".join(f"{count:>7}" for count in range(options.clicks + 1))
    print(f"mean IoU in percent after {counts} clicks, points obeyed")
    for name, row in rows.items():
        ious = [0.0 if name == "plain SAM" else np.mean(before), *np.mean(row.ious, axis=0)]
        obeyed = 100 * np.mean(row.obeyed)
        print(f"{name:<26}" + "".join(f"{100 * iou:>7.1f}" for iou in ious) + f"{obeyed:>12.1f} %")


if __name__ == "__main__":
    main()
