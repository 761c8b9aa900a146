"""All further looks at a picture after the first answers: tiles of a large one, then a second look."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

from cachetools import LRUCache
from torch import Tensor

from sspsam.images.frames import UInt8Image
from sspsam.images.views import Window
from sspsam.looks.second_look import LookRules, Viewer, look_again
from sspsam.looks.tiles import needs_tiles, search_tiles
from sspsam.results import Decoded, ImageEmbedding, Question, Referent

KEPT_VIEW_BYTES = 256 * 2**20
"""Limit of the cached embeddings of views and tiles."""

ViewKey = tuple[Tensor, str, Window]
"""Embedding of the whole picture, kind of part, and its place."""


def look_further(
    referents: Sequence[Referent], decoded: Sequence[Decoded], viewer: Viewer, rules: LookRules
) -> list[Referent]:
    """Improves the first answers about a picture.

    Args:
        referents: First answers.
        decoded: The same, as decoded.
        viewer: Runs the networks on parts of the picture.
        rules: `off` returns the first answers.
    """
    if rules.mode == "off":
        return list(referents)
    found = [
        search_tiles(referent, answer, viewer, rules) if needs_tiles(referent, answer) else referent
        for referent, answer in zip(referents, decoded, strict=True)
    ]
    return look_again(found, [answer.question for answer in decoded], viewer, rules)


class Encoders(Protocol):
    """The interface of `sspsam.Predictor` that `PictureViewer` uses."""

    def embed(self, image: UInt8Image) -> ImageEmbedding: ...

    def embed_views(self, image: UInt8Image, windows: Sequence[Window]) -> list[ImageEmbedding]: ...


class ViewCache:
    """Bounded LRU cache of embeddings of parts of pictures. Not thread-safe."""

    def __init__(self, max_bytes: int = KEPT_VIEW_BYTES) -> None:
        self._items: LRUCache[ViewKey, ImageEmbedding] = LRUCache(max_bytes, lambda view: view.size_bytes)

    def embed(
        self,
        picture: ImageEmbedding,
        kind: str,
        windows: Sequence[Window],
        encode: Callable[[Sequence[Window]], Sequence[ImageEmbedding]],
    ) -> list[ImageEmbedding]:
        """The embeddings of windows of a picture; those that are not cached are encoded together."""
        keys = [(picture.image_embedding, kind, window) for window in windows]
        found = {key: view for key in keys if (view := self._items.get(key)) is not None}
        missing = [key for key in dict.fromkeys(keys) if key not in found]
        if missing:
            for key, view in zip(missing, encode([window for _, _, window in missing]), strict=True):
                found[key] = view
                with suppress(ValueError):  # larger than the whole cache
                    self._items[key] = view
        return [found[key] for key in keys]


class PictureViewer:
    """A `Viewer` of a picture in memory.

    Args:
        encoders: The predictor.
        image: (H, W, 3) uint8.
        embedding: The picture's, which identifies it in the cache.
        cache: Of views and tiles.
        ask: Decodes questions, by the model of the first answers.
    """

    def __init__(
        self,
        encoders: Encoders,
        image: UInt8Image,
        embedding: ImageEmbedding,
        cache: ViewCache,
        ask: Callable[[Sequence[Question]], Sequence[Decoded]],
    ) -> None:
        self._encoders = encoders
        self._image = image
        self._embedding = embedding
        self._cache = cache
        self._ask = ask

    def embed_views(self, windows: Sequence[Window]) -> list[ImageEmbedding]:
        return self._cache.embed(
            self._embedding, "view", windows, lambda some: self._encoders.embed_views(self._image, some)
        )

    def embed_tiles(self, windows: Sequence[Window]) -> list[ImageEmbedding]:
        return self._cache.embed(self._embedding, "tile", windows, self._encode_tiles)

    def _encode_tiles(self, windows: Sequence[Window]) -> list[ImageEmbedding]:
        hw = self._image.shape[0], self._image.shape[1]
        return [self._encoders.embed(self._image[window.visible(hw)]) for window in windows]

    def decode(self, questions: Sequence[Question]) -> Sequence[Decoded]:
        return self._ask(questions)
