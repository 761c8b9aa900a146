"""Further looks at pictures, on unseen sticker scenes: masks before and after, and what they cost.

    phrases     validation scenes, the core nouns
    large       pictures of 4000 x 3000 px with objects of 2 to 10 % of the short side
    close-ups   exact boxes and a click in the middle, objects of 35 to 95 %
    ordinary    the same, objects of 5 to 35 %

    python benchmarks/second_look.py [--scenes 1000] [--large 100] [--boxes 100] [--results FILE]

Results are appended to FILE, from which an interrupted run is resumed.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks.common.results import Results
from benchmarks.common.sections import table, write_section
from finetune.data.stickers.dataset import FAMILIES, StickerDataset
from finetune.data.stickers.scenes import CLOSE_UP_RANGE, Scene
from sspsam import ImageEmbedding, Predictor
from sspsam.checkpoints.bundles import frozen_weights
from sspsam.images.frames import BoolMask, UInt8Image
from sspsam.images.views import Window

PRESET = "ssp-sam-demo"
PHRASES = 8
LARGE_HW = (3000, 4000)
SMALL_OBJECTS = (0.02, 0.1)
ORDINARY = (0.05, 0.35)
MOST_TIMES = 2.5
BOUNDARY = 0.02
"""Width of the boundary, as a fraction of the mask's box's longer side."""
ABSENT = "none"

Row = Mapping[str, Any]


def overlap(one: BoolMask, other: BoolMask) -> float:
    """IoU; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return np.count_nonzero(one & other) / union if union else 1.0


def boundary_overlap(one: BoolMask, other: BoolMask) -> float:
    """IoU of the bands inside the masks' edges; their width follows the object's size.

    Source: Cheng et al., Boundary IoU (arXiv 2103.16562), where the width follows the picture's size.
    """
    rows, columns = np.nonzero(other)
    if not len(rows):
        return overlap(one, other)
    width = max(1, round(BOUNDARY * max(np.ptp(rows), np.ptp(columns))))
    return overlap(_band(one, width), _band(other, width))


def _band(mask: BoolMask, width: int) -> BoolMask:
    kernel = np.ones((3, 3), np.uint8)
    padded = np.pad(mask, 1).astype(np.uint8)
    inside = cv2.erode(padded, kernel, iterations=width)[1:-1, 1:-1]
    band: BoolMask = mask & (inside == 0)
    return band


class CountingPredictor(Predictor):
    """Counts its encoder passes."""

    passes = 0

    def embed(self, image: UInt8Image) -> ImageEmbedding:
        self.passes += 1
        return super().embed(image)

    def embed_views(self, image: UInt8Image, windows: Sequence[Window]) -> list[ImageEmbedding]:
        self.passes += len(windows)
        return super().embed_views(image, windows)


def of_phrases(predictor: CountingPredictor, data: StickerDataset, number: int) -> Iterator[Row]:
    """Each phrase of a scene, first look and all looks; times of new and of repeated phrases."""
    plain = Predictor.from_preset(PRESET, device="cpu")
    scene, phrases = data.scene(number)
    embedding, again = predictor.embed(scene.image), plain.embed(scene.image)
    for phrase in phrases:
        truth = scene.mask_of(phrase.targets)
        first_s, first = _timed(partial(plain.predict, again, [phrase.phrase]))
        ask = partial(predictor.predict, embedding, [phrase.phrase])
        before = predictor.passes
        new_s, found = _timed(partial(ask, image=scene.image))
        looks = predictor.passes - before
        again_s, _ = _timed(partial(ask, image=scene.image))
        masks = {"first": first[0].mask, "further": found[0].mask}
        yield {
            "family": phrase.family,
            "looks": looks,
            "seconds": [first_s, new_s, again_s],
            **{name: overlap(mask, truth) for name, mask in masks.items()},
            **{f"{name} boundary": boundary_overlap(mask, truth) for name, mask in masks.items()},
        }


def of_objects(predictor: Predictor, data: StickerDataset, number: int) -> Iterator[Row]:
    """Each object of a scene: its exact box, and a click at its deepest point."""
    scene, _ = data.scene(number)
    embedding = predictor.embed(scene.image)
    for thing in scene.objects:
        prompts: dict[str, dict[str, Any]] = {
            "box": {"boxes": thing.box_xyxy},
            "click": {"points": [[*_middle(thing.mask), 1]]},
        }
        for kind, prompt in prompts.items():
            first = predictor.segment(embedding, **prompt)
            found = predictor.segment(embedding, **prompt, image=scene.image)
            yield {
                "family": kind,
                "side": _side(scene, thing.box_xyxy),
                "first": overlap(first.mask, thing.mask),
                "further": overlap(found.mask, thing.mask),
            }


def _side(scene: Scene, box_xyxy: tuple[int, int, int, int]) -> float:
    """Longer side of a box, as a fraction of the picture's short side."""
    x0, y0, x1, y1 = box_xyxy
    return max(x1 - x0, y1 - y0) / min(scene.image.shape[:2])


def _middle(mask: BoolMask) -> tuple[float, float]:
    depths = cv2.distanceTransform(np.pad(mask, 1).astype(np.uint8), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = np.unravel_index(int(depths.argmax()), depths.shape)
    return column + 0.5, row + 0.5


def _timed(work: Callable[[], Any]) -> tuple[float, Any]:
    started = time.perf_counter()
    found = work()
    return time.perf_counter() - started, found


def measure(
    part: str,
    data: StickerDataset,
    measured: Callable[[CountingPredictor, StickerDataset, int], Iterator[Row]],
    results: Results,
) -> list[Row]:
    """The rows of all scenes of a part."""
    rows: list[Row] = []
    for number in range(data.count):
        if (part, number) not in results:
            predictor = CountingPredictor.from_preset(PRESET, device="cpu")
            results.add({"part": part, "scene": number, "rows": list(measured(predictor, data, number))})
        rows += results[part, number]["rows"]
    return rows


def phrase_table(rows: Sequence[Row]) -> str:
    """Metrics by family, in percent, before and after."""
    groups = {family: [row for row in rows if row["family"] == family] for family in FAMILIES}
    groups["all"] = list(rows)
    lines = []
    for family, some in groups.items():
        if not some:
            continue
        line: list[object] = [family, len(some), _before_after(some, np.mean)]
        line.append(_before_after(some, np.mean, " boundary") if family != ABSENT else "–")
        targets = [row for row in some if row["family"] != ABSENT]
        line += [
            _before_after(targets, lambda ious, least=least: np.mean(ious > least)) if targets else "–"
            for least in (0.9, 0.95)
        ]
        lines.append(line)
    return table(["phrases", "count", "mIoU", "boundary IoU", "Pr@0.9", "Pr@0.95"], lines)


def _before_after(rows: Sequence[Row], measure: Callable[..., Any], suffix: str = "") -> str:
    first, further = (
        100 * float(measure(np.array([row[name + suffix] for row in rows]))) for name in ("first", "further")
    )
    return f"{first:.1f} → {further:.1f}"


def object_table(rows: Mapping[str, Sequence[Row]]) -> str:
    """Mean IoU of boxes and clicks by size, in percent, before and after."""
    lines = []
    for low, high in ((0.05, 0.15), (0.15, 0.35), CLOSE_UP_RANGE):
        some = [row for part in rows.values() for row in part if low <= row["side"] < high]
        for kind in ("box", "click"):
            of_kind = [row for row in some if row["family"] == kind]
            if of_kind:
                sizes = f"{100 * low:.0f} to {100 * high:.0f} %"
                lines.append([sizes, kind, len(of_kind), _before_after(of_kind, np.mean)])
    return table(["object's side", "prompt", "count", "mIoU"], lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=1000)
    parser.add_argument("--large", type=int, default=100)
    parser.add_argument("--boxes", type=int, default=100)
    parser.add_argument("--results", type=Path)
    options = parser.parse_args()
    results = Results(options.results, {"weights": frozen_weights(PRESET)}, ("part", "scene"))
    core = {"split": "val", "nouns": ["core"], "phrases_per_scene": PHRASES}
    phrases = measure("phrases", StickerDataset(count=options.scenes, **core), of_phrases, results)
    large_data = StickerDataset(count=options.large, **core, canvas_hw=LARGE_HW, sticker_range=SMALL_OBJECTS)
    large = measure("large", large_data, of_phrases, results)
    objects = {
        name: measure(
            name,
            StickerDataset(count=options.boxes, **core, sticker_range=sizes, seed=1),
            of_objects,
            results,
        )
        for name, sizes in (("close-ups", CLOSE_UP_RANGE), ("ordinary", ORDINARY))
    }
    seconds = np.array([row["seconds"] for row in phrases])
    looked = seconds[[row["looks"] > 0 for row in phrases]]
    ratios = np.median(looked / looked[:, :1], axis=0) if len(looked) else np.ones(3)
    overall = seconds[:, 1].sum() / seconds[:, 0].sum()
    looks = np.mean([row["looks"] for row in phrases])
    tiles = np.mean([row["looks"] for row in large])
    write_section(
        "Further looks",
        "Masks of `ssp-sam-demo` before and after further looks (`SECOND_LOOK=auto`), in percent.",
        f"{options.scenes} validation scenes of the core nouns, seed 0:",
        phrase_table(phrases),
        f"A phrase needs {looks:.2f} further encoder passes on average, one for each object looked at. New "
        f"phrases on an embedded image take {overall:.1f} times as long as with the first look alone "
        f"(target: at most {MOST_TIMES}). Those that need further passes take {ratios[1]:.1f} times as long, "
        f"and {ratios[2]:.1f} times when asked again (medians).",
        f"{options.large} pictures of 4000 x 3000 px with objects of 2 to 10 % of the short side "
        f"({tiles:.1f} further encoder passes per phrase, of which the tiles are shared by all phrases):",
        phrase_table(large),
        f"Exact boxes, and one click, on {options.boxes} scenes each:",
        object_table(objects),
        "The effect on published weights could not be measured: there were none. Their decoder is tested "
        "with random weights.",
    )


if __name__ == "__main__":
    main()
