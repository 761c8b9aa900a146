"""When to fine-tune, what to hold out, and whether a candidate may serve: pure functions, no I/O."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Set
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal

from backend.quiet_hours import QuietHours
from worker.lines import Side

Trigger = Literal["annotation", "schedule", "start-training", "now", "after-finetune"]
EXPLICIT_TRIGGERS: frozenset[Trigger] = frozenset({"start-training", "now"})
"""Requested by a person: the number of new corrections is ignored."""

GATE_METRIC = "gIoU"
"""Mean IoU over samples; an empty answer to a phrase without a target scores 1, and a label that is a box
scores 1 if the box around the answer has IoU 0.5 with it, else 0. Range 0..1."""
BOX_METRIC = "Acc@0.5"
"""What GATE_METRIC is if all labels are boxes."""
MARGIN = 0.01
"""Minimum gain of a candidate over the serving version, in GATE_METRIC."""
FEW_IMAGES = 5
"""Below this many held-out images, a confidence interval is meaningless."""
FEW_IMAGES_MARGIN = 0.02
"""Larger margin required instead."""

MIN_DRAWN_EDGES = 0.85
"""Below this fraction of edges that annotators drew, edges are left out of the comparison. Above it, the
other edges hardly favour the version that proposed them."""

HELD_OUT_FRACTION = 0.25
"""Fraction of the images with corrections, and of the others."""
MIN_HELD_OUT_IMAGES = 2
MIN_IMAGES = 2
"""Images with corrections: at least one to train on and another one to evaluate on."""

STOPPING_FRACTION = 0.125
"""Fraction of the training images with corrections that is used for early stopping, not for training."""
MIN_STOPPING_IMAGES = 4
"""With fewer, there is no early stopping: they are too noisy a signal and more useful for training."""


@dataclass(frozen=True)
class Decision:
    """Whether to fine-tune, and the reason, written for the person who is waiting for it."""

    start: bool
    reason: str
    deferred: bool = False
    """Only the time is not right yet; the scheduler decides again."""


@dataclass(frozen=True)
class Evidence:
    """Input of a decision."""

    trigger: Trigger
    corrected_masks: int
    new_corrected_masks: int
    """Corrected since the last fine-tune of the project."""
    training_images: int
    """Images with corrections on the training side of the split."""
    held_out_images: int
    """Images with corrections on the held-out side."""
    finetune_after: int
    """Setting FINETUNE_AFTER."""
    trained_as: str | None
    """Version already trained from exactly these data and the serving version, if any."""
    running: str | None
    """Id of a queued or running fine-tune of the project, if any."""
    running_same: bool
    """Whether that fine-tune uses exactly these labels."""
    now: datetime
    quiet_hours: QuietHours
    last_ended: datetime | None
    """End of the project's last fine-tune, if any."""
    min_interval: timedelta
    """Setting FINETUNE_INTERVAL_MIN."""


def decide(evidence: Evidence) -> Decision:
    """Decides whether a fine-tune starts now."""
    if evidence.running is not None:
        reason = f"a fine-tune is already queued or running: {evidence.running}"
        return Decision(False, reason, deferred=not evidence.running_same)
    if not (evidence.training_images and evidence.held_out_images):
        return Decision(False, _needed_images(evidence))
    if evidence.trained_as is not None:
        return Decision(False, f"these labels were already used to train {evidence.trained_as}")
    asked = evidence.trigger in EXPLICIT_TRIGGERS
    counts = f"{evidence.new_corrected_masks} of {evidence.finetune_after} new corrected masks"
    if not asked and evidence.new_corrected_masks < evidence.finetune_after:
        return Decision(False, counts)
    why = f"requested, with {evidence.new_corrected_masks} new corrected masks" if asked else counts
    starts = _may_start(evidence)
    if starts is None or evidence.trigger == "now":
        return Decision(True, why)
    when, rule = starts
    return Decision(False, f"{why}; deferred to {when:%Y-%m-%d %H:%M %Z}: {rule}", deferred=True)


def _needed_images(evidence: Evidence) -> str:
    images = evidence.training_images + evidence.held_out_images
    labels = (
        f"{evidence.corrected_masks} corrected {_plural('mask', evidence.corrected_masks)} on {images} "
        f"{_plural('image', images)}"
    )
    if images < MIN_IMAGES:
        return (
            f"{labels} so far: at least {MIN_IMAGES} images are needed, one to train on and one, never "
            "trained on, to evaluate on"
        )
    if evidence.training_images:
        return f"{labels}, all trained on before: corrections on further images are needed, to evaluate on"
    return f"{labels}, all held out to evaluate on: corrections on further images are needed, to train on"


def _may_start(evidence: Evidence) -> tuple[datetime, str] | None:
    """Earliest start of a fine-tune that may not start now, and the rules that defer it."""
    zone, moment, rules = evidence.quiet_hours.zone, evidence.now, []
    if evidence.last_ended is not None:
        again = evidence.last_ended + evidence.min_interval
        if evidence.last_ended <= moment < again:  # an end in the future means that a clock was set back
            moment = again
            minutes = evidence.min_interval.total_seconds() / 60
            rules.append(f"at least {minutes:g} minutes lie between two fine-tunes (FINETUNE_INTERVAL_MIN)")
    if (quiet_until := evidence.quiet_hours.end(moment)) is not None:
        moment = quiet_until
        rules.append(f"no fine-tune starts in the quiet hours {evidence.quiet_hours}")
    return (moment.astimezone(zone), ", and ".join(rules)) if rules else None


def held_out_target(images: int) -> int:
    """Number of held-out images among those with corrections: a quarter, at least 2, but 1 of 2 or 3."""
    if images < MIN_IMAGES:
        return 0
    if images < 2 * MIN_HELD_OUT_IMAGES:
        return 1
    return max(MIN_HELD_OUT_IMAGES, math.ceil(HELD_OUT_FRACTION * images))


def assign_sides(
    known: Mapping[str, Side], corrected: Collection[str], others: Iterable[str]
) -> dict[str, Side]:
    """Permanently assigns a side to each image that has none.

    Of the new images with corrections, those with the lowest digest are held out until the target is met,
    and of the others the same fraction: images on which only the serving version failed would favour any
    candidate that fails elsewhere. An assigned image keeps its side.

    Args:
        known: Image sha256 -> side, for every image that the line has seen before.
        corrected: Digests of the images with corrections.
        others: Digests of the images whose masks were all accepted unchanged.

    Returns:
        known, extended by the new images.
    """
    corrected, others = set(corrected), set(others)
    target = held_out_target(len(corrected))
    fraction = target / len(corrected) if corrected else 0.0
    sides = _hold_out(known, corrected, target)
    return _hold_out(sides, others, math.floor(fraction * len(others)))


def _hold_out(known: Mapping[str, Side], images: Set[str], target: int) -> dict[str, Side]:
    """Extends the sides by the images: held out until the target is met, then for training."""
    sides = dict(known)
    missing = max(0, target - sum(sides.get(digest) == "held-out" for digest in images))
    # Digests are effectively random and equal on every machine, so the split is deterministic without a
    # seed or a lock, and a later image never moves an earlier one.
    for rank, digest in enumerate(sorted(images - set(known))):
        sides[digest] = "held-out" if rank < missing else "train"
    return sides


def choose_stopping(corrected: Collection[str]) -> set[str]:
    """Chooses the training images with corrections for early stopping: those with the lowest digests.

    The gate's held-out images are never used for this: it would bias the gate towards the candidate.
    """
    count = int(STOPPING_FRACTION * len(set(corrected)))
    return set(sorted(set(corrected))[:count]) if count >= MIN_STOPPING_IMAGES else set()


@dataclass(frozen=True)
class Measurement:
    """GATE_METRIC of two versions on the same samples."""

    before: float | None
    """Of the serving version; None if undefined."""
    after: float | None
    """Of the candidate."""
    samples: int
    images: int
    interval: tuple[float, float] | None = None
    """90 % confidence interval of after - before, by paired bootstrap over images; None for one image."""
    drawn_edges: float = 1.0
    """Fraction of the edges of the samples' masks that annotators drew, 0..1."""
    boxes: int = 0
    """Samples whose label is a box."""
    asked: int = 0
    """Phrases that the figures stand for, as estimated from the samples; 0: for the samples alone."""
    unanswered: int = 0
    """Phrases without a label that were asked of both versions for the estimate."""

    @property
    def metric(self) -> str:
        """Name of the metric."""
        return BOX_METRIC if self.boxes == self.samples > 0 else GATE_METRIC

    @property
    def change(self) -> float | None:
        return None if self.before is None or self.after is None else self.after - self.before


@dataclass(frozen=True)
class Verdict:
    """Whether to promote a candidate, with the comparison in words."""

    promote: bool
    reason: str


def compares_edges(drawn_edges: float) -> bool:
    """Whether masks are compared up to their edges, given the fraction of edges that annotators drew.

    An edge that an annotator left as proposed agrees with the proposing version, whatever the truth is. If
    there are many, a band around the edges of all labels is left out, also where they were drawn: annotators
    draw where the serving version failed, so only its failures would be measured more strictly.
    """
    return drawn_edges >= MIN_DRAWN_EDGES


def judge(
    held_out: Measurement,
    base: Measurement | None,
    tolerance: float,
    projects: Mapping[str, Measurement] | None = None,
    restarts: bool = False,
) -> Verdict:
    """Decides whether a candidate is promoted.

    On the held-out labels it must gain at least MARGIN, with a 90 % interval above 0: it is better with a
    confidence of 95 %. An interval over fewer than FEW_IMAGES images is meaningless; FEW_IMAGES_MARGIN is
    required instead. On the base validation set it must not lose more than the tolerance; if that set is
    given but its metric is undefined, the candidate is rejected. In a line that projects share, no project
    with at least FEW_IMAGES held-out images may lose more than the tolerance.

    Args:
        held_out: On labels that neither version was trained on.
        base: On the base validation set; None if there is none.
        tolerance: Maximum loss of GATE_METRIC.
        projects: On the held-out labels of each project of a shared line, by its id.
        restarts: The candidate does not continue the serving version, on a person's request: to serve, it
            need not be better, but must not lose more than the tolerance on the held-out labels.
    """
    good, how = _judge_restart(held_out, tolerance) if restarts else _judge_held_out(held_out)
    kept, what = _judge_base(base, tolerance)
    fair, who = _judge_projects(projects or {}, tolerance)
    promote = good and kept and fair
    advice = "" if promote else _advice(good, kept)
    return Verdict(promote, ". ".join(text for text in (how, who, what, advice) if text))


def _advice(good: bool, kept: bool) -> str:
    """What would help a rejected candidate."""
    if not kept:
        return (
            "What would help: labels that use known words as before, or a greater VALIDATION_TOLERANCE, if "
            "this project may forget other pictures"
        )
    if not good:
        return (
            "What would help: more corrections of the same words, on images of their own, since a quarter of "
            "the images is held out; new nouns are learned best"
        )
    return "What would help: corrections of the project that lost"


def _judge_restart(held_out: Measurement, tolerance: float) -> tuple[bool, str]:
    on = _held_out_in_words(held_out)
    if held_out.change is None:
        return False, f"{held_out.metric} on {on} is undefined, so a loss cannot be excluded"
    return held_out.change >= -tolerance, f"{_in_words(held_out)} on {on}; -{tolerance:.3f} is allowed"


def _judge_projects(projects: Mapping[str, Measurement], tolerance: float) -> tuple[bool, str]:
    """Names the projects that lose; those with few held-out images are not judged."""
    losses = [
        f"Project {project} loses: {_in_words(measured)} on {_held_out_in_words(measured)}; "
        f"-{tolerance:.3f} is allowed"
        for project, measured in projects.items()
        if measured.images >= FEW_IMAGES and measured.change is not None and measured.change < -tolerance
    ]
    judged = sum(measured.images >= FEW_IMAGES for measured in projects.values())
    if losses or not projects:
        return not losses, ". ".join(losses)
    return (
        True,
        f"Of {len(projects)} projects, {judged} with {FEW_IMAGES} held-out images or more, none loses",
    )


def _judge_held_out(held_out: Measurement) -> tuple[bool, str]:
    on = _held_out_in_words(held_out)
    if held_out.change is None:
        return False, f"{held_out.metric} on {on} is undefined, so an improvement cannot be shown"
    comparison = f"{_in_words(held_out)} on {on}; at least "
    if held_out.images < FEW_IMAGES:
        needed = f"+{FEW_IMAGES_MARGIN:.3f} is needed, as fewer than {FEW_IMAGES} images are held out"
        return held_out.change >= FEW_IMAGES_MARGIN, comparison + needed
    # Both conditions: with few images the margin alone would pass by chance; with many, the interval alone
    # would pass a gain too small to be worth a swap.
    sure = held_out.interval is not None and held_out.interval[0] > 0
    return (
        held_out.change >= MARGIN and sure,
        f"{comparison}+{MARGIN:.3f} and an interval above 0 are needed",
    )


def _held_out_in_words(measured: Measurement) -> str:
    text = f"{measured.samples} {_plural('label', measured.samples)}"
    if measured.unanswered:
        text += f" and {measured.unanswered} unanswered {_plural('phrase', measured.unanswered)}"
    text += f" of {measured.images} held-out {_plural('image', measured.images)}"
    if measured.asked:
        text = f"the {measured.asked} phrases asked, as estimated from {text}"
    if 0 < measured.boxes < measured.samples:
        text += f", {measured.boxes} of them {'a box' if measured.boxes == 1 else 'boxes'}, by {BOX_METRIC}"
    if not compares_edges(measured.drawn_edges):
        text += f", without mask edges, of which annotators drew only {measured.drawn_edges:.0%}"
    return text


def _judge_base(base: Measurement | None, tolerance: float) -> tuple[bool, str]:
    if base is None:
        return True, "Forgetting was not measured: set VALIDATION_DATA"
    on = f"{base.samples} {_plural('phrase', base.samples)} of the base validation set"
    if base.change is None:
        return False, f"{GATE_METRIC} on {on} is undefined, so forgetting cannot be measured"
    return base.change >= -tolerance, f"{_in_words(base)} on {on}; -{tolerance:.3f} is allowed"


def _in_words(measured: Measurement) -> str:
    text = f"{measured.metric} {measured.before:.3f} -> {measured.after:.3f} ({measured.change:+.3f}"
    if measured.interval is not None and measured.images >= FEW_IMAGES:
        text += ", 90 % interval {:+.3f} to {:+.3f}".format(*measured.interval)
    return text + ")"


def _plural(noun: str, count: int) -> str:
    return noun if count == 1 else f"{noun}s"
