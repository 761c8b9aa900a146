"""A phrase on an embedded image against the uncached path; a batch of eight against eight single phrases.

Random weights, float32, on the CPU: speed does not depend on the weights. SAM's image encoder is excluded:
its embedding is given in both. Alternatives are measured in turn, on all cores.

    python benchmarks/warm.py [--rounds 9] [--presets ssp-sam-demo ssp-sam-224 ssp-sam-336]
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from itertools import count

import common.as_served  # noqa: F401 - before torch
import numpy as np
import torch
from common.sections import table, write_section
from common.timing import medians_in_turn
from torch import nn

from sspsam import ImageEmbedding, Predictor, build_model
from sspsam.images.frames import image_to_clip
from sspsam.phrases import tokenize
from sspsam.presets import IMAGE_ENCODERS

PRESETS = ("ssp-sam-demo", "ssp-sam-224", "ssp-sam-336")
TOGETHER = 8
WHOLE, WARM, AGAIN, ONE_BY_ONE, AT_ONCE = "whole", "warm", "again", "one by one", "at once"
MOST = {
    "ssp-sam-demo": {AT_ONCE: 0.50},
    "ssp-sam-224": {WARM: 0.50, AT_ONCE: 0.85},
    "ssp-sam-336": {WARM: 0.20, AT_ONCE: 0.85},
}
"""Preset -> maximum ratio of each alternative to its baseline."""


def measure(preset: str, rounds: int) -> dict[str, float]:
    """Median seconds of each alternative."""
    torch.manual_seed(0)
    model = build_model(preset)
    predictor = Predictor(model, nn.Identity(), preset, "cpu")
    config, clip = IMAGE_ENCODERS[model.preset.image_encoder], model.preset.clip
    picture = np.random.default_rng(0).integers(0, 256, (700, 1024, 3), dtype=np.uint8)
    canvas, frame = image_to_clip(picture, clip.image_size, clip.centred)
    sam = torch.randn(1, config.embedding_dim, config.embedding_size, config.embedding_size)
    with torch.inference_mode():
        embedding = ImageEmbedding(frame.original_hw, sam, model.encode_image(canvas[None]), frame)
    numbers = count()

    def new() -> str:
        return f"the man number {next(numbers)} in red on the left"

    def whole() -> None:
        with torch.inference_mode():
            model(canvas[None], sam, tokenize([new()]))

    ways: dict[str, Callable[[], object]] = {
        WHOLE: whole,
        WARM: lambda: predictor.predict(embedding, [new()]),
        AGAIN: lambda: predictor.predict(embedding, ["the dog"]),
        ONE_BY_ONE: lambda: [predictor.predict(embedding, [new()]) for _ in range(TOGETHER)],
        AT_ONCE: lambda: predictor.predict(embedding, [new() for _ in range(TOGETHER)]),
    }
    ways[WHOLE]()
    ways[AGAIN]()
    return medians_in_turn(ways, rounds)


def main() -> None:
    """Measures the presets and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--presets", nargs="+", default=list(PRESETS), choices=PRESETS)
    options = parser.parse_args()
    rows, failed = [], []
    for preset in options.presets:
        took_s = measure(preset, options.rounds)
        parts = {
            WARM: took_s[WARM] / took_s[WHOLE],
            AGAIN: took_s[AGAIN] / took_s[WHOLE],
            AT_ONCE: took_s[AT_ONCE] / took_s[ONE_BY_ONE],
        }
        most = MOST[preset]
        failed += [f"{preset} {name}" for name, part in parts.items() if part > most.get(name, 1)]
        told = {
            name: f"{part:.2f}" + (f" ({most[name]:.2f})" if name in most else "")
            for name, part in parts.items()
        }
        rows.append([preset, told[WARM], told[AGAIN], told[AT_ONCE], f"{took_s[WHOLE]:.2f}"])
        print(*rows[-1], flush=True)
    head = ["preset", "new phrase", "repeated phrase", f"batch of {TOGETHER}", "uncached path, s"]
    write_section(
        "Warm requests",
        "Time of a phrase on an embedded image relative to the uncached path (CLIP's image tower, text "
        f"tower, prompts and decoder; SAM's embedding is given in both), and of {TOGETHER} phrases in one "
        f"batch relative to {TOGETHER} single ones. Targets in brackets (at most). Random weights, float32, "
        "all cores, wall-clock time.",
        table(head, rows),
    )
    if failed:
        raise SystemExit(f"slower than the target: {', '.join(failed)}")


if __name__ == "__main__":
    main()
