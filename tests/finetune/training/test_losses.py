"""Loss terms against hand-computed values, and the samples that each term includes."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from finetune.training.losses import (
    Criterion,
    LossWeights,
    NonFiniteLossError,
    dice_loss,
    mask_iou,
    patch_loss,
)

ALL = LossWeights(iou_prediction=1.0)
BOX = torch.tensor([[0.5, 0.5, 0.4, 0.4]])


def masks(*rows: str) -> Tensor:
    """One (1, h, w) mask: '#' is 1."""
    return torch.tensor([[[float(cell == "#") for cell in row] for row in rows]])


def logits(mask: Tensor, sharpness: float = 12.0) -> Tensor:
    """Logits that say the mask with confidence."""
    return (mask * 2 - 1) * sharpness


HALF = masks("##..", "##..")
NOTHING = masks("....", "....")


def test_a_confident_right_answer_costs_almost_nothing() -> None:
    truth = HALF[None]
    terms = Criterion(ALL)(
        logits(truth), BOX, truth, BOX, torch.tensor([True]), iou_predictions=torch.tensor([1.0])
    )
    assert set(terms) == {"dice", "focal", "l1", "generalized_box_iou", "iou_prediction", "total"}
    assert float(terms["total"]) == pytest.approx(0, abs=1e-4)


def test_terms_have_the_values_worked_out_by_hand() -> None:
    """Zero logits say 1/2 everywhere: 8 pixels, 4 of them in the mask."""
    terms = Criterion()(
        torch.zeros(1, 1, 2, 4),
        torch.tensor([[0.25, 0.5, 0.5, 1.0]]),
        HALF[None],
        torch.tensor([[0.75, 0.5, 0.5, 1.0]]),
        torch.tensor([True]),
    )
    assert float(terms["dice"]) == pytest.approx(1 - (2 * 2 + 1) / (4 + 4 + 1))
    focal_in, focal_out = 0.25 * 0.5**2 * math.log(2), 0.75 * 0.5**2 * math.log(2)
    assert float(terms["focal"]) == pytest.approx((focal_in + focal_out) / 2)
    assert float(terms["l1"]) == pytest.approx(0.5)
    assert float(terms["generalized_box_iou"]) == pytest.approx(1.0, abs=1e-5)
    total = 4 * terms["dice"] + 4 * terms["focal"] + 5 * terms["l1"] + 2 * terms["generalized_box_iou"]
    assert float(terms["total"]) == pytest.approx(float(total))
    assert "iou_prediction" not in terms


def test_boxes_of_samples_without_a_target_are_ignored() -> None:
    predicted = torch.tensor([[0.3, 0.3, 0.2, 0.2], [0.9, 0.9, 0.1, 0.1]], requires_grad=True)
    target_boxes = torch.tensor([[0.5, 0.5, 0.4, 0.4], [math.nan] * 4])
    has_target = torch.tensor([True, False])
    terms = Criterion()(None, predicted, None, target_boxes, has_target)
    alone = Criterion()(None, predicted[:1], None, target_boxes[:1], has_target[:1])
    assert terms["total"].item() == pytest.approx(alone["total"].item())
    terms["total"].backward()
    assert predicted.grad is not None
    assert predicted.grad[0].abs().sum() > 0
    assert predicted.grad[1].tolist() == [0, 0, 0, 0]


def test_masks_of_samples_without_a_target_are_learnt() -> None:
    drawn = logits(HALF)[None].requires_grad_()
    terms = Criterion()(drawn, BOX, NOTHING[None], BOX, torch.tensor([False]))
    assert terms["dice"].item() > 0.7
    assert terms["l1"].item() == terms["generalized_box_iou"].item() == 0
    terms["total"].backward()
    assert drawn.grad is not None
    assert drawn.grad.abs().sum() > 0


def test_a_batch_without_any_target_still_has_gradients_for_every_parameter() -> None:
    predicted = BOX.clone().requires_grad_()
    Criterion()(None, predicted, None, BOX, torch.tensor([False]))["total"].backward()
    assert predicted.grad is not None
    assert predicted.grad.tolist() == [[0, 0, 0, 0]]


def test_sample_weights_are_a_weighted_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.randn(2, 1, 4, 4, generator=generator)
    truth = (torch.rand(2, 1, 4, 4, generator=generator) > 0.5).float()
    boxes = torch.rand(2, 4, generator=generator)
    targets = torch.rand(2, 4, generator=generator)
    has_target = torch.tensor([True, True])

    def total(sample_weights: Tensor | None, rows: slice = slice(None)) -> float:
        batch = drawn[rows], boxes[rows], truth[rows], targets[rows], has_target[rows]
        return float(Criterion()(*batch, sample_weights=sample_weights)["total"])

    first, second = total(None, slice(0, 1)), total(None, slice(1, 2))
    assert total(None) == pytest.approx((first + second) / 2)
    assert total(torch.tensor([3.0, 1.0])) == pytest.approx((3 * first + second) / 4)
    assert total(torch.tensor([0.0, 2.0])) == pytest.approx(second)


def test_iou_prediction_is_compared_with_the_actual_iou() -> None:
    truth = masks("####", "....")
    weights = LossWeights(0, 0, 0, 0, iou_prediction=2.0)
    terms = Criterion(weights)(
        logits(HALF)[None], None, truth[None], None, torch.tensor([True]), iou_predictions=torch.tensor([0.5])
    )
    assert float(terms["iou_prediction"]) == pytest.approx((0.5 - 2 / 6) ** 2)
    assert float(terms["total"]) == pytest.approx(2 * (0.5 - 2 / 6) ** 2)


def test_two_empty_masks_agree() -> None:
    empty, one = torch.zeros(1, 4, dtype=torch.bool), torch.tensor([[True, False, False, False]])
    assert mask_iou(empty, empty).tolist() == [1]
    assert mask_iou(one, empty).tolist() == [0]
    assert mask_iou(one, one).tolist() == [1]


def test_dice_is_the_same_at_any_confidence_of_right_pixels() -> None:
    truth = HALF.flatten(1)
    assert float(dice_loss(logits(truth, 20), truth)) == pytest.approx(0, abs=1e-6)
    assert float(dice_loss(-logits(truth, 20), truth)) == pytest.approx(1 - 1 / 9)


def test_half_precision_predictions_are_compared_in_float32() -> None:
    half = logits(HALF)[None].bfloat16()
    terms = Criterion()(half, BOX.bfloat16(), HALF[None], BOX, torch.tensor([True]))
    assert all(term.dtype == torch.float32 for term in terms.values())


def test_a_non_finite_loss_names_its_samples() -> None:
    drawn = logits(torch.stack([HALF, HALF, HALF]))
    drawn[1, 0, 0, 0] = math.nan
    with pytest.raises(NonFiniteLossError, match="stickers/train/2/1") as raised:
        Criterion()(
            drawn,
            BOX.expand(3, 4),
            torch.stack([HALF, HALF, NOTHING]),
            BOX.expand(3, 4),
            torch.tensor([True, True, False]),
            sample_ids=["stickers/train/2/0", "stickers/train/2/1", "stickers/train/2/2"],
        )
    assert raised.value.sample_ids == ("stickers/train/2/1",)


def test_what_does_not_fit_is_refused() -> None:
    yes = torch.tensor([True])
    with pytest.raises(ValueError, match="target_masks is"):
        Criterion()(torch.zeros(1, 1, 4, 4), None, torch.zeros(1, 1, 2, 2), None, yes)
    with pytest.raises(ValueError, match="target_boxes is None"):
        Criterion()(None, BOX, None, None, yes)
    with pytest.raises(ValueError, match="nothing to compare"):
        Criterion()(None, None, None, None, yes)
    with pytest.raises(ValueError, match="must not be negative"):
        LossWeights(dice=-1)


def test_patches_cost_nothing_when_they_are_right_and_much_when_wrong() -> None:
    coverage = torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    right, wrong = (
        patch_loss((coverage * 2 - 1) * 12, coverage),
        patch_loss((1 - coverage * 2) * 12, coverage),
    )
    assert float(right) == pytest.approx(0, abs=1e-3)
    assert float(wrong) > 10
    half = patch_loss(torch.zeros(1, 4), coverage)  # all say 1/2: dice 1 - 3/5, focal ln 2 / 4
    assert float(half) == pytest.approx(1 - (2 + 1) / (2 + 2 + 1) + 10 * math.log(2) / 4)


def test_patch_logits_need_their_coverage() -> None:
    with pytest.raises(ValueError, match="patch_coverage is None, expected"):
        patch_loss(torch.zeros(1, 4), None)


def test_the_patch_term_joins_the_total() -> None:
    criterion = Criterion(LossWeights(patch=3.0))
    logits, coverage = torch.zeros(1, 4), torch.tensor([[1.0, 0.0, 0.0, 1.0]])
    terms = criterion(
        None, BOX, None, BOX, torch.tensor([True]), patch_logits=logits, patch_coverage=coverage
    )
    assert set(terms) == {"l1", "generalized_box_iou", "patch", "total"}
    assert float(terms["total"]) == pytest.approx(3 * float(patch_loss(logits, coverage)), abs=1e-4)


def test_the_presence_term_is_cross_entropy_where_it_is_wanted() -> None:
    logits, has_target = torch.tensor([0.0, math.log(3.0)]), torch.tensor([True, False])
    boxes = BOX.expand(2, -1)
    terms = Criterion(LossWeights(presence=2.0))(None, boxes, None, boxes, has_target, presence_logits=logits)
    assert float(terms["presence"]) == pytest.approx((math.log(2) + math.log(4)) / 2)
    assert float(terms["total"]) == pytest.approx(2 * float(terms["presence"]), abs=1e-4)

    assert "presence" not in Criterion()(None, boxes, None, boxes, has_target, presence_logits=logits)


def test_a_sample_of_which_only_the_box_is_known_trains_boxes_alone() -> None:
    mask_logits = torch.zeros(2, 1, 2, 4, requires_grad=True)
    boxes = torch.tensor([[0.4, 0.5, 0.5, 0.8]] * 2, requires_grad=True)
    truth = torch.stack([HALF, HALF])

    terms = Criterion()(
        mask_logits,
        boxes,
        truth,
        BOX.repeat(2, 1),
        torch.tensor([True, True]),
        has_mask=torch.tensor([True, False]),
    )
    terms["total"].backward()

    assert mask_logits.grad is not None
    assert boxes.grad is not None
    assert mask_logits.grad[0].abs().sum() > 0
    assert mask_logits.grad[1].abs().sum() == 0
    assert torch.equal(boxes.grad[0], boxes.grad[1])
    assert boxes.grad.abs().sum() > 0
