"""When to fine-tune, what to hold out, and whether a candidate may serve: pure functions, no I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Literal

Trigger = Literal["annotation", "schedule", "start-training", "now", "after-finetune"]
EXPLICIT_TRIGGERS: frozenset[Trigger] = frozenset({"start-training", "now"})
"""A person asked: the number of new corrections does not matter."""

GATE_METRIC = "gIoU"
"""Mean IoU over samples in which an empty answer to a phrase without a target scores 1. Range 0..1."""
MARGIN = 0.01
"""How much better than the serving version a candidate must be, in GATE_METRIC."""
FEW_IMAGES = 5
FEW_IMAGES_MARGIN = 0.02
"""The margin below FEW_IMAGES held-out images, whose mean moves more by chance."""

HELD_OUT_FRACTION = 0.25
"""Of the images with corrections."""
MIN_HELD_OUT_IMAGES = 2
MIN_IMAGES = 2
"""With corrections: below this there is nothing to learn from and something else to measure on."""

Side = Literal["train", "held-out"]


@dataclass(frozen=True)
class Decision:
    """Whether to fine-tune, and why, in words for the person who waits for it."""

    go: bool
    reason: str


@dataclass(frozen=True)
class Evidence:
    """What a decision is made from."""

    trigger: Trigger
    corrected_masks: int
    new_corrected_masks: int
    """Corrected since the last fine-tune of the project."""
    training_images: int
    """With corrections, on the training side of the split."""
    held_out_images: int
    """With corrections, on the other side."""
    finetune_after: int
    """Setting FINETUNE_AFTER."""
    trained_as: str | None
    """Version that was already trained from just these data and the serving version, if any."""
    running: str | None
    """Id of a fine-tune of the project that waits or runs, if any."""


def decide(evidence: Evidence) -> Decision:
    """Says whether a fine-tune should start now."""
    if evidence.running is not None:
        return Decision(False, f"a fine-tune already waits or runs: {evidence.running}")
    if not (evidence.training_images and evidence.held_out_images):
        images = evidence.training_images + evidence.held_out_images
        return Decision(
            False,
            f"{evidence.corrected_masks} corrected {_plural('mask', evidence.corrected_masks)} on {images} "
            f"{_plural('image', images)} so far: at least {MIN_IMAGES} images are needed, one to learn from "
            "and one, never trained on, to measure on",
        )
    if evidence.trained_as is not None:
        return Decision(False, f"these labels were already trained, as {evidence.trained_as}")
    if evidence.trigger in EXPLICIT_TRIGGERS:
        return Decision(True, f"asked for, with {evidence.new_corrected_masks} new corrected masks")
    counts = f"{evidence.new_corrected_masks} of {evidence.finetune_after} new corrected masks"
    return Decision(evidence.new_corrected_masks >= evidence.finetune_after, counts)


def held_out_target(images: int) -> int:
    """How many of so many images with corrections are held out: a quarter, at least 2, but 1 of 2 or 3."""
    if images < MIN_IMAGES:
        return 0
    if images < 2 * MIN_HELD_OUT_IMAGES:
        return 1
    return max(MIN_HELD_OUT_IMAGES, math.ceil(HELD_OUT_FRACTION * images))


def assign_sides(
    known: Mapping[str, Side], corrected: Collection[str], others: Iterable[str]
) -> dict[str, Side]:
    """Gives images that have no side yet theirs, for ever.

    Of the new images with corrections, those with the lowest digest are held out until the target is met;
    all other new images are for training. An image that has a side keeps it.

    Args:
        known: Image sha256 -> side, of every image seen before, in any project.
        corrected: Digests of the images with corrections.
        others: Digests of the images whose masks were accepted as they were.

    Returns:
        known, and the new ones.
    """
    sides = dict(known)
    held_out = sum(sides.get(digest) == "held-out" for digest in corrected)
    missing = max(0, held_out_target(len(set(corrected))) - held_out)
    new = sorted(set(corrected) - set(known))
    for rank, digest in enumerate(new):
        sides[digest] = "held-out" if rank < missing else "train"
    for digest in others:
        sides.setdefault(digest, "train")
    return sides


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate serves, with the comparison in words."""

    promote: bool
    reason: str


def judge(incumbent: Mapping[str, Any], candidate: Mapping[str, Any], samples: int, images: int) -> Verdict:
    """Compares two versions on the same held-out corrections.

    Args:
        incumbent: Metrics of the serving version, `finetune.metrics` keys, 0..1.
        candidate: The same of the candidate.
        samples: Number of held-out samples.
        images: Number of images they are on.
    """
    few = images < FEW_IMAGES
    margin = FEW_IMAGES_MARGIN if few else MARGIN
    before, after = incumbent.get(GATE_METRIC), candidate.get(GATE_METRIC)
    held_out = (
        f"{samples} corrected {_plural('mask', samples)} of {images} held-out {_plural('image', images)}"
    )
    if before is None or after is None:
        return Verdict(
            False, f"{GATE_METRIC} on {held_out} is not defined, so nothing shows that it is better"
        )
    because = f", as fewer than {FEW_IMAGES} images are held out" if few else ""
    comparison = f"{GATE_METRIC} {before:.3f} -> {after:.3f} ({after - before:+.3f}) on {held_out}"
    return Verdict(after - before >= margin, f"{comparison}; at least +{margin:.3f} is needed{because}")


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
