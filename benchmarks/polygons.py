"""Polygons with few points against the masks that they come from: points and IoU.

python benchmarks/polygons.py [--scenes 60] [--scale 3]
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import cv2
import numpy as np
from common.sections import table, write_section

from finetune.data.stickers.dataset import StickerDataset
from sspsam.images.few_points import FIDELITY, MOST_POINTS, Part, mask_to_parts, polygon_to_runs
from sspsam.images.masks import BoolMask

FIDELITIES = (0.95, 0.97, 0.98, FIDELITY, 0.99, 0.995)
LEAST_IOU = 0.98
"""At the median, with at most MOST_POINTS per polygon."""


def masks(scenes: int, scale: int) -> Iterator[BoolMask]:
    """The targets of sticker scenes, enlarged with smooth edges as a mask of logits is."""
    data = StickerDataset("test", count=scenes, families=("noun", "several", "size"), phrases_per_scene=3)
    for number in range(len(data)):
        mask = data[number].mask
        if mask.any():
            size = (mask.shape[1] * scale, mask.shape[0] * scale)
            yield cv2.resize(mask.astype(np.float32), size, interpolation=cv2.INTER_CUBIC) > 0.5


def iou_of(mask: BoolMask, parts: Sequence[Part]) -> float:
    drawn = np.zeros_like(mask)
    for part in parts:
        drawn |= polygon_to_runs(part.points, *mask.shape).to_mask()
    return int((mask & drawn).sum()) / int((mask | drawn).sum())


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--scale", type=int, default=3)
    options = parser.parse_args()
    found = list(masks(options.scenes, options.scale))
    rows, failed = [], False
    for cut_holes in (True, False):
        for fidelity in FIDELITIES:
            since_s = time.perf_counter()
            drawn = [mask_to_parts(mask, cut_holes, fidelity) for mask in found]
            took_ms = 1000 * (time.perf_counter() - since_s) / len(found)
            ious = [iou_of(mask, parts) for mask, parts in zip(found, drawn, strict=True)]
            points = [len(part.points) for parts in drawn for part in parts]
            median, tenth = np.percentile(ious, (50, 10))
            failed |= fidelity == FIDELITY and (median < LEAST_IOU or max(points) > MOST_POINTS)
            rows.append(
                [
                    "cut with a seam" if cut_holes else "filled",
                    f"{fidelity:g}{' (used)' if fidelity == FIDELITY else ''}",
                    f"{np.median(points):.0f}",
                    max(points),
                    f"{median:.4f}",
                    f"{tenth:.4f}",
                    f"{took_ms:.0f}",
                ]
            )
    write_section(
        "Polygons",
        f"Masks of {len(found)} phrases of sticker scenes as polygons, one per part; medians of points and "
        f"IoU, by the IoU asked for each part. Target: at least {LEAST_IOU} at the median with at most "
        f"{MOST_POINTS} points per polygon; where seams need more, the smallest holes are filled.",
        table(
            [
                "holes",
                "IoU asked",
                "points, median",
                "most",
                "IoU, median",
                "IoU, 10th percentile",
                "ms per mask",
            ],
            rows,
        ),
    )
    if failed:
        raise SystemExit("worse than the target")


if __name__ == "__main__":
    main()
