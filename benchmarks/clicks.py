"""Effect of clicks on the answers of the shipped weights: mean IoU after each, with and without the phrase.

Every click is placed like an annotator's: in the middle of the largest error, positive on a missing part,
negative on a surplus. The scenes are unseen ones of the core nouns.

    python benchmarks/clicks.py [--scenes 60] [--clicks 3]
"""

from __future__ import annotations

import argparse

import cv2
import numpy as np

from finetune.data.stickers.dataset import StickerDataset
from sspsam import Predictor
from sspsam.images.frames import BoolMask

SEED = 9
PHRASES_PER_SCENE = 4


def click_on_fault(mask: BoolMask, truth: BoolMask) -> tuple[int, int, int]:
    """x, y and label of the point deepest inside the largest error."""
    faults = np.pad((mask != truth).astype(np.uint8), 1)
    depth = cv2.distanceTransform(faults, cv2.DIST_L2, 5)[1:-1, 1:-1]
    y, x = np.unravel_index(int(depth.argmax()), depth.shape)
    return int(x), int(y), int(truth[y, x])


def overlap(one: BoolMask, other: BoolMask) -> float:
    """Intersection over union."""
    return float((one & other).sum() / max(1, (one | other).sum()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=60)
    parser.add_argument("--clicks", type=int, default=3)
    options = parser.parse_args()
    predictor = Predictor.from_preset("ssp-sam-demo", device="cpu")
    data = StickerDataset(
        "val", options.scenes, seed=SEED, nouns=["core"], phrases_per_scene=PHRASES_PER_SCENE
    )
    with_phrase: list[list[float]] = []
    without: list[list[float]] = []
    obeyed: list[bool] = []
    for number in range(options.scenes):
        scene, phrases = data.scene(number)
        embedding = predictor.embed(scene.image)
        for phrase in phrases:
            if not phrase.targets:
                continue
            truth = scene.mask_of(phrase.targets)
            mask = predictor.predict(embedding, [phrase.phrase])[0].mask
            alone = np.zeros_like(mask)
            points: list[tuple[int, int, int]] = []
            points_alone: list[tuple[int, int, int]] = []
            ious, ious_alone = [overlap(mask, truth)], [0.0]
            for _ in range(options.clicks):
                points.append(click_on_fault(mask, truth))
                mask = predictor.predict(embedding, [phrase.phrase], points=points)[0].mask
                x, y, label = points[-1]
                obeyed.append(bool(mask[y, x]) == bool(label))
                ious.append(overlap(mask, truth))
                points_alone.append(click_on_fault(alone, truth))
                alone = predictor.segment(embedding, points=points_alone).mask
                ious_alone.append(overlap(alone, truth))
            with_phrase.append(ious)
            without.append(ious_alone)
    print(f"{len(with_phrase)} phrases with a target, mean IoU in percent:")
    print("clicks        " + "".join(f"{count:>8}" for count in range(options.clicks + 1)))
    for name, rows in (("phrase", with_phrase), ("clicks alone", without)):
        print(f"{name:<14}" + "".join(f"{100 * mean:>8.1f}" for mean in np.mean(rows, axis=0)))
    print(f"the mask does at the point what the click asks for: {100 * np.mean(obeyed):.0f} % of clicks")


if __name__ == "__main__":
    main()
