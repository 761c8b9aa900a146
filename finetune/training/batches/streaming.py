"""Training batches of data sets of any size: images are read, augmented and encoded at their step."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader

from finetune.data.augmentation import mirror
from finetune.data.sample import Dataset, DatasetError, DatasetFileError, Sample
from finetune.training.batches.embedding_store import EmbeddingStore, find_embedding
from finetune.training.batches.examples import Batch
from finetune.training.config import TrainConfig
from finetune.training.ranks import Ranks
from sspsam import PhraseError, Predictor
from sspsam.caching.embedding_files import EmbeddingFiles
from sspsam.images import frames
from sspsam.modeling.clip import TextFeatures
from sspsam.phrases import tokenize
from sspsam.presets import IMAGE_ENCODERS, CLIPConfig

FLIP_STREAM, PLACE_STREAM = 1, 2
"""Indices of the random sequences derived from a seed, an epoch and a position."""


@dataclass(frozen=True)
class PreparedSample:
    """One sample, read and augmented, not yet encoded."""

    sample_id: str
    tokens: Tensor
    """(77,)."""
    image: npt.NDArray[np.uint8] | None
    """(H, W, 3) RGB, possibly mirrored; None if SAM's encoder does not need it."""
    image_embedding: Tensor | None
    """(C, h, w) float16, if cached."""
    canvas: Tensor
    """(3, S, S), padded CLIP input."""
    mask: Tensor
    """(1, T, T) float32 0 or 1, sam frame."""
    patch_coverage: Tensor
    """(G*G,)."""
    box: Tensor
    """(4,) cxcywh in 0..1 of the CLIP input; zeros without a target."""
    has_target: bool
    has_mask: bool


@dataclass(frozen=True)
class Variation:
    """Augmentation settings."""

    seed: int
    random_placement: bool
    flip_probability: float


class PreparedSamples:
    """Samples by (epoch, position): deterministic in every process, so that training resumes exactly."""

    def __init__(
        self,
        dataset: Dataset,
        variation: Variation,
        clip: CLIPConfig,
        target_size: int,
        with_masks: bool,
        embeddings: EmbeddingFiles | None,
    ) -> None:
        self.dataset = dataset
        self.variation = variation
        self.clip = clip
        self.target_size = target_size
        self.with_masks = with_masks
        self.embeddings = embeddings

    def __getitem__(self, key: tuple[int, int]) -> PreparedSample:
        epoch, position = key
        sample = self.dataset[position]
        variation = self.variation
        draw = np.random.default_rng((variation.seed, FLIP_STREAM, epoch, position)).random()
        if draw < variation.flip_probability:
            sample = mirror(sample)
        canvas, frame = frames.image_to_clip(
            sample.image, self.clip.image_size, self.clip.centred, self._placement(epoch, position)
        )
        coverage = F.adaptive_avg_pool2d(frame.mask_to_canvas(sample.mask)[None, None], self.clip.grid_size)
        kept = None if self.embeddings is None else find_embedding(self.embeddings, sample.image)
        return PreparedSample(
            sample_id=sample.sample_id,
            tokens=_tokens(sample),
            image=sample.image if self.with_masks and kept is None else None,
            image_embedding=kept,
            canvas=canvas,
            mask=(frames.mask_to_sam(sample.mask, self.target_size) > 0.5).float()[None],
            patch_coverage=coverage.flatten(),
            box=_canvas_box(sample, frame),
            has_target=sample.has_target,
            has_mask=not sample.is_box,
        )

    def _placement(self, epoch: int, position: int) -> torch.Generator | None:
        if not self.variation.random_placement:
            return None
        seed = np.random.default_rng((self.variation.seed, PLACE_STREAM, epoch, position)).integers(2**62)
        return torch.Generator().manual_seed(int(seed))


class StepSampler:
    """The (epoch, position) keys of one process's share of each step, from a given step on, infinite.

    Every epoch visits every sample once in its own order; a step may extend into the next epoch.
    """

    def __init__(self, length: int, batch_size: int, seed: int, processes: Ranks, first_step: int) -> None:
        self.length = length
        self.batch_size = batch_size
        self.seed = seed
        self.processes = processes
        self.first_step = first_step
        self._order: tuple[int, npt.NDArray[np.int64]] = (-1, np.zeros(0, np.int64))

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        step = self.first_step
        while True:
            yield self.keys(step)
            step += 1

    def keys(self, step: int) -> list[tuple[int, int]]:
        """Samples of the step in this process."""
        first = step * self.batch_size
        return [self._key(first + i) for i in self.processes.share(self.batch_size)]

    def _key(self, visit: int) -> tuple[int, int]:
        epoch, place = divmod(visit, self.length)
        if self._order[0] != epoch:
            self._order = epoch, np.random.default_rng((self.seed, epoch)).permutation(self.length)
        return epoch, int(self._order[1][place])


class SampleStream:
    """Batches of a data set, sample by sample in random order: this process's share of each."""

    def __init__(
        self,
        dataset: Dataset,
        predictor: Predictor,
        config: TrainConfig,
        batch_size: int,
        processes: Ranks,
    ) -> None:
        """Prepares reading; nothing is read yet.

        Args:
            dataset: Source of samples; images are read in any order.
            predictor: Encodes them.
            config: Augmentation, prefetching and caching.
            batch_size: Samples per step, over all processes.
            processes: Share each batch.
        """
        if not len(dataset):
            raise DatasetError("the training data set is empty")
        preset, with_masks = predictor.model.preset, config.stage == "ssp"
        self.embeddings = EmbeddingStore(
            config.embeddings if with_masks else None,
            predictor.image_encoder,
            IMAGE_ENCODERS[preset.image_encoder].image_size,
            predictor.device,
        )
        variation = Variation(config.seed, config.random_placement, config.flip_probability)
        self.readings = PreparedSamples(
            dataset, variation, preset.clip, config.target_size, with_masks, self.embeddings.files
        )
        self.predictor = predictor
        self.config = config
        self.batch_size = batch_size
        self.processes = processes
        self.length = len(dataset)
        self._coming: tuple[int, Iterator[list[PreparedSample]]] | None = None

    def batch(self, step: int) -> Batch:
        """This process's samples of a step."""
        if self._coming is None or self._coming[0] != step:
            self._coming = step, iter(self._loader(step))
        readings = next(self._coming[1])
        self._coming = step + 1, self._coming[1]
        return self._encode(readings)

    def _loader(self, first_step: int) -> DataLoader[Any]:
        sampler = StepSampler(self.length, self.batch_size, self.config.seed, self.processes, first_step)
        return DataLoader(
            self.readings,  # type: ignore[arg-type]  # its keys are no numbers
            batch_sampler=sampler,
            collate_fn=list,
            generator=torch.Generator(),  # the loader draws from this generator only
            num_workers=self.config.workers,
            multiprocessing_context="spawn" if self.config.workers else None,
        )

    @torch.no_grad()
    def _encode(self, readings: Sequence[PreparedSample]) -> Batch:
        device, model = self.predictor.device, self.predictor.model
        tokens = torch.stack([reading.tokens for reading in readings]).to(device)
        return Batch(
            sample_ids=tuple(reading.sample_id for reading in readings),
            patch_features=model.encode_image(torch.stack([r.canvas for r in readings]).to(device)),
            image_embeddings=self._embed(readings),
            tokens=tokens,
            text=TextFeatures(*model.encode_text(tokens)),
            masks=torch.stack([reading.mask for reading in readings]).to(device),
            patch_coverage=torch.stack([reading.patch_coverage for reading in readings]).to(device),
            boxes=torch.stack([reading.box for reading in readings]).to(device),
            has_target=torch.tensor([reading.has_target for reading in readings], device=device),
            has_mask=torch.tensor([reading.has_mask for reading in readings], device=device),
        )

    def _embed(self, readings: Sequence[PreparedSample]) -> Tensor:
        device = self.predictor.device
        if not self.readings.with_masks:
            return torch.zeros(len(readings), 0, 0, 0, device=device)
        return torch.stack([self._embedding(reading) for reading in readings]).to(device).float()

    def _embedding(self, reading: PreparedSample) -> Tensor:
        if reading.image_embedding is not None:
            return reading.image_embedding
        assert reading.image is not None
        return self.embeddings.get(reading.image)


def _tokens(sample: Sample) -> Tensor:
    try:
        return tokenize([sample.phrase])[0]
    except PhraseError as error:
        raise DatasetFileError(f"{sample.sample_id}: {error}") from error


def _canvas_box(sample: Sample, frame: frames.ClipFrame) -> Tensor:
    return frame.box_from_original(sample.true_box_xyxy) if sample.has_target else torch.zeros(4)
