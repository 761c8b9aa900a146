"""The promotion gate's bias, simulated: annotators repair only the gross errors of one model's masks.

The model whose masks were shown is compared with another one on these labels, by the gate's rule of release
0.2, by the present one, and by each half of the change alone. Masks are those of sticker scenes; models are
simulated (`benchmarks.common.simulated`), so that their true quality is known.

    python benchmarks/gate_bias.py [--images 20] [--pairs 8]
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import cv2
import numpy as np
from common.sections import table, write_section
from common.simulated import RULES, Compared, SimulatedModel, compare_models

from finetune.data.sample import Sample
from finetune.data.stickers.dataset import StickerDataset

LONGER_SIDE_PX = 448
PHRASES_PER_IMAGE = 4
FIRST_SEED = 9_500_000
SHOWN = SimulatedModel(seed=0)
NO_ERRORS = {"nothing": 0.0, "elsewhere": 0.0, "part": 0.0}
TITLE = "Gate bias"


@dataclass(frozen=True)
class Case:
    """Two models, and annotators."""

    name: str
    shown: SimulatedModel = SHOWN
    other: Mapping[str, float] | None = None
    """What differs in the other model."""
    tolerance_px: float = 4.0
    """Errors no further than this from the true edge are not repaired."""


CASES = (
    Case("equally good"),
    Case("equally good, careful annotators", tolerance_px=2.0),
    Case("equally good, careless annotators", tolerance_px=8.0),
    Case("equally good, empty answers to 37 % of the phrases", replace(SHOWN, nothing=0.37, part=0.2)),
    Case("half as many gross errors", other={"nothing": 0.05, "elsewhere": 0.05, "part": 0.15}),
    Case("twice as many gross errors", other={"nothing": 0.2, "elsewhere": 0.2, "part": 0.5}),
    Case("better edges, all edges drawn", replace(SHOWN, **NO_ERRORS), {"edge_px": 0.7}, 0.0),
    Case("worse edges, all edges drawn", replace(SHOWN, **NO_ERRORS), {"edge_px": 2.2}, 0.0),
)


def scenes(images: int, number: int) -> list[Sample]:
    """Samples with a target, at LONGER_SIDE_PX."""
    data = StickerDataset(
        "test", count=images, phrases_per_scene=PHRASES_PER_IMAGE, seed=FIRST_SEED + number * images
    )
    return [_shrunk(sample) for sample in map(data.__getitem__, range(len(data))) if sample.has_target]


def _shrunk(sample: Sample) -> Sample:
    height, width = sample.mask.shape
    scale = LONGER_SIDE_PX / max(height, width)
    size = round(width * scale), round(height * scale)
    mask = cv2.resize(sample.mask.astype(np.uint8), size, interpolation=cv2.INTER_NEAREST)
    return replace(sample, image=np.zeros((1, 1, 3), np.uint8), mask=mask > 0)


def compare_pairs(case: Case, samples: Sequence[Sequence[Sample]]) -> dict[str, list[Compared]]:
    """Rule -> the comparisons of several pairs of models, each on its own scenes."""
    found: dict[str, list[Compared]] = {rule.name: [] for rule in RULES}
    for number, some in enumerate(samples):
        shown = replace(case.shown, seed=2 * number)
        other = replace(case.shown, seed=2 * number + 1, **(case.other or {}))
        orders = [(shown, other)] if case.other else [(shown, other), (other, shown)]
        for pair in orders:
            for rule, compared in compare_models(some, *pair, case.tolerance_px).items():
                found[rule].append(compared)
    return found


def row(case: Case, found: Mapping[str, Sequence[Compared]]) -> list[str]:
    """Of one case: the true difference, and the measured one and the promotions by each rule."""
    true = np.mean([compared.true for compared in found[RULES[0].name]])
    cells = (_cell(found[rule.name], 1 if case.other else 2) for rule in RULES)
    return [case.name, f"{100 * true + 0.0:+.1f}", *cells]


def _cell(compared: Sequence[Compared], orders: int) -> str:
    """Mean and standard error over pairs of models."""
    measured = np.array([one.measured for one in compared]).reshape(-1, orders).mean(1)
    error = measured.std(ddof=1) / np.sqrt(len(measured)) if len(measured) > 1 else 0.0
    promoted = sum(one.verdict.promote for one in compared)
    return f"{100 * measured.mean():+.1f} ± {100 * error:.1f}, {promoted} of {len(compared)}"


def main() -> None:
    """Simulates and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--images", type=int, default=20, help="held-out images of each pair")
    parser.add_argument("--pairs", type=int, default=8, help="pairs of models in each case")
    options = parser.parse_args()
    samples = [scenes(options.images, number) for number in range(options.pairs)]
    rows = []
    for case in CASES:
        rows.append(row(case, compare_pairs(case, samples)))
        print(*rows[-1], sep=" | ", flush=True)
    write_section(
        TITLE,
        "Annotators repair the gross errors of a simulated model's masks; the labels compare it with another "
        f"one. Difference of gIoU in points, with its standard error, and promotions, for {options.pairs} "
        f"pairs of models on {options.images} held-out images each; `true` is measured on the true masks. "
        "Of equally good models, each is shown in turn, so that the true difference is 0. Release 0.2 "
        "compared corrected masks with edges.",
        table(["the other model", "true", *(rule.name for rule in RULES)], rows),
    )


if __name__ == "__main__":
    main()
