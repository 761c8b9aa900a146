"""Effect of IMAGE_PRECISION=bfloat16 on masks: IoU with those of float32, on photographs.

Clicks on a grid over each of scikit-image's photographs, by default with the shipped weights. These were
trained on drawn scenes: the benchmark checks whether masks change, not whether they are correct.

    python benchmarks/half_precision.py [--grid 6] [--device cuda] [--preset ssp-sam-224 --weights FILE]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import get_args

import numpy as np
from common.sections import table, write_section
from skimage import color, data

from sspsam import Predictor
from sspsam.encoding import ImagePrecision
from sspsam.images.frames import BoolMask, UInt8Image


def photographs() -> dict[str, UInt8Image]:
    """Name -> (H, W, 3) RGB photographs from scikit-image."""
    return {
        "astronaut": data.astronaut(),
        "cat": data.chelsea(),
        "coffee": data.coffee(),
        "rocket": data.rocket(),
        "motorcycle": data.stereo_motorcycle()[0],
        "camera": np.asarray(color.gray2rgb(data.camera())),
        "coins": np.asarray(color.gray2rgb(data.coins())),
    }


def masks(predictor: Predictor, image: UInt8Image, grid: int) -> list[BoolMask]:
    """The mask of each click on a grid."""
    embedding = predictor.embed(image)
    height, width = image.shape[:2]
    places = (np.arange(grid) + 0.5) / grid
    clicks = [[(x * width, y * height, 1)] for y in places for x in places]
    return [predictor.segment(embedding, points=click).mask for click in clicks]


def iou(one: BoolMask, other: BoolMask) -> float:
    """IoU; 1 if both are empty."""
    union = np.count_nonzero(one | other)
    return float(np.count_nonzero(one & other) / union) if union else 1.0


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", type=int, default=6)
    parser.add_argument("--preset", default="ssp-sam-demo")
    parser.add_argument("--weights", type=Path, help="replaces the shipped weights")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    predictors = [
        Predictor.from_preset(options.preset, options.device, options.weights, precision)
        for precision in get_args(ImagePrecision)
    ]
    rows, found = [], []
    for name, image in photographs().items():
        exact, half = (masks(predictor, image, options.grid) for predictor in predictors)
        ious = [iou(*pair) for pair in zip(exact, half, strict=True)]
        found += ious
        rows.append([name, len(ious), *statistics(ious)])
    rows.append(["all", len(found), *statistics(found)])
    write_section(
        "bfloat16 in the image encoder",
        f"IoU between masks computed in bfloat16 and in float32, from clicks on photographs; "
        f"`{options.preset}` on {options.device}. Use `--preset` and `--weights` for other weights.",
        table(["photograph", "clicks", "mean IoU", "median", "5th percentile"], rows),
    )


def statistics(ious: list[float]) -> list[str]:
    """Mean, median, 5th percentile."""
    values = (np.mean(ious), np.median(ious), np.percentile(ious, 5))
    return [f"{value:.3f}" for value in values]


if __name__ == "__main__":
    main()
