"""Types of questions about an image, answers, and their scores."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import Tensor

from sspsam.images.frames import BoolMask, ClipFrame, Hw
from sspsam.reading.reader import NOT_READ, Reading

STABILITY_OFFSET = 1.0
"""Offset of the threshold, in logits, for the stability score, as in segment_anything."""
NO_TARGET_MIN_FRACTION = 50 / 512**2
"""A mask covering a smaller fraction of the image means no target (the paper: 50 px of 512 x 512)."""


@dataclass(frozen=True)
class ImageEmbedding:
    """Embedding of an image, independent of phrases."""

    original_hw: Hw
    image_embedding: Tensor
    """(1, C, h, w): SAM's image encoder."""
    patch_features: Tensor
    """(1, G*G, D): CLIP's patch features."""
    clip_frame: ClipFrame

    @property
    def size_bytes(self) -> int:
        """Memory that the tensors take."""
        return sum(tensor.nbytes for tensor in (self.image_embedding, self.patch_features))

    @property
    def descriptor(self) -> npt.NDArray[np.float32]:
        """(D,) mean of CLIP's patch features, for comparing images."""
        return np.asarray(self.patch_features.mean(dim=1)[0].float().cpu().numpy(), np.float32)

    def rounded(self) -> ImageEmbedding:
        """As it is after `to_tensors` and `Predictor.from_tensors`."""
        image_embedding, patch_features = (
            tensor.half().float() for tensor in (self.image_embedding, self.patch_features)
        )
        return replace(self, image_embedding=image_embedding, patch_features=patch_features)

    def to_tensors(self) -> dict[str, Tensor]:
        """Half-precision CPU tensors, as stored on disk; `Predictor.from_tensors` is the inverse."""
        return {
            "image_embedding": self.image_embedding.cpu().half(),
            "patch_features": self.patch_features.cpu().half(),
            "clip_frame": self.clip_frame.to_tensor(),
        }


@dataclass(frozen=True)
class Question:
    """A question about an image."""

    embedding: ImageEmbedding
    phrase: str
    """A referring expression of at most 77 CLIP tokens; empty for clicks or a box alone."""
    points: npt.ArrayLike | None = None
    """(N, 3) x px, y px, 1 (part of it) or 0 (not part of it), original frame."""
    boxes: npt.ArrayLike | None = None
    """(4,) xyxy px, original frame."""
    includes_points: bool = False
    """Lowers the threshold of the mask as far as its positive points require; keeps masks of any size."""

    @property
    def has_clicks(self) -> bool:
        """Whether there are clicks or a box."""
        return self.points is not None or self.boxes is not None

    @property
    def prompt_shape(self) -> tuple[bool, int, bool]:
        """Whether there is a phrase, the number of points, and whether there is a box."""
        points = 0 if self.points is None else np.asarray(self.points).reshape(-1, 3).shape[0]
        return bool(self.phrase), points, self.boxes is not None

    @property
    def has_positive_click(self) -> bool:
        """Whether a box or a positive click asserts that the object exists."""
        if self.boxes is not None:
            return True
        if self.points is None:
            return False
        return bool((np.asarray(self.points, np.float32).reshape(-1, 3)[:, 2] > 0).any())


@dataclass(frozen=True)
class Decoded:
    """Network outputs for a question, still in SAM's frame."""

    question: Question
    mask_logits: Tensor
    """(4h, 4w) float32 over the padded square, on the CPU."""
    score: float
    """The decoder's estimate of the mask's IoU, 0..1."""
    box_cxcywh: Tensor | None
    """(4,) in 0..1 of the CLIP canvas; None without a phrase, or without the REC head."""
    presence: float | None = None
    """Probability that a target exists, 0..1; None without a phrase, or without the presence head."""
    reading: Reading = NOT_READ
    """How the phrase was read; empty without one."""


@dataclass(frozen=True)
class Instance:
    """One object of a referent."""

    mask: BoolMask
    """(H, W) in the original frame."""
    score: float
    """SAM's estimate of the mask's IoU, 0..1."""


@dataclass(frozen=True)
class Referent:
    """The referent of a phrase."""

    phrase: str
    mask: BoolMask
    """(H, W) in the original frame; all False without a target."""
    score: float
    """The decoder's estimate of the mask's IoU, 0..1."""
    box_xyxy: tuple[float, float, float, float]
    """The REC head's box, px of the original frame; without that head, the box of the mask."""
    no_target: bool
    """The phrase has no target in the image."""
    stability: float = 1.0
    """IoU of the masks at a higher and at a lower threshold, 0..1: SAM's stability score."""
    expected_iou: float | None = None
    """Of the answer, 0..1, also of an empty one, by the weights' calibration; None without one."""
    is_unsure: bool = False
    """There is a mask although the model rather denies a target: its project asked for such masks."""
    reading: Reading = NOT_READ
    """How the phrase was read."""
    find_instances: Callable[[], Sequence[Instance]] | None = field(default=None, repr=False, compare=False)
    """Splits the mask into its objects; None for a mask that is not to be split."""

    @cached_property
    def instances(self) -> tuple[Instance, ...]:
        """Its objects, from the left, disjoint; none without a target. Their union is the mask, without what
        the phrase fits much less; for "the cup and the spoon", each may be better than its part of the mask.

        They are found when this is first read, in the reading thread, by `sspsam.objects`: the phrase is
        asked once more, and SAM at up to `splitting.MOST_SEEDS` points of the mask; a phrase for one thing
        needs neither. A mask that was made from clicks is one object.
        """
        if self.no_target:
            return ()
        if self.find_instances is None:
            return (Instance(self.mask, self.score),)
        return tuple(self.find_instances())

    @property
    def certainty(self) -> float:
        """Estimated quality of the answer, 0..1, also of an empty one: calibrated, or score x stability."""
        return self.score * self.stability if self.expected_iou is None else self.expected_iou


def stability_of(mask_logits: npt.NDArray[np.float32], threshold: float) -> float:
    """SAM's stability score, 0..1: IoU of the masks at STABILITY_OFFSET above and below the threshold.

    1 if both masks are empty: the answer is certainly empty.

    Source: Kirillov et al., Segment Anything (arXiv 2304.02643), B.
    """
    # int(): from NumPy 2.4 on, count_nonzero returns np.int64, which not every JSON encoder takes.
    inner = int(np.count_nonzero(mask_logits > threshold + STABILITY_OFFSET))
    outer = int(np.count_nonzero(mask_logits > threshold - STABILITY_OFFSET))
    return inner / outer if outer else 1.0


def is_no_target(
    mask: BoolMask, presence: float | None, min_presence: float, has_positive_click: bool
) -> bool:
    """Whether an answer means no target; an object with a positive click or box exists, however small."""
    if has_positive_click:
        return not mask.any()
    is_absent = presence is not None and presence < min_presence
    return is_absent or int(np.count_nonzero(mask)) < NO_TARGET_MIN_FRACTION * mask.size
