"""Two evaluation protocols: at the image's own size, and as in the paper's code. Their figures differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

import numpy as np
import numpy.typing as npt
import torch

from finetune.metrics import NO_TARGET_MIN_PIXELS
from sspsam.images import frames
from sspsam.images.masks import mask_to_box_xyxy

if TYPE_CHECKING:
    from sspsam import ImageEmbedding, Predictor, Referent

BoolMask = npt.NDArray[np.bool_]

PROTOCOLS = ("original", "paper")
PAPER_THRESHOLD = 0.5
"""Probability above which the paper's code counts a pixel as mask."""


class Answer(NamedTuple):
    """A model's answer to one phrase, in a protocol's frame."""

    mask: BoolMask
    box_xyxy: tuple[float, float, float, float]
    """Px of the original frame."""


class PhraseModel(Protocol):
    """The evaluated model: `sspsam.Predictor`, or anything with the same interface."""

    def embed(self, image: npt.NDArray[np.uint8], /) -> ImageEmbedding: ...

    def predict(self, embedding: ImageEmbedding, phrases: list[str], /) -> Sequence[Referent]: ...


class MaskProtocol(Protocol):
    """Brings predictions and ground truth to one frame."""

    @property
    def no_target_min_pixels(self) -> int:
        """Predictions with fewer pixels are empty, if the ground truth is."""

    def answer(self, model: PhraseModel, embedding: ImageEmbedding, phrase: str) -> Answer:
        """Runs the model; raises PhraseError for an unreadable phrase."""

    def truth(self, mask: BoolMask) -> BoolMask:
        """A (H, W) mask of the original frame, in the protocol's frame."""


class OriginalSize:
    """Masks at the image's own size."""

    no_target_min_pixels = 1

    def answer(self, model: PhraseModel, embedding: ImageEmbedding, phrase: str) -> Answer:
        [referent] = model.predict(embedding, [phrase])
        return Answer(referent.mask, referent.box_xyxy)

    def truth(self, mask: BoolMask) -> BoolMask:
        return mask


class PaperSquare:
    """Masks on a padded square of 512 px, where fewer than 50 px are an empty answer.

    Source: WayneTomas/SSP-SAM:engine.py, metric/mask_op.py.
    """

    no_target_min_pixels = NO_TARGET_MIN_PIXELS

    def __init__(self, predictor: Predictor) -> None:
        self._predictor = predictor

    @torch.inference_mode()
    def answer(self, model: PhraseModel, embedding: ImageEmbedding, phrase: str) -> Answer:
        from sspsam.phrases import tokenize

        network = self._predictor.model
        encoded = network.encode_phrase(tokenize([phrase]).to(self._predictor.device))
        output = network.decode(
            embedding.image_embedding, network.make_prompts(embedding.patch_features, encoded)
        )
        logits = frames.sam_logits_to_paper_square(output.mask_logits)
        mask = (logits[0].sigmoid() >= PAPER_THRESHOLD).cpu().numpy()
        if output.boxes is not None:
            return Answer(mask, embedding.clip_frame.box_to_original(output.boxes[0].cpu()))
        original = frames.sam_logits_to_original(output.mask_logits, embedding.original_hw)[0]
        return Answer(mask, mask_to_box_xyxy((original > network.mask_threshold).cpu().numpy()))

    def truth(self, mask: BoolMask) -> BoolMask:
        return frames.mask_to_paper_square(mask)


def choose_protocol(name: str, model: PhraseModel) -> MaskProtocol:
    """The protocol of that name.

    Raises:
        ValueError: unknown, or the model is not a `Predictor`, whose logits the paper's protocol needs.
    """
    from sspsam import Predictor

    if name == "original":
        return OriginalSize()
    if name != "paper":
        raise ValueError(f"unknown protocol {name!r}, expected one of: {', '.join(PROTOCOLS)}")
    if not isinstance(model, Predictor):
        raise ValueError("the paper's protocol needs the logits of a sspsam.Predictor")
    return PaperSquare(model)
