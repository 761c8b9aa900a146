"""Cache of intermediate results that depend on the weights and on an image or a phrase alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import count, groupby
from typing import TypeVar
from weakref import WeakKeyDictionary

import torch
from cachetools import LRUCache
from torch import Tensor, nn

from sspsam.modeling.model import SSPSAM, EncodedPhrase
from sspsam.modeling.two_way import ProjectedImage
from sspsam.phrases import normalise, tokenize

KEPT_IMAGE_BYTES = 256 * 2**20
"""Limit of decoder features of images, for all models together: some tens at 1024 px."""
KEPT_PHRASE_BYTES = 32 * 2**20
"""Limit of encoded phrases, for all models together: some hundreds."""

Key = TypeVar("Key")
Value = TypeVar("Value")
ModelPhrase = tuple[SSPSAM, str]
Encode = Callable[[Sequence[ModelPhrase]], Sequence[EncodedPhrase]]
Share = Callable[[Encode, Sequence[ModelPhrase]], list[EncodedPhrase]]


@dataclass
class _Weights:
    """The weights of a model, as last seen."""

    parameters: Sequence[nn.Parameter]
    written: int = -1
    """Number of writes to them."""
    number: int = -1
    """Distinguishes them from all others in the cache's keys."""


class FeatureCache:
    """Runs models and caches reusable results. Not thread-safe.

    Results follow the weights: those of a model that is gone, or whose weights were written to, are removed.

    Args:
        share: Calls a function with the rows of a batch, at once or in parts, and returns all answers.
        image_bytes: Limit of cached image features, including their embeddings.
        phrase_bytes: Limit of cached phrases.
    """

    def __init__(
        self, share: Share, image_bytes: int = KEPT_IMAGE_BYTES, phrase_bytes: int = KEPT_PHRASE_BYTES
    ) -> None:
        self._share = share
        self._weights: WeakKeyDictionary[SSPSAM, _Weights] = WeakKeyDictionary()
        self._numbers = count()
        self.images: LRUCache[tuple[int, Tensor], ProjectedImage] = LRUCache(image_bytes, _image_bytes)
        self.phrases: LRUCache[tuple[int, str], EncodedPhrase] = LRUCache(
            phrase_bytes, lambda encoded: encoded.nbytes
        )

    def project(self, model: SSPSAM, image_embedding: Tensor) -> ProjectedImage:
        """Decoder features of a (1, C, h, w) image embedding, identified by the tensor object."""
        key = self._number(model), image_embedding
        image = self.images.get(key)
        if image is None:
            image = model.sam.project(image_embedding)
            _put(self.images, key, image)
        return image

    def encode_phrases(self, asked: Sequence[ModelPhrase]) -> list[EncodedPhrase]:
        """Encodes phrases, each by its model; uncached ones in one batch per model.

        Args:
            asked: Those of one model are adjacent.

        Raises:
            PhraseError: a phrase is empty, or too long.
        """
        keys = [(self._number(model), normalise(phrase)) for model, phrase in asked]
        kept = {key: self.phrases.get(key) for key in keys}
        found = {key: encoded for key, encoded in kept.items() if encoded is not None}
        models = dict(zip(keys, (model for model, _ in asked), strict=True))
        missing = [key for key in kept if key not in found]
        if missing:
            rows = [(models[key], key[1]) for key in missing]
            for key, encoded in zip(missing, self._share(_encode, rows), strict=True):
                found[key] = encoded
                _put(self.phrases, key, encoded)
        return [found[key] for key in keys]

    def _number(self, model: SSPSAM) -> int:
        """The number of the model's present weights."""
        weights = self._weights.get(model)
        if weights is None:
            weights = self._weights[model] = _Weights(list(model.parameters()))
        written = sum(parameter._version for parameter in weights.parameters)
        if written != weights.written:
            weights.written, weights.number = written, next(self._numbers)
            self._remove_outdated()
        return weights.number

    def _remove_outdated(self) -> None:
        present = {weights.number for weights in self._weights.values()}
        for image_key in [key for key in self.images if key[0] not in present]:
            del self.images[image_key]
        for phrase_key in [key for key in self.phrases if key[0] not in present]:
            del self.phrases[phrase_key]


@torch.inference_mode()
def _encode(asked: Sequence[ModelPhrase]) -> list[EncodedPhrase]:
    """In one pass per model; thread-safe."""
    rows: list[EncodedPhrase] = []
    for _, some in groupby(asked, key=lambda row: id(row[0])):
        models, phrases = zip(*some, strict=True)
        tokens = tokenize(phrases)
        lengths = (tokens != 0).sum(dim=1).tolist()  # computed here, where no GPU synchronisation is needed
        together = models[0].encode_phrase(tokens.to(models[0].fusion.weight.device))
        rows += [together.row(number, length) for number, length in enumerate(lengths)]
    return rows


def _image_bytes(image: ProjectedImage) -> int:
    """Memory of a projected image and of its key, the image embedding, which is as large as the cells."""
    return image.nbytes + image.cells.nbytes


def _put(cache: LRUCache[Key, Value], key: Key, value: Value) -> None:
    """Caches a value, unless it is larger than the whole cache."""
    with suppress(ValueError):
        cache[key] = value
