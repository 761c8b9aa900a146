"""In-memory caches for data that is equal in every round of a benchmark."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

from backend.serving.embedding_store import EmbeddingCache
from finetune.data.sample import Dataset, Sample
from sspsam import ImageEmbedding, Predictor
from sspsam.images.frames import UInt8Image

KEPT_BYTES = 2 * 2**30


class KeepingPredictor(Predictor):
    """Embeds each image once: fine-tuning freezes the image encoders."""

    def embed(self, image: UInt8Image) -> ImageEmbedding:
        key = hashlib.sha256(repr(image.shape).encode() + image.tobytes()).hexdigest()
        embedding = self._kept.get(key)
        if embedding is None:
            embedding = super().embed(image)
            self._kept.put(key, embedding)
        return embedding

    @cached_property
    def _kept(self) -> EmbeddingCache[ImageEmbedding]:
        return EmbeddingCache(KEPT_BYTES)


class KeptDataset:
    """A data set whose samples are drawn or read only once."""

    def __init__(self, dataset: Dataset) -> None:
        self._samples: Sequence[Sample] = [dataset[index] for index in range(len(dataset))]

    def __len__(self) -> int:
        return len(self._samples)

    def __getitem__(self, index: int) -> Sample:
        return self._samples[index]
