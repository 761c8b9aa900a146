"""Cache of intermediate results that depend on an image or a phrase alone, valid while the weights stay."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import TypeVar

import torch
from cachetools import LRUCache
from torch import Tensor

from sspsam.modeling.model import SSPSAM, EncodedPhrase
from sspsam.modeling.two_way import ProjectedImage
from sspsam.phrases import normalise, tokenize

KEPT_IMAGE_BYTES = 256 * 2**20
"""Limit of decoder features of images, independent of prompts: some tens at 1024 px."""
KEPT_PHRASE_BYTES = 32 * 2**20
"""Limit of encoded phrases: some hundreds."""

Key = TypeVar("Key")
Value = TypeVar("Value")
Encode = Callable[[Sequence[str]], Sequence[EncodedPhrase]]
Share = Callable[[Encode, Sequence[str]], list[EncodedPhrase]]


class FeatureCache:
    """Runs a model and caches reusable results. Not thread-safe.

    Fine-tuning changes them: the cache is cleared after any write to the model's weights.

    Args:
        model: On its device.
        share: Calls a function with the rows of a batch, at once or in parts, and returns all answers.
        image_bytes: Limit of cached image features, including their embeddings.
        phrase_bytes: Limit of cached phrases.
    """

    def __init__(
        self,
        model: SSPSAM,
        share: Share,
        image_bytes: int = KEPT_IMAGE_BYTES,
        phrase_bytes: int = KEPT_PHRASE_BYTES,
    ) -> None:
        self._model = model
        self._share = share
        self._parameters = list(model.parameters())
        self._weights = -1
        self.images: LRUCache[Tensor, ProjectedImage] = LRUCache(image_bytes, _image_bytes)
        self.phrases: LRUCache[str, EncodedPhrase] = LRUCache(phrase_bytes, lambda encoded: encoded.nbytes)

    def project(self, image_embedding: Tensor) -> ProjectedImage:
        """Decoder features of a (1, C, h, w) image embedding, identified by the tensor object."""
        self._forget_other_weights()
        image = self.images.get(image_embedding)
        if image is None:
            image = self._model.sam.project(image_embedding)
            _put(self.images, image_embedding, image)
        return image

    def encode_phrases(self, phrases: Sequence[str]) -> list[EncodedPhrase]:
        """Encodes phrases; uncached ones in one batch.

        Raises:
            PhraseError: a phrase is empty, or too long.
        """
        self._forget_other_weights()
        keys = [normalise(phrase) for phrase in phrases]
        kept = {key: self.phrases.get(key) for key in keys}
        found = {key: encoded for key, encoded in kept.items() if encoded is not None}
        missing = [key for key in kept if key not in found]
        if missing:
            for key, encoded in zip(missing, self._share(self._encode, missing), strict=True):
                found[key] = encoded
                _put(self.phrases, key, encoded)
        return [found[key] for key in keys]

    @torch.inference_mode()
    def _encode(self, phrases: Sequence[str]) -> list[EncodedPhrase]:
        """In one pass; thread-safe."""
        tokens = tokenize(phrases)
        lengths = (tokens != 0).sum(dim=1).tolist()  # computed here, where no GPU synchronisation is needed
        together = self._model.encode_phrase(tokens.to(self._parameters[0].device))
        return [together.row(number, length) for number, length in enumerate(lengths)]

    def _forget_other_weights(self) -> None:
        weights = sum(parameter._version for parameter in self._parameters)
        if weights != self._weights:
            self._weights = weights
            self.images.clear()
            self.phrases.clear()


def _image_bytes(image: ProjectedImage) -> int:
    """Memory of a projected image and of its key, the image embedding, which is as large as the cells."""
    return image.nbytes + image.cells.nbytes


def _put(cache: LRUCache[Key, Value], key: Key, value: Value) -> None:
    """Caches a value, unless it is larger than the whole cache."""
    with suppress(ValueError):
        cache[key] = value
