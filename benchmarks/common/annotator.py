"""A simulated annotator, who behaves as a real one did in a trial."""

from __future__ import annotations

import zlib
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from backend.labelstudio.predictions import ProposedRegion
from backend.labelstudio.prompt_text import phrase_key
from benchmarks.common.simulated import repaired
from finetune.data.sample import Sample
from finetune.metrics import SegmentationMetrics
from sspsam.images.masks import BoolMask

RATES_SEED = 31
RATES = {"right": 32, "wrong": 16, "false nothing": 31, "true nothing": 4}
"""Of 83 phrases, by the shipped weights' answer."""
RIGHT_IOU, LOST_IOU = 0.8, 0.3
TOLERANCE_PX = 4.0
DRAWN = 13 / 31
"""Of the phrases with nothing found falsely: drawn by hand. The others stay in the prompt box."""
CONFIRMED = 0.5
"""Of the phrases with nothing found rightly: confirmed."""
REDRAWN = 0.5
"""Of the masks in another place: drawn by hand. The others are deleted with their phrase."""


@dataclass(frozen=True, eq=False)
class Answer:
    """The backend's answer to a phrase."""

    sample: Sample
    region_id: str
    """Empty if nothing was found."""
    mask: BoolMask

    @property
    def iou(self) -> float:
        return SegmentationMetrics().update(self.mask, self.sample.mask)

    @property
    def is_right(self) -> bool:
        return self.iou >= RIGHT_IOU

    @property
    def kind(self) -> str:
        """Key of RATES."""
        if not self.mask.any():
            return "false nothing" if self.sample.has_target else "true nothing"
        return "right" if self.is_right else "wrong"


def choose_phrases(scenes: Sequence[Sequence[Answer]], count: int) -> tuple[list[str], Counter[str]]:
    """Chooses samples so that the answers to them have RATES, as far as possible.

    Args:
        scenes: Answers to the candidates of each scene.
        count: Number of samples of a scene.

    Returns:
        Their IDs, and their number by kind.
    """
    chosen, total = Counter[str](), sum(RATES.values())
    ids = []
    for answered in scenes:
        unique = {phrase_key(answer.sample.phrase): answer for answer in answered}
        left = list(unique.values())
        for _ in range(min(count, len(left))):
            share = (chosen.total() + 1) / total
            best = max(left, key=lambda answer: RATES[answer.kind] * share - chosen[answer.kind])
            left.remove(best)
            chosen[best.kind] += 1
            ids.append(best.sample.sample_id)
    return ids, chosen


def annotate(answers: Sequence[Answer]) -> tuple[list[ProposedRegion], list[str], list[str]]:
    """What an annotator makes of a form: regions, confirmed absences, and phrases left in the prompt box."""
    regions, absent, left = [], [], []
    for number, answer in enumerate(answers):
        sample, region_id, mask = answer.sample, answer.region_id, answer.mask
        rng = np.random.default_rng((RATES_SEED, zlib.crc32(sample.sample_id.encode())))
        careful = rng.random()
        if answer.kind == "right":
            label = mask
        elif answer.kind == "false nothing" and careful < DRAWN:
            region_id, label = f"drawn-{number}", sample.mask
        elif answer.kind == "wrong" and (answer.iou >= LOST_IOU or careful < REDRAWN) and sample.has_target:
            label = repaired(mask, sample.mask, TOLERANCE_PX)
        else:
            if not sample.has_target and careful < CONFIRMED:
                absent.append(sample.phrase)
            elif not mask.any():
                left.append(sample.phrase)
            continue
        regions.append(ProposedRegion(region_id, sample.phrase, label, score=1.0))
    return regions, absent, left
