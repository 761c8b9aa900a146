"""Training examples: samples with images embedded once, in shuffled batches."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from finetune.data.dataset import phrases_of
from finetune.data.sample import Dataset, DatasetError, Sample
from sspsam import ImageEmbedding, Predictor, coco_rle_to_mask, mask_to_coco_rle
from sspsam.images import frames
from sspsam.images.frames import BoolMask, ClipFrame
from sspsam.modeling.clip import TextFeatures
from sspsam.phrases import tokenize

TEXT_CHUNK = 64
"""Phrases per batch of the text tower."""
WINDOW_ORDER = 1
"""Separates the random order of windows from that of samples."""


@dataclass(frozen=True)
class Batch:
    """B examples on one device."""

    sample_ids: tuple[str, ...]
    patch_features: Tensor
    """(B, G*G, D)."""
    image_embeddings: Tensor
    """(B, C, h, w); (B, 0, 0, 0) without SAM."""
    tokens: Tensor
    """(B, 77)."""
    text: TextFeatures
    masks: Tensor
    """(B, 1, T, T) float32 in 0..1, sam frame."""
    patch_coverage: Tensor
    """(B, G*G) fraction of each CLIP patch covered by the target."""
    boxes: Tensor
    """(B, 4) cxcywh in 0..1 of the CLIP input; zeros without a target."""
    has_target: Tensor
    """(B,) bool."""
    has_mask: Tensor
    """(B,) bool: False if only the target's box is known."""


@dataclass(frozen=True)
class _Example:
    sample_id: str
    phrase: str
    embedding: ImageEmbedding
    mask_rle: dict[str, object]
    patch_coverage: Tensor
    box: Tensor
    has_target: bool
    has_mask: bool


@dataclass(frozen=True)
class _Window:
    number: int
    examples: list[_Example]
    text: dict[str, tuple[Tensor, TextFeatures]]
    """Phrase -> tokens (77,) and text features, (77, width) and (D,)."""


class ExampleStream:
    """Batches of a data set, window by window.

    A window is a run of consecutive samples whose images are embedded together; its samples are visited in
    shuffled order before the next window is read. Every epoch visits all windows, in an order of its own; the
    last one overlaps the one before it if the samples do not fill it. A step's batch depends only on the seed
    and the step, so training resumes exactly. The window limits the memory.
    """

    def __init__(
        self,
        dataset: Dataset,
        predictor: Predictor,
        batch_size: int,
        window: int,
        target_size: int,
        seed: int,
    ) -> None:
        if not len(dataset):
            raise DatasetError("the training data set is empty")
        self.dataset = dataset
        self.predictor = predictor
        self.batch_size = min(batch_size, len(dataset))
        self.window = max(self.batch_size, min(window, len(dataset)))
        self.target_size = target_size
        self.seed = seed
        self._steps_per_window = max(1, self.window // self.batch_size)
        self._windows = -(-len(dataset) // self.window)
        self._window = _Window(-1, [], {})

    def batch(self, step: int) -> Batch:
        """The batch of a step."""
        visit, position = divmod(step, self._steps_per_window)
        self._load(self._window_of(visit))
        examples = self._window.examples
        order = np.random.default_rng((self.seed, visit)).permutation(len(examples))
        chosen = order[position * self.batch_size :][: self.batch_size]
        return self._collate([examples[i] for i in chosen])

    def in_order(self, rows: int) -> Iterator[Batch]:
        """The first window's samples in the data set's order, in chunks of at most this size."""
        self._load(0)
        for start in range(0, len(self._window.examples), rows):
            yield self._collate(self._window.examples[start : start + rows])

    def phrases(self) -> list[str]:
        """The distinct phrases of the data set, as far as known: see `finetune.data.dataset.phrases_of`."""
        if self._windows > 1:
            return sorted(phrases_of(self.dataset, self.window))
        self._load(0)  # the first step needs it as well
        return sorted(self._window.text)

    def counts(self) -> Tensor:
        """(2,) float32: number of samples, and of those with a target, in the first window."""
        self._load(0)
        targets = [example.has_target for example in self._window.examples]
        return torch.tensor([len(targets), sum(targets)], dtype=torch.float32)

    def _window_of(self, visit: int) -> int:
        epoch, turn = divmod(visit, self._windows)
        order = np.random.default_rng((self.seed, epoch, WINDOW_ORDER)).permutation(self._windows)
        return int(order[turn])

    def _load(self, number: int) -> None:
        if self._window.number == number:
            return
        self._window = _Window(-1, [], {})  # frees the previous window's memory first
        start = min(number * self.window, len(self.dataset) - self.window)  # all windows are equally long
        examples = self._read(range(start, start + self.window))
        self._window = _Window(number, examples, self._read_phrases({e.phrase for e in examples}))

    def _read(self, positions: Sequence[int]) -> list[_Example]:
        examples: list[_Example] = []
        image_id, embedding = "", None
        for position in positions:
            sample = self.dataset[position]
            if embedding is None or sample.image_id != image_id:
                image_id, embedding = sample.image_id, self._embed(sample)
            examples.append(_make_example(sample, embedding))
        return examples

    @torch.no_grad()
    def _read_phrases(self, phrases: set[str]) -> dict[str, tuple[Tensor, TextFeatures]]:
        """Tokens and text features by phrase; each is encoded once, in chunks determined by the window."""
        distinct = sorted(phrases)
        read: dict[str, tuple[Tensor, TextFeatures]] = {}
        for start in range(0, len(distinct), TEXT_CHUNK):
            chunk = distinct[start : start + TEXT_CHUNK]
            tokens = tokenize(chunk)
            features = self.predictor.model.encode_text(tokens.to(self.predictor.device))
            rows = zip(
                chunk, tokens, features.words.half().cpu(), features.sentence.half().cpu(), strict=True
            )
            read |= {phrase: (ids, TextFeatures(words, sentence)) for phrase, ids, words, sentence in rows}
        return read

    def _embed(self, sample: Sample) -> ImageEmbedding:
        embedding = self.predictor.embed(sample.image)
        return ImageEmbedding(
            embedding.original_hw,
            embedding.image_embedding.half().cpu(),
            embedding.patch_features.half().cpu(),
            embedding.clip_frame,
        )

    def _collate(self, examples: Sequence[_Example]) -> Batch:
        device = self.predictor.device
        masks = torch.stack([self._target(coco_rle_to_mask(example.mask_rle)) for example in examples])
        embeddings = [example.embedding for example in examples]
        tokens, text = zip(*(self._window.text[example.phrase] for example in examples), strict=True)
        return Batch(
            sample_ids=tuple(example.sample_id for example in examples),
            patch_features=torch.cat([e.patch_features for e in embeddings]).to(device).float(),
            image_embeddings=torch.cat([e.image_embedding for e in embeddings]).to(device).float(),
            tokens=torch.stack(tokens).to(device),
            text=TextFeatures(
                torch.stack([features.words for features in text]).to(device).float(),
                torch.stack([features.sentence for features in text]).to(device).float(),
            ),
            masks=masks[:, None].to(device),
            patch_coverage=torch.stack([example.patch_coverage for example in examples]).to(device).float(),
            boxes=torch.stack([example.box for example in examples]).to(device),
            has_target=torch.tensor([example.has_target for example in examples], device=device),
            has_mask=torch.tensor([example.has_mask for example in examples], device=device),
        )

    def _target(self, mask: BoolMask) -> Tensor:
        return (frames.mask_to_sam(mask, self.target_size) > 0.5).float()


TENSOR_FIELDS = (
    "patch_features",
    "image_embeddings",
    "tokens",
    "masks",
    "patch_coverage",
    "boxes",
    "has_target",
    "has_mask",
)
"""Fields of a batch that are tensors of B rows."""


def concatenate(first: Batch, second: Batch) -> Batch:
    """Joins two batches."""
    return Batch(
        sample_ids=first.sample_ids + second.sample_ids,
        text=TextFeatures(*map(torch.cat, zip(first.text, second.text, strict=True))),
        **{name: torch.cat([getattr(first, name), getattr(second, name)]) for name in TENSOR_FIELDS},
    )


def take(batch: Batch, rows: range) -> Batch:
    """Consecutive rows of a batch."""
    part = slice(rows.start, rows.stop)
    return Batch(
        sample_ids=batch.sample_ids[part],
        text=TextFeatures(*(features[part] for features in batch.text)),
        **{name: getattr(batch, name)[part] for name in TENSOR_FIELDS},
    )


def _make_example(sample: Sample, embedding: ImageEmbedding) -> _Example:
    return _Example(
        sample_id=sample.sample_id,
        phrase=sample.phrase,
        embedding=embedding,
        mask_rle=mask_to_coco_rle(sample.mask),
        patch_coverage=_patch_coverage(sample.mask, embedding),
        box=_canvas_box(sample, embedding.clip_frame),
        has_target=bool(sample.mask.any()),
        has_mask=not sample.is_box,
    )


def _patch_coverage(mask: BoolMask, embedding: ImageEmbedding) -> Tensor:
    canvas = embedding.clip_frame.mask_to_canvas(mask)
    grid = int(embedding.patch_features.shape[1] ** 0.5)
    return F.adaptive_avg_pool2d(canvas[None, None], grid).flatten().half()


def _canvas_box(sample: Sample, frame: ClipFrame) -> Tensor:
    return frame.box_from_original(sample.true_box_xyxy) if sample.has_target else torch.zeros(4)
