"""Effect of IMAGE_PRECISION=bfloat16 and PHRASE_PRECISION=bfloat16: IoU with the masks of float32, and speed.

Clicks on a grid over each of scikit-image's photographs, and phrases about sticker scenes, by default with
the shipped weights. Whether masks change is checked, not whether they are correct. Speed is measured where
the device is faster in bfloat16, with random weights, which do not affect it.

    python benchmarks/half_precision.py [--grid 6] [--device cuda] [--preset ssp-sam-224 --weights FILE]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count, groupby
from pathlib import Path
from typing import TypedDict, get_args

import common.as_served  # noqa: F401 - before torch
import numpy as np
import torch
from common.sections import table, write_section
from common.timing import medians_in_turn
from skimage import color, data
from torch import nn

from finetune.data.dataset import open_dataset
from sspsam import ImageEmbedding, Predictor, build_model
from sspsam.images.frames import BoolMask, UInt8Image, image_to_clip
from sspsam.presets import IMAGE_ENCODERS
from sspsam.runtime.bfloat16 import Precision, is_bfloat16_faster

SCENES = "stickers/val?count=60&phrases=6&nouns=core"
PRESETS = ("ssp-sam-demo", "ssp-sam-224", "ssp-sam-336")
"""Whose speed is measured."""
ROUNDS = 9


class Precisions(TypedDict, total=False):
    """Settings of a predictor."""

    image_precision: Precision
    phrase_precision: Precision


NEITHER = Precisions()
IMAGES = Precisions(image_precision="bfloat16")
PHRASES = Precisions(phrase_precision="bfloat16")


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


def phrase_masks(predictor: Predictor) -> list[BoolMask]:
    """The mask of each phrase about the scenes."""
    found = []
    for _, samples in groupby(open_dataset(SCENES), key=lambda sample: sample.image_id):
        asked = list(samples)
        embedding = predictor.embed(asked[0].image)
        found += [referent.mask for referent in predictor.predict(embedding, [one.phrase for one in asked])]
    return found


def speeds(preset: str, device: str) -> list[str]:
    """Milliseconds of a new phrase on an embedded image in both precisions, and their ratio."""
    torch.manual_seed(0)
    model = build_model(preset)
    config, clip = IMAGE_ENCODERS[model.preset.image_encoder], model.preset.clip
    picture = np.random.default_rng(0).integers(0, 256, (700, 1024, 3), dtype=np.uint8)
    canvas, frame = image_to_clip(picture, clip.image_size, clip.centred)
    sam = torch.randn(1, config.embedding_dim, config.embedding_size, config.embedding_size)
    numbers = count()
    ways: dict[str, Callable[[], object]] = {}
    for precision in get_args(Precision):
        predictor = Predictor(model, nn.Identity(), preset, device, phrase_precision=precision)
        with torch.inference_mode():
            features = model.encode_image(canvas[None].to(predictor.device))
        embedding = ImageEmbedding(frame.original_hw, sam.to(predictor.device), features, frame)

        def ask(predictor: Predictor = predictor, embedding: ImageEmbedding = embedding) -> object:
            return predictor.predict(embedding, [f"the man number {next(numbers)} in red on the left"])

        ask()
        ways[precision] = ask
    took_s = medians_in_turn(ways, ROUNDS)
    exact_s, half_s = took_s["float32"], took_s["bfloat16"]
    return [preset, f"{1000 * exact_s:.0f} ms", f"{1000 * half_s:.0f} ms", f"{exact_s / half_s:.2f}"]


def main() -> None:
    """Measures and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--grid", type=int, default=6)
    parser.add_argument("--preset", default="ssp-sam-demo")
    parser.add_argument("--weights", type=Path, help="replaces the shipped weights")
    parser.add_argument("--device", default="cpu")
    options = parser.parse_args()
    exact, half_images, half_phrases = (
        Predictor.from_preset(options.preset, options.device, options.weights, **settings)
        for settings in (NEITHER, IMAGES, PHRASES)
    )
    rows, found = [], {"image encoder": list[float](), "clicks": list[float]()}
    for name, image in photographs().items():
        expected = masks(exact, image, options.grid)
        for what, predictor in (("image encoder", half_images), ("clicks", half_phrases)):
            ious = [iou(*pair) for pair in zip(expected, masks(predictor, image, options.grid), strict=True)]
            found[what] += ious
            rows.append([name, what, len(ious), *statistics(ious)])
    rows += [["all photographs", what, len(ious), *statistics(ious)] for what, ious in found.items()]
    pairs = zip(phrase_masks(exact), phrase_masks(half_phrases), strict=True)
    ious = [iou(*pair) for pair in pairs]
    rows.append(["sticker scenes", "phrases", len(ious), *statistics(ious)])
    paragraphs = [
        f"IoU with masks computed in float32, of clicks on photographs and of phrases about "
        f"`{SCENES}`, with one part in bfloat16: the image encoder (`IMAGE_PRECISION`), or what answers "
        f"clicks and phrases (`PHRASE_PRECISION`); `{options.preset}` on {options.device}. Use "
        f"`--preset` and `--weights` for other weights.",
        table(["pictures", "in bfloat16", "masks", "mean IoU", "median", "5th percentile"], rows),
    ]
    if is_bfloat16_faster(exact.device):
        paragraphs += [
            "A new phrase on an embedded image with `PHRASE_PRECISION` float32 and bfloat16; random weights, "
            "all cores.",
            table(["preset", "float32", "bfloat16", "times as fast"],
                  [speeds(preset, options.device) for preset in PRESETS]),
        ]  # fmt: skip
    write_section("bfloat16", *paragraphs)


def statistics(ious: list[float]) -> list[str]:
    """Mean, median, 5th percentile."""
    values = (np.mean(ious), np.median(ious), np.percentile(ious, 5))
    return [f"{value:.3f}" for value in values]


if __name__ == "__main__":
    main()
