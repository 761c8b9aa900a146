"""When to fine-tune, what to hold out, and whether a candidate may serve: pure functions, no I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from backend.quiet_hours import QuietHours

Trigger = Literal["annotation", "schedule", "start-training", "now", "after-finetune"]
EXPLICIT_TRIGGERS: frozenset[Trigger] = frozenset({"start-training", "now"})
"""A person asked: the number of new corrections does not matter."""

GATE_METRIC = "gIoU"
"""Mean IoU over samples in which an empty answer to a phrase without a target scores 1. Range 0..1."""
MARGIN = 0.01
"""How much better than the serving version a candidate must be, in GATE_METRIC."""
FEW_IMAGES = 5
"""Below so many held-out images, no interval can be drawn from them."""
FEW_IMAGES_MARGIN = 0.02
"""What is asked for in its place: a larger margin."""

HELD_OUT_FRACTION = 0.25
"""Of the images with corrections."""
MIN_HELD_OUT_IMAGES = 2
MIN_IMAGES = 2
"""With corrections: below this there is nothing to learn from and something else to measure on."""

STOPPING_FRACTION = 0.125
"""Of the training images with corrections: not learned from, they tell when to stop."""
MIN_STOPPING_IMAGES = 4
"""Fewer tell too little, and are needed more to learn from: then training goes on to its last step."""

Side = Literal["train", "held-out"]


@dataclass(frozen=True)
class Decision:
    """Whether to fine-tune, and why, in words for the person who waits for it."""

    start: bool
    reason: str
    deferred: bool = False
    """Nothing is missing but the right time: it is decided again by itself."""


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
    running_same: bool
    """Whether that one is of just these labels."""
    now: datetime
    quiet_hours: QuietHours
    last_ended: datetime | None
    """When the last fine-tune of the project ended, if there was one."""
    min_interval: timedelta
    """Setting FINETUNE_INTERVAL_MIN."""


def decide(evidence: Evidence) -> Decision:
    """Says whether a fine-tune should start now."""
    if evidence.running is not None:
        reason = f"a fine-tune already waits or runs: {evidence.running}"
        return Decision(False, reason, deferred=not evidence.running_same)
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
    asked = evidence.trigger in EXPLICIT_TRIGGERS
    counts = f"{evidence.new_corrected_masks} of {evidence.finetune_after} new corrected masks"
    if not asked and evidence.new_corrected_masks < evidence.finetune_after:
        return Decision(False, counts)
    why = f"asked for, with {evidence.new_corrected_masks} new corrected masks" if asked else counts
    starts = _may_start(evidence)
    if starts is None or evidence.trigger == "now":
        return Decision(True, why)
    when, rule = starts
    return Decision(False, f"{why}; put off to {when:%Y-%m-%d %H:%M %Z}: {rule}", deferred=True)


def _may_start(evidence: Evidence) -> tuple[datetime, str] | None:
    """When a fine-tune may start that may not start now, and by which rule."""
    zone, moment, rules = evidence.quiet_hours.zone, evidence.now, []
    if evidence.last_ended is not None:
        again = evidence.last_ended + evidence.min_interval
        if evidence.last_ended <= moment < again:  # one that ended after now says that a clock was set back
            moment = again
            minutes = evidence.min_interval.total_seconds() / 60
            rules.append(f"at least {minutes:g} minutes lie between two fine-tunes (FINETUNE_INTERVAL_MIN)")
    if (quiet_until := evidence.quiet_hours.end(moment)) is not None:
        moment = quiet_until
        rules.append(f"no fine-tune starts in the quiet hours {evidence.quiet_hours}")
    return (moment.astimezone(zone), ", and ".join(rules)) if rules else None


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
    # A digest is as good as random and the same on every machine, so the split needs neither a seed nor a
    # lock to come out equal, and an image that arrives later moves no other.
    new = sorted(set(corrected) - set(known))
    for rank, digest in enumerate(new):
        sides[digest] = "held-out" if rank < missing else "train"
    for digest in others:
        sides.setdefault(digest, "train")
    return sides


def choose_stopping(corrected: Collection[str]) -> set[str]:
    """Which of the training images with corrections tell when to stop: those with the lowest digests.

    The gate's held-out images must not, or they would be better for the versions that were chosen by them.
    """
    count = int(STOPPING_FRACTION * len(set(corrected)))
    return set(sorted(set(corrected))[:count]) if count >= MIN_STOPPING_IMAGES else set()


@dataclass(frozen=True)
class Measurement:
    """Two versions on the same samples, by GATE_METRIC."""

    before: float | None
    """Of the version that serves; None where it is not defined."""
    after: float | None
    """Of the candidate."""
    samples: int
    images: int
    interval: tuple[float, float] | None = None
    """Where after - before lies with 95 % confidence, by paired bootstrap over images; None for one image."""

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Verdict:
    """Whether a candidate serves, with the comparison in words."""

    promote: bool
    reason: str


def judge(held_out: Measurement, base: Measurement | None, tolerance: float) -> Verdict:
    """Decides whether a candidate serves.

    It must be better on the held-out corrections: by MARGIN at least, and by so much on so many images that
    the interval lies above 0. An interval over fewer than FEW_IMAGES images says nothing; there it is not
    asked for, and FEW_IMAGES_MARGIN is needed instead. And it must not have lost more than the tolerance on
    what the model knew before: where that is to be measured and cannot be, it is rejected.

    Args:
        held_out: On corrections that neither version was trained on.
        base: On the base validation set; None where there is none.
        tolerance: How much GATE_METRIC may lose on the base validation set.
    """
    better, how = _judge_held_out(held_out)
    kept, what = _judge_base(base, tolerance)
    return Verdict(better and kept, f"{how}. {what}")


def _judge_held_out(held_out: Measurement) -> tuple[bool, str]:
    on = (
        f"{held_out.samples} corrected {_plural('mask', held_out.samples)} of {held_out.images} "
        f"held-out {_plural('image', held_out.images)}"
    )
    if held_out.change is None:
        return False, f"{GATE_METRIC} on {on} is not defined, so nothing shows that it is better"
    comparison = f"{_in_words(held_out)} on {on}; at least "
    if held_out.images < FEW_IMAGES:
        needed = f"+{FEW_IMAGES_MARGIN:.3f} is needed, as fewer than {FEW_IMAGES} images are held out"
        return held_out.change >= FEW_IMAGES_MARGIN, comparison + needed
    # Both conditions: the margin alone would pass on luck with few images, the interval alone would pass a
    # gain too small to be worth a swap once there are many.
    sure = held_out.interval is not None and held_out.interval[0] > 0
    return (
        held_out.change >= MARGIN and sure,
        f"{comparison}+{MARGIN:.3f} and an interval above 0 are needed",
    )


def _judge_base(base: Measurement | None, tolerance: float) -> tuple[bool, str]:
    if base is None:
        return True, "What it knew before was not measured: set VALIDATION_DATA"
    on = f"{base.samples} {_plural('phrase', base.samples)} of the base validation set"
    if base.change is None:
        return False, f"{GATE_METRIC} on {on} is not defined, so nothing shows what it has forgotten"
    return base.change >= -tolerance, f"{_in_words(base)} on {on}; -{tolerance:.3f} is allowed"


def _in_words(measured: Measurement) -> str:
    text = f"{GATE_METRIC} {measured.before:.3f} -> {measured.after:.3f} ({measured.change:+.3f}"
    if measured.interval is not None and measured.images >= FEW_IMAGES:
        text += ", 95 % interval {:+.3f} to {:+.3f}".format(*measured.interval)
    return text + ")"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
