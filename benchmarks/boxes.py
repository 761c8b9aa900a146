"""Boxes of answers: those around the masks against those of the model's box head.

python benchmarks/boxes.py [--preset ssp-sam-demo] [--scenes 60]
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
from common.sections import table, write_section

from finetune.data.stickers.dataset import StickerDataset
from sspsam import Predictor
from sspsam.images.masks import mask_to_box_xyxy

FAMILIES = ("noun", "size", "place", "relation", "colour", "several")
PHRASES = 4
RIGHT_IOU = 0.5


def iou_of(one: Sequence[float], other: Sequence[float]) -> float:
    """Intersection over union of two boxes (x0, y0, x1, y1)."""
    width = min(one[2], other[2]) - max(one[0], other[0])
    height = min(one[3], other[3]) - max(one[1], other[1])
    shared = max(width, 0.0) * max(height, 0.0)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (one, other)]
    return shared / (sum(areas) - shared) if sum(areas) > shared else 0.0


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--preset", default="ssp-sam-demo")
    parser.add_argument("--scenes", type=int, default=60)
    options = parser.parse_args()
    predictor = Predictor.from_preset(options.preset, device="cpu")
    data = StickerDataset("val", count=options.scenes, families=FAMILIES, phrases_per_scene=PHRASES)
    found: dict[str, list[tuple[float, float]]] = {}
    for scene in range(options.scenes):
        samples = [data[PHRASES * scene + turn] for turn in range(PHRASES)]
        embedding = predictor.embed(samples[0].image)
        answers = predictor.predict(embedding, [sample.phrase for sample in samples])
        for sample, answer in zip(samples, answers, strict=True):
            if answer.mask.any() and sample.has_target:
                true_box = mask_to_box_xyxy(sample.mask)
                ious = iou_of(mask_to_box_xyxy(answer.mask), true_box), iou_of(answer.box_xyxy, true_box)
                found.setdefault(sample.family, []).append(ious)
    everything = [ious for listed in found.values() for ious in listed]
    rows = []
    for family, listed in [*sorted(found.items()), ("all", everything)]:
        ious = np.array(listed)
        right = 100 * (ious >= RIGHT_IOU).mean(axis=0)
        means = 100 * ious.mean(axis=0)
        rows.append([family, len(listed), *(f"{value:.1f}" for value in (right[0], right[1], *means))])
    write_section(
        "Boxes",
        f"Answers of `{options.preset}` to phrases of sticker scenes with a target, where a mask was found: "
        "the box around the mask, which a form of rectangles is answered with, and that of the box "
        f"head. Share with an IoU of at least {RIGHT_IOU} with the true box, and mean IoU, in percent.",
        table(
            ["phrases", "count", "Acc@0.5, mask", "Acc@0.5, head", "IoU, mask", "IoU, head"],
            rows,
        ),
    )


if __name__ == "__main__":
    main()
