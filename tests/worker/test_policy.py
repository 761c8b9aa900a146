"""The written-down rules: when to fine-tune, what is held out, what may serve."""

from __future__ import annotations

from dataclasses import replace

import pytest

from worker.policy import Evidence, Side, assign_sides, decide, held_out_target, judge

ENOUGH = Evidence(
    trigger="annotation",
    corrected_masks=20,
    new_corrected_masks=8,
    training_images=3,
    held_out_images=2,
    finetune_after=8,
    trained_as=None,
    running=None,
)


@pytest.mark.parametrize(
    ("evidence", "go", "reason"),
    [
        pytest.param(ENOUGH, True, "8 of 8 new", id="threshold reached"),
        pytest.param(replace(ENOUGH, new_corrected_masks=7), False, "7 of 8 new", id="one short"),
        pytest.param(
            replace(ENOUGH, new_corrected_masks=1, trigger="start-training"),
            True,
            "asked for",
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
            "already trained, as m-0002",
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
            "to learn from",
            id="nothing to learn from",
        ),
    ],
)
def test_decide(evidence: Evidence, go: bool, reason: str) -> None:
    decision = decide(evidence)
    assert decision.go is go
    assert reason in decision.reason


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


@pytest.mark.parametrize(
    ("before", "after", "images", "promote"),
    [
        pytest.param(0.60, 0.6101, 10, True, id="better by the margin"),
        pytest.param(0.60, 0.605, 10, False, id="better by less"),
        pytest.param(0.60, 0.55, 10, False, id="worse"),
        pytest.param(0.60, 0.615, 2, False, id="few images need more"),
        pytest.param(0.60, 0.63, 2, True, id="few images, clearly better"),
        pytest.param(None, 0.63, 10, False, id="nothing was measured"),
    ],
)
def test_judge(before: float | None, after: float | None, images: int, promote: bool) -> None:
    verdict = judge({"gIoU": before}, {"gIoU": after}, samples=20, images=images)
    assert verdict.promote is promote
    assert f"20 corrected masks of {images} held-out images" in verdict.reason


def test_the_reason_tells_the_rule_for_few_images() -> None:
    reason = judge({"gIoU": 0.612}, {"gIoU": 0.745}, samples=5, images=2).reason
    assert reason == (
        "gIoU 0.612 -> 0.745 (+0.133) on 5 corrected masks of 2 held-out images; "
        "at least +0.020 is needed, as fewer than 5 images are held out"
    )
