"""The promotion gate's bias, simulated: annotators repair only the gross errors of one model's masks.

The model whose masks were shown is compared with another one on these labels, by the gate's rule of release
0.2, by the present one, and by parts of the change alone. Masks are those of sticker scenes; models are
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
from common.simulated import RULES, Annotators, Compared, SimulatedModel, compare_models

from finetune.data.sample import Sample
from finetune.data.stickers.dataset import StickerDataset

LONGER_SIDE_PX = 448
PHRASES_PER_IMAGE = 4
FIRST_SEED = 9_500_000
SHOWN = SimulatedModel(seed=0)
UNFINDING = replace(SHOWN, nothing=0.37, part=0.2)
EXACT = replace(SHOWN, nothing=0, elsewhere=0, part=0, invented=0)
HELD_OUT = 0.5
DILIGENT, REFINING = Annotators(), Annotators(tolerance_px=0.0)
HURRIED = Annotators(drawn=13 / 31, confirmed=0.5)
"""As in a trial: the other phrases with nothing found stay unanswered."""
UNCONFIRMING = Annotators(drawn=1.0, confirmed=0.0)
TITLE = "Gate bias"


@dataclass(frozen=True)
class Case:
    """Two models, and annotators."""

    name: str
    shown: SimulatedModel = SHOWN
    other: Mapping[str, float] | None = None
    """What differs in the other model."""
    annotators: Annotators = DILIGENT


CASES = (
    Case("equally good"),
    Case("equally good, careful annotators", annotators=Annotators(tolerance_px=2.0)),
    Case("equally good, careless annotators", annotators=Annotators(tolerance_px=8.0)),
    Case("equally good, nothing found for 37 %", UNFINDING),
    Case("equally good, nothing found for 37 %, hurried annotators", UNFINDING, annotators=HURRIED),
    Case("equally good, nothing found for 37 %, no absence confirmed", UNFINDING, annotators=UNCONFIRMING),
    Case("half as many gross errors", other={"nothing": 0.05, "elsewhere": 0.05, "part": 0.15}),
    Case("nothing found for 15 %, not 37 %, hurried annotators", UNFINDING, {"nothing": 0.15}, HURRIED),
    Case("twice as many gross errors", other={"nothing": 0.2, "elsewhere": 0.2, "part": 0.5}),
    Case("nothing found for 55 %, not 37 %, hurried annotators", UNFINDING, {"nothing": 0.55}, HURRIED),
    Case("70 % of the absent objects invented, hurried annotators", UNFINDING, {"invented": 0.7}, HURRIED),
    Case("better edges, all edges drawn", EXACT, {"edge_px": 0.7}, REFINING),
    Case("worse edges, all edges drawn", EXACT, {"edge_px": 2.2}, REFINING),
)


def scenes(images: int, number: int) -> list[Sample]:
    """All phrases of a project, with that many images to hold out and as many others, at LONGER_SIDE_PX."""
    count = round(images / HELD_OUT)
    data = StickerDataset(
        "test", count=count, phrases_per_scene=PHRASES_PER_IMAGE, seed=FIRST_SEED + number * count
    )
    return [_shrunk(sample) for sample in map(data.__getitem__, range(len(data)))]


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
            for rule, compared in compare_models(some, *pair, case.annotators, HELD_OUT).items():
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
        "Annotators repair the gross errors of a simulated model's masks; the labels compare it with "
        "another one. Difference of gIoU in points, with its standard error, and promotions, for "
        f"{options.pairs} pairs of models on {options.images} held-out images of "
        f"{round(options.images / HELD_OUT)}; `true` is measured on the true masks of all phrases, of which "
        "some have no target. Of equally good models, each is shown in turn, so that the true difference is "
        "0. Hurried annotators draw 13 of 31 objects that were not found, and confirm one of two absences, "
        "as in a trial; the other phrases stay unanswered. Release 0.2 compared corrected masks with edges.",
        table(["the other model", "true", *(rule.name for rule in RULES)], rows),
    )


if __name__ == "__main__":
    main()
