"""The policy: when to fine-tune, what to hold out, what to promote."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backend.quiet_hours import QuietHours
from tests.facts import untold
from worker.finetuning.policy import (
    Evidence,
    Measurement,
    Side,
    assign_sides,
    choose_stopping,
    decide,
    held_out_target,
    judge,
)

ENOUGH = Evidence(
    trigger="annotation",
    corrected_masks=20,
    new_corrected_masks=8,
    training_images=3,
    held_out_images=2,
    finetune_after=8,
    trained_as=None,
    running=None,
    running_same=False,
    now=datetime(2026, 3, 2, 9, 30, tzinfo=UTC),
    quiet_hours=QuietHours.parse((), "UTC"),
    last_ended=None,
    min_interval=timedelta(),
)
QUIET = replace(ENOUGH, quiet_hours=QuietHours.parse(("08:00-18:00",), "Europe/Berlin"))
SOON = replace(ENOUGH, last_ended=datetime(2026, 3, 2, 9, 0, tzinfo=UTC), min_interval=timedelta(hours=1))


START, DEFERRED, REFUSED = (True, False), (False, True), (False, False)
"""`start` and `deferred` of a decision."""
QUIET_RULE = ("08:00-18:00", "Europe/Berlin", "2026-03-02 18:00 CET")
INTERVAL_RULE = ("60 minutes", "FINETUNE_INTERVAL_MIN")
DECISIONS: dict[str, tuple[Evidence, tuple[bool, bool], tuple[str, ...]]] = {
    "threshold reached": (ENOUGH, START, ("8 of 8",)),
    "one short": (replace(ENOUGH, new_corrected_masks=7), REFUSED, ("7 of 8",)),
    "a person asked": (replace(ENOUGH, new_corrected_masks=1, trigger="start-training"), START, ("1",)),
    "schedule waits too": (replace(ENOUGH, new_corrected_masks=7, trigger="schedule"), REFUSED, ("7 of 8",)),
    "same data": (replace(ENOUGH, trained_as="m-0002", trigger="now"), REFUSED, ("m-0002",)),
    "one runs": (replace(ENOUGH, running="finetune-1-ab", trigger="now"), DEFERRED, ("finetune-1-ab",)),
    "one runs of just these labels": (
        replace(ENOUGH, running="finetune-1-ab", running_same=True), REFUSED, ("finetune-1-ab",)
    ),
    "nothing to measure on": (
        replace(ENOUGH, training_images=1, held_out_images=0, trigger="now"), REFUSED,
        ("20 corrected masks", "1 image", "2 images"),
    ),
    "nothing to learn from": (
        replace(ENOUGH, training_images=0, trigger="now"), REFUSED, ("20 corrected masks", "2 images"),
    ),
    "all were trained on": (
        replace(ENOUGH, training_images=5, held_out_images=0), REFUSED,
        ("20 corrected masks on 5 images", "further images", "evaluate on"),
    ),
    "all are held out": (
        replace(ENOUGH, training_images=0, held_out_images=5), REFUSED,
        ("20 corrected masks on 5 images", "further images", "train on"),
    ),
    "quiet hours": (QUIET, DEFERRED, ("8 of 8", *QUIET_RULE)),
    "quiet hours, when asked for": (
        replace(QUIET, trigger="start-training", new_corrected_masks=2), DEFERRED, ("2", *QUIET_RULE)
    ),
    "quiet hours, now": (replace(QUIET, trigger="now"), START, ("8",)),
    "quiet hours are over": (replace(QUIET, now=datetime(2026, 3, 2, 17, 0, tzinfo=UTC)), START, ("8 of 8",)),
    "quiet hours, too few": (replace(QUIET, new_corrected_masks=7), REFUSED, ("7 of 8",)),
    "quiet hours, same data": (replace(QUIET, trained_as="m-0002", trigger="now"), REFUSED, ("m-0002",)),
    "interval": (SOON, DEFERRED, ("8 of 8", *INTERVAL_RULE, "2026-03-02 10:00 UTC")),
    "interval, now": (replace(SOON, trigger="now"), START, ("8",)),
    "interval is over": (replace(SOON, now=datetime(2026, 3, 2, 10, 0, tzinfo=UTC)), START, ("8 of 8",)),
    "the clock was set back": (replace(SOON, now=datetime(2026, 3, 1, tzinfo=UTC)), START, ("8 of 8",)),
    "an interval that ends in quiet hours": (
        replace(SOON, quiet_hours=QuietHours.parse(("09:45-11:00",), "UTC")), DEFERRED,
        ("8 of 8", *INTERVAL_RULE, "09:45-11:00", "2026-03-02 11:00 UTC"),
    ),
}  # fmt: skip
"""Evidence, decision, and what the reason tells."""


@pytest.mark.parametrize(("evidence", "outcome", "told"), DECISIONS.values(), ids=DECISIONS)
def test_decide(evidence: Evidence, outcome: tuple[bool, bool], told: tuple[str, ...]) -> None:
    decision = decide(evidence)
    assert (decision.start, decision.deferred) == outcome
    assert untold(decision.reason, *told) == []


@pytest.mark.parametrize(
    ("images", "held_out"), [(0, 0), (1, 0), (2, 1), (3, 1), (4, 2), (8, 2), (9, 3), (12, 3), (100, 25)]
)
def test_held_out_target(images: int, held_out: int) -> None:
    assert held_out_target(images) == held_out


def test_images_never_change_sides() -> None:
    digests = [f"{number:064x}" for number in range(40)]
    sides: dict[str, Side] = {}
    for seen in (8, 9, 17, 40):
        corrected = digests[40 - seen :]  # lower digests, which would be held out first, come later
        grown = assign_sides(sides, corrected, others=[])
        assert sides.items() <= grown.items()
        sides = grown
        assert sum(side == "held-out" for side in sides.values()) == held_out_target(seen)


@pytest.mark.parametrize(
    ("corrected", "accepted", "expected"), [(8, 8, 2), (8, 40, 10), (2, 3, 1), (0, 9, 0)]
)
def test_of_the_images_without_a_correction_the_same_fraction_is_held_out(
    corrected: int, accepted: int, expected: int
) -> None:
    mended, others = ([f"{kind}{number:02d}" for number in range(40)] for kind in ("c", "a"))
    sides = assign_sides({}, mended[:corrected], others[:accepted])
    held_out = [digest for digest, side in sides.items() if side == "held-out"]
    assert sum(digest.startswith("a") for digest in held_out) == expected
    assert sum(digest.startswith("c") for digest in held_out) == held_out_target(corrected)
    grown = assign_sides(sides, mended[:corrected], others)
    assert sides.items() <= grown.items()


def test_the_split_does_not_depend_on_the_order() -> None:
    corrected = ["c", "a", "d", "b"]
    expected = {"a": "held-out", "b": "held-out", "c": "train", "d": "train", "e": "train"}
    assert assign_sides({}, corrected, ["e"]) == expected
    assert assign_sides({}, corrected[::-1], ["e"]) == expected


def test_an_image_that_was_trained_on_is_not_held_out_later() -> None:
    sides = assign_sides({"a": "train"}, ["a", "b"], [])
    assert sides == {"a": "train", "b": "held-out"}


@pytest.mark.parametrize(("images", "stopping"), [(0, 0), (31, 0), (32, 4), (100, 12)])
def test_an_eighth_tells_when_to_stop_where_there_are_enough(images: int, stopping: int) -> None:
    digests = [f"{number:064x}" for number in range(images)]
    assert choose_stopping(digests[::-1]) == set(digests[:stopping])


SURE, UNSURE = (0.001, 0.2), (-0.001, 0.2)


def held_out(
    before: float | None, after: float | None, images: int = 10, interval: tuple[float, float] | None = SURE
) -> Measurement:
    return Measurement(before, after, 20, images, interval)


def base(before: float | None, after: float | None) -> Measurement:
    return Measurement(before, after, 240, 40, (-0.03, 0.01))


@pytest.mark.parametrize(
    ("measured", "promote"),
    [
        pytest.param(held_out(0.60, 0.6101), True, id="better by the margin"),
        pytest.param(held_out(0.60, 0.605), False, id="better by less"),
        pytest.param(held_out(0.60, 0.55), False, id="worse"),
        pytest.param(held_out(0.60, 0.70, interval=UNSURE), False, id="it could as well be chance"),
        pytest.param(held_out(0.60, 0.70, interval=None), False, id="no interval where there must be one"),
        pytest.param(held_out(0.60, 0.615, images=2), False, id="few images need more"),
        pytest.param(held_out(0.60, 0.63, images=2, interval=UNSURE), True, id="few images, clearly better"),
        pytest.param(held_out(0.60, 0.63, images=1, interval=None), True, id="one image, clearly better"),
        pytest.param(held_out(None, 0.63), False, id="nothing was measured"),
    ],
)
def test_it_must_be_better_on_held_out_corrections(measured: Measurement, promote: bool) -> None:
    for known in (None, base(0.80, 0.80)):
        verdict = judge(measured, known, tolerance=0.02)
        assert verdict.promote is promote
        assert untold(verdict.reason, "20 labels", str(measured.images)) == []


@pytest.mark.parametrize(
    ("known", "promote"),
    [
        pytest.param(base(0.80, 0.7801), True, id="lost less than the tolerance"),
        pytest.param(base(0.80, 0.7799), False, id="forgot too much"),
        pytest.param(base(0.80, 0.90), True, id="gained"),
        pytest.param(None, True, id="none is named"),
        pytest.param(base(0.80, None), False, id="not defined for the candidate"),
        pytest.param(base(None, 0.80), False, id="not defined for the incumbent"),
    ],
)
def test_it_may_not_forget_what_it_knew(known: Measurement | None, promote: bool) -> None:
    assert judge(held_out(0.60, 0.70), known, tolerance=0.02).promote is promote


FIGURES = ("0.612", "0.745", "+0.133")
BASE_FIGURES = ("0.801", "0.795", "-0.006", "-0.030", "+0.010", "240 phrases", "-0.020")


def test_the_reason_tells_what_the_figures_stand_for() -> None:
    measured = Measurement(0.5, 0.6, 9, 5, (0.05, 0.15), asked=345, unanswered=1)
    stated = (
        "on the 345 phrases asked, as estimated from 9 labels and 1 unanswered phrase of 5 held-out images"
    )
    assert stated in judge(measured, None, tolerance=0.02).reason
    all_answered = judge(replace(measured, unanswered=0), None, tolerance=0.02).reason
    assert "on the 345 phrases asked, as estimated from 9 labels of 5 held-out images" in all_answered
    for_themselves = judge(replace(measured, unanswered=0, asked=0), None, tolerance=0.02).reason
    assert "(+0.100, 90 % interval +0.050 to +0.150) on 9 labels of 5 held-out images" in for_themselves


def test_the_reason_tells_that_edges_were_left_out() -> None:
    measured = held_out(0.60, 0.70)
    for drawn, told in ((1.0, False), (0.85, False), (0.84, True), (0.0, True)):
        reason = judge(replace(measured, drawn_edges=drawn), None, 0.02).reason
        assert (untold(reason, "edges", f"{drawn:.0%}") == []) is told, reason


@pytest.mark.parametrize(
    ("measured", "known", "told"),
    [
        pytest.param(
            held_out(0.612, 0.745),
            base(0.801, 0.795),
            (*FIGURES, "+0.001", "+0.200", "20 labels", "10", "+0.010", *BASE_FIGURES),
            id="both measured",
        ),
        pytest.param(
            held_out(0.612, 0.745, images=2),
            None,
            (*FIGURES, "20 labels", "2", "+0.020", "5 images", "VALIDATION_DATA"),
            id="few images, and no base validation set",
        ),
        pytest.param(
            held_out(0.612, 0.745), base(None, None), (*FIGURES, "240 phrases"), id="base not defined"
        ),
    ],
)
def test_the_reason_tells_figures_and_rules(
    measured: Measurement, known: Measurement | None, told: tuple[str, ...]
) -> None:
    reason = judge(measured, known, 0.02).reason
    assert untold(reason, *told) == []
    assert ("VALIDATION_DATA" in reason) == (known is None)
