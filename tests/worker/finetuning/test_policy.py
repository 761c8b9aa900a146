"""The written-down rules: when to fine-tune, what is held out, what may serve."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest

from backend.quiet_hours import QuietHours
from worker.finetuning.policy import (
    Decision,
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


@pytest.mark.parametrize(
    ("evidence", "go", "reason"),
    [
        pytest.param(ENOUGH, True, "8 of 8 new", id="threshold reached"),
        pytest.param(replace(ENOUGH, new_corrected_masks=7), False, "7 of 8 new", id="one short"),
        pytest.param(
            replace(ENOUGH, new_corrected_masks=1, trigger="start-training"),
            True,
            "requested",
            id="person asked",
        ),
        pytest.param(
            replace(ENOUGH, new_corrected_masks=7, trigger="schedule"),
            False,
            "7 of 8",
            id="schedule waits too",
        ),
        pytest.param(
            replace(ENOUGH, trained_as="m-0002", trigger="now"),
            False,
            "already used to train m-0002",
            id="same data",
        ),
        pytest.param(
            replace(ENOUGH, running="finetune-1-ab", trigger="now"), False, "finetune-1-ab", id="one runs"
        ),
        pytest.param(
            replace(ENOUGH, training_images=1, held_out_images=0, trigger="now"),
            False,
            "on 1 image so far: at least 2",
            id="nothing to measure on",
        ),
        pytest.param(
            replace(ENOUGH, training_images=0, trigger="now"),
            False,
            "to train on",
            id="nothing to learn from",
        ),
    ],
)
def test_decide(evidence: Evidence, go: bool, reason: str) -> None:
    decision = decide(evidence)
    assert decision.start is go
    assert reason in decision.reason


IN_QUIET_HOURS = "no fine-tune starts in the quiet hours"
TOO_SOON = "at least 60 minutes lie between two fine-tunes (FINETUNE_INTERVAL_MIN)"


@pytest.mark.parametrize(
    ("evidence", "reason"),
    [
        pytest.param(
            QUIET,
            "8 of 8 new corrected masks; deferred to 2026-03-02 18:00 CET: "
            f"{IN_QUIET_HOURS} 08:00-18:00 (Europe/Berlin)",
            id="quiet hours",
        ),
        pytest.param(
            replace(QUIET, trigger="start-training", new_corrected_masks=2),
            "requested, with 2 new corrected masks; deferred to 2026-03-02 18:00 CET: "
            f"{IN_QUIET_HOURS} 08:00-18:00 (Europe/Berlin)",
            id="also when asked for",
        ),
        pytest.param(
            SOON,
            f"8 of 8 new corrected masks; deferred to 2026-03-02 10:00 UTC: {TOO_SOON}",
            id="interval",
        ),
        pytest.param(
            replace(SOON, quiet_hours=QuietHours.parse(("09:45-11:00",), "UTC")),
            "8 of 8 new corrected masks; deferred to 2026-03-02 11:00 UTC: "
            f"{TOO_SOON}, and {IN_QUIET_HOURS} 09:45-11:00 (UTC)",
            id="an interval that ends in quiet hours",
        ),
        pytest.param(
            replace(ENOUGH, running="finetune-1-ab"),
            "a fine-tune is already queued or running: finetune-1-ab",
            id="another runs",
        ),
    ],
)
def test_what_is_put_off_says_until_when_and_why(evidence: Evidence, reason: str) -> None:
    assert decide(evidence) == Decision(False, reason, deferred=True)


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(replace(QUIET, trigger="now"), id="a person says now, in quiet hours"),
        pytest.param(replace(SOON, trigger="now"), id="a person says now, too soon"),
        pytest.param(replace(QUIET, now=datetime(2026, 3, 2, 17, 0, tzinfo=UTC)), id="18:00 in Berlin"),
        pytest.param(replace(SOON, now=datetime(2026, 3, 2, 10, 0, tzinfo=UTC)), id="an hour later"),
        pytest.param(replace(SOON, now=datetime(2026, 3, 1, tzinfo=UTC)), id="the clock was set back"),
    ],
)
def test_what_may_start(evidence: Evidence) -> None:
    assert decide(evidence).start


@pytest.mark.parametrize(
    "evidence",
    [
        pytest.param(replace(QUIET, new_corrected_masks=7), id="too few, whatever the time"),
        pytest.param(replace(QUIET, trained_as="m-0002", trigger="now"), id="already trained"),
        pytest.param(replace(ENOUGH, running="finetune-1-ab", running_same=True), id="just these labels run"),
    ],
)
def test_what_is_refused_is_not_put_off(evidence: Evidence) -> None:
    decision = decide(evidence)
    assert (decision.start, decision.deferred) == (False, False)


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
        assert f"20 corrected masks of {measured.images} held-out image" in verdict.reason


@pytest.mark.parametrize(
    ("known", "promote"),
    [
        pytest.param(base(0.80, 0.7801), True, id="lost less than the tolerance"),
        pytest.param(base(0.80, 0.7799), False, id="forgot too much"),
        pytest.param(base(0.80, 0.90), True, id="gained"),
        pytest.param(None, True, id="nobody has named one"),
        pytest.param(base(0.80, None), False, id="not defined for the candidate"),
        pytest.param(base(None, 0.80), False, id="not defined for the incumbent"),
    ],
)
def test_it_may_not_forget_what_it_knew(known: Measurement | None, promote: bool) -> None:
    assert judge(held_out(0.60, 0.70), known, tolerance=0.02).promote is promote


def test_the_reason_tells_figures_and_rules() -> None:
    reason = judge(held_out(0.612, 0.745), base(0.801, 0.795), 0.02).reason
    assert reason == (
        "gIoU 0.612 -> 0.745 (+0.133, 95 % interval +0.001 to +0.200) on 20 corrected masks of 10 held-out "
        "images; at least +0.010 and an interval above 0 are needed. gIoU 0.801 -> 0.795 (-0.006, 95 % "
        "interval -0.030 to +0.010) on 240 phrases of the base validation set; -0.020 is allowed"
    )


def test_the_reason_tells_the_rule_for_few_images_and_what_was_not_measured() -> None:
    reason = judge(held_out(0.612, 0.745, images=2), None, 0.02).reason
    assert reason == (
        "gIoU 0.612 -> 0.745 (+0.133) on 20 corrected masks of 2 held-out images; at least +0.020 is needed, "
        "as fewer than 5 images are held out. Forgetting was not measured: set VALIDATION_DATA"
    )


def test_the_reason_tells_that_the_base_figure_is_not_defined() -> None:
    reason = judge(held_out(0.612, 0.745), base(None, None), 0.02).reason
    assert reason.endswith(
        "on 240 phrases of the base validation set is undefined, so forgetting cannot be measured"
    )
    assert "VALIDATION_DATA" not in reason
