"""The accumulators against plain definitions, on random masks and on cases that papers treat differently."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from finetune.metrics import (
    FIGURE_NAMES,
    NO_TARGET_MIN_PIXELS,
    BoxAccuracy,
    MaskMismatchError,
    SegmentationMetrics,
)

Mask = npt.NDArray[np.bool_]
Pair = tuple[Mask, Mask]


@st.composite
def mask_pairs(draw: st.DrawFn) -> Pair:
    """A predicted and a true mask of one size; empty ones and equal ones often enough to matter."""
    height, width = draw(st.integers(1, 12)), draw(st.integers(1, 12))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    share = st.sampled_from([0.0, 0.1, 0.5, 1.0])
    predicted = rng.random((height, width)) < draw(share)
    truth = predicted.copy() if draw(st.booleans()) else rng.random((height, width)) < draw(share)
    return predicted, truth


def accumulate(pairs: list[Pair], no_target_min_pixels: int = 1) -> SegmentationMetrics:
    metrics = SegmentationMetrics(no_target_min_pixels=no_target_min_pixels)
    for predicted, truth in pairs:
        metrics.update(predicted, truth)
    return metrics


def plain_iou(predicted: Mask, truth: Mask) -> float:
    union = (predicted | truth).sum()
    return float((predicted & truth).sum() / union) if union else 1.0


def plain_definitions(pairs: list[Pair]) -> dict[str, float | None]:
    """Every figure spelled out over the whole list."""
    ious = [plain_iou(predicted, truth) for predicted, truth in pairs]
    with_target = [(p, t) for p, t in pairs if t.any()]
    without = [p for p, t in pairs if not t.any()]
    intersection = sum(int((p & t).sum()) for p, t in pairs)
    union = sum(int((p | t).sum()) for p, t in pairs)
    figures: dict[str, float | None] = {
        "mIoU": float(np.mean(ious)) if ious else None,
        "oIoU": intersection / union if union else None,
        "N-acc": float(np.mean([not p.any() for p in without])) if without else None,
        "T-acc": float(np.mean([p.any() for p, _ in with_target])) if with_target else None,
    }
    for threshold in (0.5, 0.6, 0.7, 0.8, 0.9):
        hits = [plain_iou(p, t) >= threshold for p, t in with_target]
        figures[f"Pr@{threshold}"] = float(np.mean(hits)) if hits else None
    figures["gIoU"], figures["cIoU"] = figures["mIoU"], figures["oIoU"]
    return figures


@settings(deadline=None, max_examples=30)
@given(st.lists(mask_pairs(), max_size=12))
def test_figures_follow_the_plain_definitions(pairs: list[Pair]) -> None:
    assert accumulate(pairs).compute() == pytest.approx(plain_definitions(pairs))


@settings(deadline=None, max_examples=30)
@given(st.lists(mask_pairs(), max_size=10), st.integers(0, 10))
def test_merging_two_parts_is_one_pass_over_the_whole(pairs: list[Pair], cut: int) -> None:
    merged = accumulate(pairs[:cut]).merge(accumulate(pairs[cut:]))
    assert merged.compute() == pytest.approx(accumulate(pairs).compute())
    assert merged.samples == len(pairs)


@settings(deadline=None, max_examples=30)
@given(st.lists(mask_pairs(), min_size=1, max_size=10))
def test_a_perfect_answer_scores_one_everywhere(pairs: list[Pair]) -> None:
    figures = accumulate([(truth, truth) for _, truth in pairs]).compute()
    assert all(value == 1.0 for value in figures.values() if value is not None)


@settings(deadline=None, max_examples=30)
@given(mask_pairs())
def test_update_returns_the_samples_own_iou(pair: Pair) -> None:
    assert SegmentationMetrics().update(*pair) == pytest.approx(plain_iou(*pair))


def test_names_are_the_published_ones_in_order() -> None:
    assert tuple(SegmentationMetrics().compute()) == FIGURE_NAMES


def test_nothing_measured_is_undefined_not_zero() -> None:
    assert set(SegmentationMetrics().compute().values()) == {None}


def square(height: int, width: int, pixels: int) -> Mask:
    mask = np.zeros((height, width), dtype=bool)
    mask.flat[:pixels] = True
    return mask


def test_a_wrong_answer_to_nothing_adds_its_area_to_the_union() -> None:
    metrics = SegmentationMetrics()
    metrics.update(square(10, 10, 30), square(10, 10, 30))
    metrics.update(square(10, 10, 20), square(10, 10, 0))
    figures = metrics.compute()
    assert figures["cIoU"] == pytest.approx(30 / 50)
    assert figures["gIoU"] == pytest.approx(0.5)
    assert figures["N-acc"] == 0.0


def test_a_right_no_target_answer_counts_for_giou_and_not_for_ciou() -> None:
    metrics = SegmentationMetrics()
    metrics.update(square(10, 10, 0), square(10, 10, 0))
    metrics.update(square(10, 10, 10), square(10, 10, 40))
    figures = metrics.compute()
    assert figures["cIoU"] == pytest.approx(0.25)
    assert figures["gIoU"] == pytest.approx((1 + 0.25) / 2)
    assert figures["N-acc"] == 1.0


@pytest.mark.parametrize(
    ("pixels", "rule", "expected", "reason"),
    [
        (0, 1, 1.0, "nothing is nothing"),
        (1, 1, 0.0, "one pixel is an answer at the picture's own size"),
        (NO_TARGET_MIN_PIXELS - 1, NO_TARGET_MIN_PIXELS, 1.0, "the paper forgives fewer than 50"),
        (NO_TARGET_MIN_PIXELS, NO_TARGET_MIN_PIXELS, 0.0, "50 are too many"),
    ],
)
def test_what_counts_as_an_empty_answer(pixels: int, rule: int, expected: float, reason: str) -> None:
    metrics = SegmentationMetrics(no_target_min_pixels=rule)
    assert metrics.update(square(20, 20, pixels), square(20, 20, 0)) == expected, reason
    assert metrics.compute()["N-acc"] == expected


def test_the_fifty_pixel_rule_leaves_samples_with_a_target_alone() -> None:
    pair = square(20, 20, 10), square(20, 20, 20)
    assert accumulate([pair], no_target_min_pixels=50).compute() == accumulate([pair]).compute()


@pytest.mark.parametrize(
    ("predicted", "message"),
    [
        (np.zeros((3, 4), dtype=bool), "expected equal sizes"),
        (np.zeros((1, 4, 3), dtype=bool), r"expected \(H, W\)"),
        (np.zeros((4, 3), dtype=np.float32), "threshold it"),
    ],
)
def test_masks_that_cannot_be_compared_are_refused(predicted: npt.NDArray[np.generic], message: str) -> None:
    metrics = SegmentationMetrics()
    with pytest.raises(MaskMismatchError, match=message):
        metrics.update(predicted, np.zeros((4, 3), dtype=bool))
    assert metrics.samples == 0


def test_different_rules_do_not_merge() -> None:
    with pytest.raises(ValueError, match="no_target_min_pixels 50"):
        SegmentationMetrics().merge(SegmentationMetrics(no_target_min_pixels=50))
    with pytest.raises(ValueError, match="expected 1 or more"):
        SegmentationMetrics(no_target_min_pixels=0)


@pytest.mark.parametrize(
    ("predicted", "iou"),
    [
        ((0, 0, 10, 10), 1.0),
        ((0, 0, 10, 5), 0.5),
        ((5, 0, 15, 10), 1 / 3),
        ((20, 20, 30, 30), 0.0),
        ((3, 3, 3, 3), 0.0),
    ],
)
def test_box_accuracy_counts_boxes_at_half_overlap(predicted: tuple[int, ...], iou: float) -> None:
    boxes = BoxAccuracy()
    assert boxes.update(predicted, (0, 0, 10, 10)) == pytest.approx(iou)
    assert boxes.merge(BoxAccuracy(samples=1, found=1)).compute() == {"Acc@0.5": (1 + (iou >= 0.5)) / 2}
    assert BoxAccuracy().compute() == {"Acc@0.5": None}


@given(mask_pairs(), st.integers(0, 2**32 - 1))
@settings(max_examples=60, deadline=None)
def test_ignored_pixels_have_no_effect(pair: Pair, seed: int) -> None:
    predicted, truth = pair
    rng = np.random.default_rng(seed)
    ignored = rng.random(truth.shape) < 0.5
    if truth.any() and not (truth & ~ignored).any():
        with pytest.raises(MaskMismatchError, match="nothing is left"):
            SegmentationMetrics().update(predicted, truth, ignored)
        return
    iou = SegmentationMetrics().update(predicted, truth, ignored)
    assert iou == SegmentationMetrics().update(predicted ^ (ignored & predicted), truth & ~ignored)
    noise = rng.random(truth.shape) < 0.5
    assert iou == SegmentationMetrics().update(np.where(ignored, noise, predicted), truth, ignored)


def test_ignored_pixels_have_the_size_of_the_masks() -> None:
    with pytest.raises(MaskMismatchError, match="ignored"):
        SegmentationMetrics().update(np.ones((4, 4), bool), np.ones((4, 4), bool), np.ones((4, 5), bool))
