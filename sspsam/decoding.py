"""Questions about images to mask logits, in as few forward passes as their prompts allow."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import groupby
from typing import TypeVar

import numpy as np
import torch
from torch import Tensor

from sspsam.caching.feature_cache import FeatureCache
from sspsam.images import frames
from sspsam.modeling.model import SSPSAM, EncodedPhrase
from sspsam.modeling.sam import SAMDecoder
from sspsam.modeling.two_way import ProjectedImage
from sspsam.reading.reader import NOT_READ, PhraseReader, Reading
from sspsam.results import Decoded, Question
from sspsam.runtime.bfloat16 import Precision, check_precision, computing_in
from sspsam.runtime.cores import Cores
from sspsam.runtime.out_of_memory import in_halves

CACHED_BYTES = 2 * 2**20
"""Number of image cells that the mask decoder processes at a time on a CPU."""

ModelQuestion = tuple[SSPSAM, Question]
_Item = TypeVar("_Item")
_Answer = TypeVar("_Answer")
_Row = tuple[SSPSAM, Question, EncodedPhrase | None, ProjectedImage]


class QuestionDecoder:
    """Runs models on batches of questions. Not thread-safe, but for `read`.

    Intermediate results for an image or a phrase are cached (`sspsam.caching.feature_cache`).

    Args:
        device: Of the models.
        cores: For models on the CPU.
        reader: Of typed phrases.
        precision: Of all networks that run here.

    Raises:
        ValueError: unknown precision.
    """

    def __init__(
        self, device: torch.device, cores: Cores, reader: PhraseReader, precision: Precision = "float32"
    ) -> None:
        check_precision(precision)
        self._device, self._cores, self.reader, self._precision = device, cores, reader, precision
        self._cache = FeatureCache(self._share)

    def read(self, phrase: str, model: SSPSAM) -> Reading:
        """What a model is asked for a typed phrase. Thread-safe."""
        tokens = model.learned_words.tokens
        return self.reader.read(phrase, frozenset(() if tokens is None else tokens.tolist()))

    @torch.inference_mode()
    def decode(self, asked: Sequence[ModelQuestion]) -> list[Decoded]:
        """Runs the networks; images and models may differ. Phrases of a model share one forward pass, and so
        do questions with as many clicks: prompts of different lengths cannot be batched.

        Raises:
            PhraseError: a phrase is too long.
            ValueError: neither a phrase nor clicks.
        """
        passes: dict[object, list[int]] = {}
        for place, (_, question) in enumerate(asked):
            passes.setdefault(question.prompt_shape, []).append(place)
        found: dict[int, Decoded] = {}
        for places in passes.values():
            places.sort(key=lambda place: id(asked[place][0]))  # adjacent rows of a model share its pass
            found |= zip(places, self._decode([asked[place] for place in places]), strict=True)
        return [found[place] for place in range(len(asked))]

    def _decode(self, asked: Sequence[ModelQuestion]) -> list[Decoded]:
        """Any number of questions with prompts of one shape."""
        readings = [
            self.read(question.phrase, model) if question.phrase else NOT_READ for model, question in asked
        ]
        phrases = [(model, reading.asked) for (model, _), reading in zip(asked, readings, strict=True)]
        has_phrases = any(phrase for _, phrase in phrases)
        encoded = self._cache.encode_phrases(phrases) if has_phrases else [None] * len(phrases)
        with computing_in(self._precision, self._device):
            rows = [
                (model, question, phrase, self._cache.project(model, question.embedding.image_embedding))
                for (model, question), phrase in zip(asked, encoded, strict=True)
            ]
        answers = self._share(self._answer, rows)
        return [replace(answer, reading=read) for answer, read in zip(answers, readings, strict=True)]

    def _share(
        self, answer: Callable[[Sequence[_Item]], Sequence[_Answer]], rows: Sequence[_Item]
    ) -> list[_Answer]:
        """Answers for the rows of a batch: distributed over cores on a CPU; on a GPU in one pass, or in
        several if its memory does not suffice.
        """

        def compute(some: Sequence[_Item]) -> Sequence[_Answer]:
            with computing_in(self._precision, self._device):  # each thread has a precision of its own
                return answer(some)

        return in_halves(compute, rows) if self._device.type != "cpu" else self._cores.map(compute, rows)

    @torch.inference_mode()
    def _answer(self, rows: Sequence[_Row]) -> list[Decoded]:
        by_model = [list(some) for _, some in groupby(rows, key=lambda row: id(row[0]))]
        return [decoded for some in by_model for decoded in self._answer_one_model(some)]

    def _answer_one_model(self, rows: Sequence[_Row]) -> list[Decoded]:
        models, questions, encoded, images = zip(*rows, strict=True)
        model = models[0]
        embedded = [
            clicks
            for question in questions
            if (clicks := self._embed_clicks(model.sam, question)) is not None
        ]
        clicks = torch.cat(embedded) if embedded else None
        boxes, beliefs = None, None
        if None not in encoded:
            patch_features = _stack([question.embedding.patch_features for question in questions])
            prompts = model.make_prompts(patch_features, EncodedPhrase.stack(encoded))
            boxes, beliefs = model.predict_box(prompts), model.presence_logits(prompts)
            sparse = prompts.sparse_prompt_embeddings(clicks)
        elif clicks is not None:
            sparse = clicks
        else:
            raise ValueError("expected points or a box: there is no phrase")
        mask_logits, iou_predictions = self._decode_masks(model.sam, images, sparse)
        scores = iou_predictions.clamp(0, 1).tolist()
        grids = mask_logits[:, 0].float().cpu()
        nothing = [None] * len(questions)
        boxes_cxcywh = nothing if boxes is None else list(boxes.float().cpu())
        presences = nothing if beliefs is None else beliefs.float().sigmoid().tolist()
        answers = zip(questions, grids, scores, boxes_cxcywh, presences, strict=True)
        return [Decoded(*answer) for answer in answers]

    def _decode_masks(
        self, sam: SAMDecoder, images: Sequence[ProjectedImage], sparse: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Like `SAMDecoder.decode`. On a CPU a few rows at a time, to fit in its caches."""
        together = len(images)
        if self._device.type == "cpu":
            together = max(1, CACHED_BYTES // images[0].cells.nbytes)
        parts = [
            sam.decode(
                ProjectedImage.stack(images[first : first + together]), sparse[first : first + together]
            )
            for first in range(0, len(images), together)
        ]
        mask_logits, iou_predictions = zip(*parts, strict=True)
        return torch.cat(mask_logits), torch.cat(iou_predictions)

    def _embed_clicks(self, sam: SAMDecoder, question: Question) -> Tensor | None:
        """SAM's own embeddings, (1, M, C), of points and boxes."""
        embedding, points, boxes = question.embedding, question.points, question.boxes
        sam_side = sam.prompt_encoder.input_image_size[0]
        if points is None and boxes is None:
            return None
        coordinates, labels, corners = None, None, None
        if points is not None:
            array = np.asarray(points, np.float32).reshape(-1, 3)
            xy = frames.points_to_sam(array[:, :2], embedding.original_hw, sam_side)
            coordinates = xy[None].to(self._device)
            labels = torch.from_numpy(array[:, 2].astype(np.int64))[None].to(self._device)
        if boxes is not None:
            pair = np.asarray(boxes, np.float32).reshape(2, 2)
            xyxy = frames.points_to_sam(pair, embedding.original_hw, sam_side)
            corners = xyxy.reshape(1, 4).to(self._device)
        clicks = None if coordinates is None else (coordinates, labels)
        sparse, _ = sam.prompt_encoder(points=clicks, boxes=corners, masks=None)
        return sparse  # type: ignore[no-any-return]  # segment_anything is not typed


def _stack(tensors: Sequence[Tensor]) -> Tensor:
    """Concatenates (1, ...) tensors; a repeated one is expanded without copying."""
    first = tensors[0]
    if all(tensor is first for tensor in tensors):
        return first.expand(len(tensors), *first.shape[1:])
    return torch.cat(list(tensors))
