"""Differences between candidate and incumbent: by sample, by group, and as images."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from finetune.data.sample import Dataset, Sample, samples_by_image
from finetune.evaluation.evaluate import EvaluationResult
from finetune.evaluation.protocols import BoolMask
from finetune.evaluation.report import SAME_IOU, bootstrap_interval, paired_samples
from finetune.evaluation.tiles import shrink_mask, shrink_to
from sspsam.drawing import COLOURS, Rgb, draw_mask, draw_outline

if TYPE_CHECKING:
    import torch

    from sspsam import Predictor

SHOWN_CHANGES = 12
"""Number of the largest improvements, and of the largest losses."""
TILE_PX = 300
"""Longest side of an image in the report; each shows two."""
GAP_PX = 4
BEFORE_COLOUR, AFTER_COLOUR = COLOURS[0], COLOURS[1]
TRUTH_COLOUR: Rgb = (255, 255, 255)
PAPER: Rgb = (255, 255, 255)


@dataclass(frozen=True)
class Change:
    """One sample, as answered by both models. IoU is 0..1."""

    sample_id: str
    image_id: str
    phrase: str
    family: str
    label: str
    before: float
    after: float

    @property
    def difference(self) -> float:
        return self.after - self.before


@dataclass(frozen=True)
class GroupChange:
    """Samples of one family or label. Mean IoUs are 0..1."""

    name: str
    samples: int
    images: int
    before: float
    after: float
    interval: tuple[float, float] | None
    """90 % interval of after - before, by paired bootstrap over images; None for one image."""


def list_changes(incumbent: EvaluationResult, candidate: EvaluationResult) -> list[Change]:
    """Pairs two evaluations of the same samples, in their order.

    Raises:
        ComparisonError: they have different samples, or none.
    """
    return [
        Change(one.sample_id, one.image_id, one.phrase, one.family, one.label, one.iou, other.iou)
        for one, other in paired_samples(incumbent, candidate)
    ]


def group_changes(changes: Iterable[Change], name_of: Callable[[Change], str]) -> list[GroupChange]:
    """Compares by group, largest first; samples without a group are excluded."""
    groups: dict[str, list[Change]] = {}
    for change in changes:
        if name := name_of(change):
            groups.setdefault(name, []).append(change)
    compared = [_group(name, members) for name, members in groups.items()]
    return sorted(compared, key=lambda group: (-group.samples, group.name))


def _group(name: str, members: Sequence[Change]) -> GroupChange:
    image_ids = [change.image_id for change in members]
    return GroupChange(
        name,
        len(members),
        len(set(image_ids)),
        float(np.mean([change.before for change in members])),
        float(np.mean([change.after for change in members])),
        bootstrap_interval([change.difference for change in members], image_ids),
    )


def most_changed(changes: Sequence[Change], count: int = SHOWN_CHANGES) -> tuple[list[Change], list[Change]]:
    """Largest improvements and largest losses, each in descending order of change."""
    ranked = sorted(changes, key=lambda change: change.difference)
    worst = [change for change in ranked[:count] if change.difference < -SAME_IOU]
    best = [change for change in reversed(ranked[-count:]) if change.difference > SAME_IOU]
    return best, worst


def draw_changes(
    predictor: Predictor,
    incumbent: Mapping[str, torch.Tensor],
    candidate: Mapping[str, torch.Tensor],
    dataset: Dataset,
    sample_ids: Iterable[str],
) -> dict[str, Image.Image]:
    """Draws both answers to samples side by side: the incumbent's red, the candidate's blue.

    Args:
        predictor: Has the candidate's tensors on return.
        incumbent: Trainable tensors.
        candidate: Trainable tensors.
        dataset: Contains the samples.
        sample_ids: IDs of the samples to draw.

    Returns:
        Sample ID -> an RGB image.
    """
    chosen = set(sample_ids)
    samples = [
        sample for group in samples_by_image(dataset) for sample in group if sample.sample_id in chosen
    ]
    embeddings = {sample.image_id: predictor.embed(sample.image) for sample in samples}
    answers: list[list[BoolMask]] = []
    for state in (incumbent, candidate):
        predictor.load_trainable(state)
        answers.append(
            [predictor.predict(embeddings[sample.image_id], [sample.phrase])[0].mask for sample in samples]
        )
    return {
        sample.sample_id: _pair(sample, before, after)
        for sample, before, after in zip(samples, *answers, strict=True)
    }


def _pair(sample: Sample, before: BoolMask, after: BoolMask) -> Image.Image:
    tiles = [_tile(sample, before, BEFORE_COLOUR), _tile(sample, after, AFTER_COLOUR)]
    pair = Image.new("RGB", (2 * tiles[0].width + GAP_PX, tiles[0].height), PAPER)
    pair.paste(tiles[0], (0, 0))
    pair.paste(tiles[1], (tiles[0].width + GAP_PX, 0))
    return pair


def _tile(sample: Sample, mask: BoolMask, colour: Rgb) -> Image.Image:
    shrunk = shrink_to(sample.image, TILE_PX)
    hw = (shrunk.shape[0], shrunk.shape[1])
    pixels = draw_mask(shrunk, shrink_mask(mask, hw), colour)
    return Image.fromarray(draw_outline(pixels, shrink_mask(sample.mask, hw), TRUTH_COLOUR))
