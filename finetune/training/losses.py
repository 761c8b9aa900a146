"""Training losses: mask terms, box terms and, optionally, the decoder's IoU estimate."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torchvision.ops import box_convert, generalized_box_iou_loss, sigmoid_focal_loss

FOCAL_ALPHA = 0.25
FOCAL_GAMMA = 2.0
BOX_TERMS = frozenset({"l1", "generalized_box_iou"})
"""Terms computed on samples with a target only."""
PIXEL_TERMS = frozenset({"dice", "focal", "iou_prediction", "patch"})
"""Terms that need the target's mask, not only its box."""
TOTAL = "total"
"""Name of the weighted sum of the other terms."""


class NonFiniteLossError(ArithmeticError):
    """The loss is NaN or infinite.

    Attributes:
        sample_ids: The samples whose own terms are not finite.
    """

    what = "the loss is not finite"

    def __init__(self, terms: dict[str, float], sample_ids: Sequence[str]) -> None:
        self.sample_ids = tuple(sample_ids)
        values = ", ".join(f"{name} {value:g}" for name, value in terms.items())
        super().__init__(f"{self.what} ({values}) on samples: {', '.join(sample_ids) or 'unknown'}")


@dataclass(frozen=True)
class LossWeights:
    """Weights of the terms in the total. Defaults are the paper's; 0 disables a term."""

    dice: float = 4.0
    focal: float = 4.0
    l1: float = 5.0
    generalized_box_iou: float = 2.0
    iou_prediction: float = 0.0
    """SAM trains its IoU head (weight 1 in its paper); SSP-SAM's recipe does not."""
    patch: float = 0.0
    """Loss of predicting each fused patch's coverage by the target; not in the paper. A prompt encoder
    trained from scratch learns many times faster with this direct supervision of its patches.
    """

    presence: float = 0.0
    """Loss of the presence head, for variants with one; not in the paper."""

    def __post_init__(self) -> None:
        negative = {name: weight for name, weight in asdict(self).items() if weight < 0}
        if negative:
            raise ValueError(f"loss weights must not be negative, got {negative}")


class Criterion(nn.Module):
    """Named loss terms of a batch and their weighted sum.

    Each term is a mean over the batch's samples: all of them for masks, those with a target for boxes. Terms
    are computed in float32 regardless of the model's precision.

    Source: SSP-SAM (arXiv 2603.18086), 4 dice + 4 focal + 5 L1 + 2 GIoU; dice smoothed by 1,
    focal from Lin et al. (arXiv 1708.02002), GIoU from Rezatofighi et al. (arXiv 1902.09630).
    """

    def __init__(self, weights: LossWeights | None = None, mask_threshold: float = 0.0) -> None:
        super().__init__()
        self.weights = weights or LossWeights()
        self.mask_threshold = mask_threshold

    def forward(
        self,
        mask_logits: Tensor | None,
        boxes: Tensor | None,
        target_masks: Tensor | None,
        target_boxes: Tensor | None,
        has_target: Tensor,
        *,
        iou_predictions: Tensor | None = None,
        patch_logits: Tensor | None = None,
        patch_coverage: Tensor | None = None,
        presence_logits: Tensor | None = None,
        sample_weights: Tensor | None = None,
        has_mask: Tensor | None = None,
        sample_ids: Sequence[str] | None = None,
        totals: Tensor | None = None,
    ) -> dict[str, Tensor]:
        """Computes the terms whose predictions are given: box-only pre-training passes no masks.

        Args:
            mask_logits: (B, 1, h, w).
            boxes: (B, 4) cxcywh, normalised to the clip frame.
            target_masks: (B, 1, h, w) in 0..1; all 0 without a target.
            target_boxes: (B, 4) as `boxes`; ignored without a target.
            has_target: (B,) bool.
            iou_predictions: (B,) the decoder's own estimate, 0..1; used if its weight is above 0.
            patch_logits: (B, G*G) whether patches show the target; needs `patch_coverage`.
            patch_coverage: (B, G*G) fraction of each patch covered by the target, 0..1.
            presence_logits: (B,) whether the phrase has a target; used if its weight is above 0.
            sample_weights: (B,) at least 0, weight of each sample in the means.
            has_mask: (B,) bool, False for samples of which only the box is known: they have no PIXEL_TERMS.
            sample_ids: B names for the error message.
            totals: (2,) number of samples, and of those with a target, to divide by instead of this batch's
                own: the parts of one large batch then add up to exactly its gradient.

        Returns:
            Term name -> unweighted scalar, and "total", the weighted sum to minimise.

        Raises:
            NonFiniteLossError: the total is NaN or infinite.
            ValueError: shapes do not match.
        """
        per_sample: dict[str, Tensor] = {}
        if mask_logits is not None:
            per_sample |= self._mask_terms(mask_logits, target_masks, iou_predictions)
        if boxes is not None:
            per_sample |= self._box_terms(boxes, target_boxes, has_target)
        if patch_logits is not None:
            per_sample["patch"] = patch_loss(patch_logits, patch_coverage)
        if self.weights.presence > 0 and presence_logits is not None:
            per_sample["presence"] = functional.binary_cross_entropy_with_logits(
                presence_logits.float(), has_target.float(), reduction="none"
            )
        if not per_sample:
            raise ValueError("nothing to compare: neither mask_logits nor boxes were given")
        if has_mask is not None:
            zeros = torch.zeros_like(has_mask, dtype=torch.float32)
            per_sample |= {
                name: torch.where(has_mask, values, zeros)
                for name, values in per_sample.items()
                if name in PIXEL_TERMS
            }
        counts = (
            torch.ones_like(has_target, dtype=torch.float32) if sample_weights is None else sample_weights
        )
        with_target = counts * has_target
        if totals is None:
            totals = torch.stack([counts.sum(), with_target.sum()])
        terms = {
            name: _weighted_mean(values, with_target, totals[1])
            if name in BOX_TERMS
            else _weighted_mean(values, counts, totals[0])
            for name, values in per_sample.items()
        }
        terms[TOTAL] = torch.stack([getattr(self.weights, name) * term for name, term in terms.items()]).sum()
        if not torch.isfinite(terms[TOTAL]):
            raise _non_finite(terms, per_sample, sample_ids)
        return terms

    def _mask_terms(
        self, mask_logits: Tensor, target_masks: Tensor | None, iou_predictions: Tensor | None
    ) -> dict[str, Tensor]:
        """Per-sample mask terms, each (B,)."""
        if target_masks is None or target_masks.shape != mask_logits.shape:
            expected, got = (
                tuple(mask_logits.shape),
                None if target_masks is None else tuple(target_masks.shape),
            )
            raise ValueError(f"target_masks is {got}, expected {expected} as mask_logits")
        logits, truth = mask_logits.float().flatten(1), target_masks.float().flatten(1)  # (B, h * w)
        terms = {
            "dice": dice_loss(logits, truth),
            "focal": sigmoid_focal_loss(logits, truth, alpha=FOCAL_ALPHA, gamma=FOCAL_GAMMA).mean(1),
        }
        if self.weights.iou_prediction > 0 and iou_predictions is not None:
            actual = mask_iou(logits > self.mask_threshold, truth > 0.5)
            terms["iou_prediction"] = functional.mse_loss(iou_predictions.float(), actual, reduction="none")
        return terms

    def _box_terms(self, boxes: Tensor, target_boxes: Tensor | None, has_target: Tensor) -> dict[str, Tensor]:
        """Per-sample box terms, each (B,), 0 without a target."""
        if target_boxes is None or target_boxes.shape != boxes.shape:
            expected, got = tuple(boxes.shape), None if target_boxes is None else tuple(target_boxes.shape)
            raise ValueError(f"target_boxes is {got}, expected {expected} as boxes")
        predicted = boxes.float()
        truth = torch.where(has_target[:, None], target_boxes.float(), predicted.detach())
        return {
            "l1": (predicted - truth).abs().sum(1),
            "generalized_box_iou": generalized_box_iou_loss(
                box_convert(predicted, "cxcywh", "xyxy"), box_convert(truth, "cxcywh", "xyxy")
            ),
        }


def dice_loss(logits: Tensor, truth: Tensor) -> Tensor:
    """1 - Dice coefficient of (B, P) logits and (B, P) ground truth in 0..1, smoothed by 1. (B,)."""
    probabilities = logits.sigmoid()
    overlap = 2 * (probabilities * truth).sum(1)
    return 1 - (overlap + 1) / (probabilities.sum(1) + truth.sum(1) + 1)


def patch_loss(logits: Tensor, coverage: Tensor | None) -> Tensor:
    """Dice and ten times focal loss of (B, P) patch logits with (B, P) coverage in 0..1. (B,).

    Raises:
        ValueError: the shapes differ.
    """
    if coverage is None or coverage.shape != logits.shape:
        got = None if coverage is None else tuple(coverage.shape)
        raise ValueError(f"patch_coverage is {got}, expected {tuple(logits.shape)} as patch_logits")
    logits, coverage = logits.float(), coverage.float()
    focal: Tensor = sigmoid_focal_loss(logits, coverage, alpha=-1, gamma=FOCAL_GAMMA).mean(1)
    return dice_loss(logits, coverage) + 10 * focal


def mask_iou(predicted: Tensor, truth: Tensor) -> Tensor:
    """IoU of (B, P) bool masks, (B,) float32; 1 if both are empty, as in the metrics."""
    intersection = (predicted & truth).sum(1)
    union = (predicted | truth).sum(1)
    return torch.where(
        union > 0, intersection / union.clamp(min=1), torch.ones_like(union, dtype=torch.float32)
    )


def _weighted_mean(values: Tensor, counts: Tensor, counted: Tensor) -> Tensor:
    """Mean of (B,) values over the counted ones; 0, with a gradient path, if none are."""
    return (values * counts).sum() / torch.where(counted > 0, counted, torch.ones_like(counted))


def _non_finite(
    terms: dict[str, Tensor], per_sample: dict[str, Tensor], sample_ids: Sequence[str] | None
) -> NonFiniteLossError:
    broken = ~torch.isfinite(torch.stack([values.detach() for values in per_sample.values()])).all(0)  # (B,)
    positions = broken.nonzero().flatten().tolist()
    ids = [sample_ids[i] if sample_ids is not None else f"sample {i} of the batch" for i in positions]
    return NonFiniteLossError({name: float(term.detach()) for name, term in terms.items()}, ids)
