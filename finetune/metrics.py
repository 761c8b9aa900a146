"""Segmentation metrics: accumulators, updated one sample at a time, that merge across processes.

Names and definitions are the field's. RefCOCO's papers report mIoU, oIoU and Pr@X; gRefCOCO's report gIoU,
cIoU, N-acc and T-acc (henghuiding/ReLA:gres_model/evaluation/refer_evaluation.py). Over the same samples mIoU
equals gIoU and oIoU equals cIoU. They are computed once and returned under both names, so that a table can
use the name customary for its data set.
"""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import numpy.typing as npt

Figures = dict[str, float | None]
"""Metric name -> value in 0..1, or None if undefined (no applicable sample)."""

PRECISION_THRESHOLDS = (0.5, 0.6, 0.7, 0.8, 0.9)
"""Minimum IoU of a hit, for Pr@X."""

BOX_HIT = 0.5
"""Minimum IoU of a hit, for Acc@0.5."""

NO_TARGET_MIN_PIXELS = 50
"""Number of pixels on the padded 512x512 square below which the paper's code counts an answer as "no target"
if the ground truth is empty. Source: WayneTomas/SSP-SAM:metric/mask_op.py (mask_iou_reftr).
"""

FIGURE_NAMES = (
    "mIoU",
    "oIoU",
    *(f"Pr@{threshold}" for threshold in PRECISION_THRESHOLDS),
    "gIoU",
    "cIoU",
    "N-acc",
    "T-acc",
)


class MaskMismatchError(ValueError):
    """Masks that cannot be compared: different sizes, not 2-D, or not thresholded."""


@dataclass(kw_only=True)
class SegmentationMetrics:
    """Accumulates segmentation metrics over samples.

    By default an answer is empty if it has no pixel: for masks at the image's own size. For the paper's
    protocol, on 512x512 squares, pass `no_target_min_pixels=NO_TARGET_MIN_PIXELS`.
    """

    no_target_min_pixels: int = 1
    """Answers with fewer pixels count as empty where the ground truth is empty. No effect elsewhere."""
    samples: int = 0
    samples_with_target: int = 0
    iou_sum: float = 0.0
    intersection_sum: int = 0
    union_sum: int = 0
    found: dict[float, int] = field(default_factory=lambda: dict.fromkeys(PRECISION_THRESHOLDS, 0))
    """Threshold -> number of samples with a target whose IoU reaches it."""
    empty_kept_empty: int = 0
    """Number of samples without a target and with an empty answer."""
    targets_answered: int = 0
    """Number of samples with a target and a non-empty answer."""

    def __post_init__(self) -> None:
        if self.no_target_min_pixels < 1:
            raise ValueError(f"no_target_min_pixels is {self.no_target_min_pixels}, expected 1 or more")

    def update(
        self, pred_mask: npt.ArrayLike, true_mask: npt.ArrayLike, ignored: npt.ArrayLike | None = None
    ) -> float:
        """Adds one sample.

        Args:
            pred_mask: (H, W) bool (or 0/1 integers), the model's answer; all False for "nothing there".
            true_mask: (H, W) bool, all False if the phrase has no target.
            ignored: (H, W) bool, pixels that are not compared, as their truth is unknown; none by default.

        Returns:
            IoU of the sample, 0..1; without a target 1 if the answer is empty, else 0.

        Raises:
            MaskMismatchError: the masks differ in size or are not masks, or all of the target is ignored.
        """
        predicted, truth = _as_mask(pred_mask, "pred_mask"), _as_mask(true_mask, "true_mask")
        if predicted.shape != truth.shape:
            raise MaskMismatchError(
                f"pred_mask is {predicted.shape}, true_mask is {truth.shape}: expected equal sizes"
            )
        if ignored is not None:
            predicted, truth = _without(ignored, predicted, truth)
        self.samples += 1
        iou = self._add_target(predicted, truth) if truth.any() else self._add_no_target(predicted)
        self.iou_sum += iou
        return iou

    def _add_target(self, predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]) -> float:
        intersection = int(np.count_nonzero(predicted & truth))
        union = int(np.count_nonzero(predicted | truth))
        iou = intersection / union
        self.samples_with_target += 1
        self.intersection_sum += intersection
        self.union_sum += union
        self.targets_answered += bool(predicted.any())
        for threshold in PRECISION_THRESHOLDS:
            self.found[threshold] += iou >= threshold
        return iou

    def _add_no_target(self, predicted: npt.NDArray[np.bool_]) -> float:
        area = int(np.count_nonzero(predicted))
        if area < self.no_target_min_pixels:
            self.empty_kept_empty += 1
            return 1.0
        self.union_sum += area
        return 0.0

    def update_box(self, pred_box_xyxy: npt.ArrayLike, true_box_xyxy: npt.ArrayLike) -> float:
        """Adds one sample with a target of which only the box is known. It has no part in oIoU and cIoU.

        Args:
            pred_box_xyxy: (4,) box of the answer; without area for "nothing there".
            true_box_xyxy: (4,) box of the target, in the same frame and unit.

        Returns:
            What counts as its IoU in all other metrics, by the rule of Acc@0.5: 1 if the IoU of the boxes is
            at least 0.5, else 0. The IoU with a mask cannot be known, and that of boxes is another scale.
        """
        hit = float(box_iou(pred_box_xyxy, true_box_xyxy) >= BOX_HIT)
        self.samples += 1
        self.samples_with_target += 1
        self.iou_sum += hit
        x0, y0, x1, y1 = np.asarray(pred_box_xyxy, dtype=float)
        self.targets_answered += bool(x1 > x0 and y1 > y0)
        for threshold in PRECISION_THRESHOLDS:
            self.found[threshold] += hit >= threshold
        return hit

    def merge(self, other: SegmentationMetrics) -> SegmentationMetrics:
        """Merges another accumulator, and returns itself.

        Raises:
            ValueError: the two use different rules for empty answers.
        """
        if other.no_target_min_pixels != self.no_target_min_pixels:
            raise ValueError(
                f"cannot merge metrics with no_target_min_pixels {other.no_target_min_pixels} "
                f"into metrics with {self.no_target_min_pixels}"
            )
        for entry in fields(self):
            if entry.name not in ("no_target_min_pixels", "found"):
                setattr(self, entry.name, getattr(self, entry.name) + getattr(other, entry.name))
        for threshold in PRECISION_THRESHOLDS:
            self.found[threshold] += other.found[threshold]
        return self

    def compute(self) -> Figures:
        """The metrics so far, by the names in `FIGURE_NAMES`, each in 0..1 or None if undefined.

        mIoU, gIoU: mean IoU of all samples. oIoU, cIoU: summed intersection divided by summed union; a mask
        without a target adds its area to the union. Pr@X, T-acc: over samples with a target. N-acc: over
        those without.
        """
        mean_iou = _ratio(self.iou_sum, self.samples)
        overall_iou = _ratio(self.intersection_sum, self.union_sum)
        found = {f"Pr@{x}": _ratio(self.found[x], self.samples_with_target) for x in PRECISION_THRESHOLDS}
        return {
            "mIoU": mean_iou,
            "oIoU": overall_iou,
            **found,
            "gIoU": mean_iou,
            "cIoU": overall_iou,
            "N-acc": _ratio(self.empty_kept_empty, self.samples - self.samples_with_target),
            "T-acc": _ratio(self.targets_answered, self.samples_with_target),
        }


@dataclass
class BoxAccuracy:
    """Accumulates Acc@0.5 of referring expression comprehension: the fraction with IoU >= 0.5."""

    samples: int = 0
    found: int = 0

    def update(self, pred_box_xyxy: npt.ArrayLike, true_box_xyxy: npt.ArrayLike) -> float:
        """Adds one sample with a target; boxes are (4,) in the same frame and unit. Returns their IoU."""
        iou = box_iou(pred_box_xyxy, true_box_xyxy)
        self.samples += 1
        self.found += iou >= BOX_HIT
        return iou

    def merge(self, other: BoxAccuracy) -> BoxAccuracy:
        """Merges another accumulator, and returns itself."""
        self.samples += other.samples
        self.found += other.found
        return self

    def compute(self) -> Figures:
        """`{"Acc@0.5": share in 0..1, or None before the first sample}`."""
        return {"Acc@0.5": _ratio(self.found, self.samples)}


def box_iou(one_xyxy: npt.ArrayLike, other_xyxy: npt.ArrayLike) -> float:
    """Intersection over union of two boxes, (4,) x0, y0, x1, y1, 0..1; 0 if neither has an area."""
    one, other = np.asarray(one_xyxy, dtype=float), np.asarray(other_xyxy, dtype=float)
    sides = np.minimum(one[2:], other[2:]) - np.maximum(one[:2], other[:2])
    intersection = float(np.prod(np.clip(sides, 0, None)))
    union = float(np.prod(one[2:] - one[:2]) + np.prod(other[2:] - other[:2])) - intersection
    return intersection / union if union > 0 else 0.0


def _without(
    ignored: npt.ArrayLike, predicted: npt.NDArray[np.bool_], truth: npt.NDArray[np.bool_]
) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
    compared = ~_as_mask(ignored, "ignored")
    if compared.shape != truth.shape:
        raise MaskMismatchError(
            f"ignored is {compared.shape}, true_mask is {truth.shape}: expected equal sizes"
        )
    if truth.any() and not (truth & compared).any():
        raise MaskMismatchError("all of the target is ignored: nothing is left to compare")
    return predicted & compared, truth & compared


def _as_mask(mask: npt.ArrayLike, name: str) -> npt.NDArray[np.bool_]:
    array: npt.NDArray[Any] = np.asarray(mask)
    if array.ndim != 2:
        raise MaskMismatchError(f"{name} has shape {array.shape}, expected (H, W)")
    if array.dtype.kind not in "bui":
        raise MaskMismatchError(f"{name} is {array.dtype}: threshold it to a bool mask first")
    return array.astype(bool, copy=False)


def _ratio(part: float, whole: float) -> float | None:
    return part / whole if whole else None
