"""Further looks at a picture in the lanes of a shared model, behind everybody's first answers.

Views and tiles are encoded in the lane of images, a few at a time, and their questions are asked in the lane
of phrases, both only while nothing urgent waits there. A request waits for them for a limited time; what is
not ready by then is left out. What has been encoded is in the cache for the next request.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from concurrent.futures import TimeoutError as FutureTimeoutError
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from backend.errors import TooLateError
from backend.serving.batch_queue import BatchQueue, Caller
from backend.serving.embedding_store import EmbeddingCache

if TYPE_CHECKING:
    from sspsam import SSPSAM, ImageEmbedding
    from sspsam.images.views import Window
    from sspsam.results import Decoded, Question

UInt8Image = npt.NDArray[np.uint8]

VIEW_BYTES = 128 * 2**20
"""Limit of the cached embeddings of views and tiles."""
LOOK_WAIT_S = 10.0
"""Time that a request waits for further looks, at most; never more than half of what its caller has left."""
TOGETHER = 4
"""Views or tiles that are encoded before the lane looks for urgent images again."""

logger = logging.getLogger(__name__)

EncodeParts = Callable[[UInt8Image, Sequence[Any]], Sequence[Any]]


class ViewEncoders(Protocol):
    """The interface of `sspsam.Predictor` that viewers use."""

    def embed(self, image: UInt8Image) -> ImageEmbedding: ...

    def embed_views(self, image: UInt8Image, windows: Sequence[Window]) -> Sequence[ImageEmbedding]: ...


class LaneViewer:
    """A `sspsam.looks.second_look.Viewer` of one picture, for one request.

    Args:
        encoders: Called in the lane of images only.
        images: Lane of functions that encode.
        phrases: Lane of questions, each with its model.
        views: Cache of views and tiles.
        image_key: Identifies the picture's content.
        read_image: Returns its pixels; called at most once, in the lane of images.
        model: Answers the questions.
        caller: The requester.
    """

    def __init__(
        self,
        encoders: ViewEncoders,
        images: BatchQueue[Any, Any],
        phrases: BatchQueue[tuple[SSPSAM | None, Question], Decoded],
        views: EmbeddingCache[ImageEmbedding],
        image_key: str,
        read_image: Callable[[], UInt8Image],
        model: SSPSAM | None,
        caller: Caller,
    ) -> None:
        self._encoders = encoders
        self._images = images
        self._phrases = phrases
        self._views = views
        self._image_key = image_key
        self._read_image = read_image
        self._model = model
        self._caller = caller
        self.asked: list[Future[Decoded]] = []
        """All questions that were asked: the model must stay in memory until they are answered."""

    def embed_views(self, windows: Sequence[Window]) -> list[ImageEmbedding | None]:
        return self._embed("view", windows, lambda image, some: self._encoders.embed_views(image, some))

    def embed_tiles(self, windows: Sequence[Window]) -> list[ImageEmbedding | None]:
        return self._embed("tile", windows, self._encode_tiles)

    def _encode_tiles(self, image: UInt8Image, windows: Sequence[Window]) -> list[ImageEmbedding]:
        hw = image.shape[0], image.shape[1]
        return [self._encoders.embed(image[window.visible(hw)]) for window in windows]

    def decode(self, questions: Sequence[Question]) -> list[Decoded]:
        """Answers to questions about views and tiles.

        Raises:
            TooLateError: not in time.
        """
        futures = self._phrases.submit(
            [(self._model, question) for question in questions], self._caller, urgent=False
        )
        self.asked += futures
        try:
            return [future.result(self._left_s) for future in futures]
        except (FutureTimeoutError, CancelledError) as error:
            for future in futures:
                future.cancel()
            raise TooLateError("the model had no time for a further look") from error

    @cached_property
    def _until_s(self) -> float:
        """By `time.monotonic`; counted from the first use."""
        return time.monotonic() + min(LOOK_WAIT_S, self._caller.left_s / 2)

    @property
    def _left_s(self) -> float:
        return max(self._until_s - time.monotonic(), 0.0)

    @cached_property
    def _image(self) -> UInt8Image:
        """Read by the lane of images alone, which has one thread."""
        return self._read_image()

    def _embed(
        self, kind: str, windows: Sequence[Window], encode: EncodeParts
    ) -> list[ImageEmbedding | None]:
        keys = {
            window: f"{self._image_key}/{kind}/{window.left},{window.top},{window.side}" for window in windows
        }
        missing = [window for window, key in keys.items() if self._views.get(key) is None]
        works = [
            partial(
                self._encode, {window: keys[window] for window in missing[first : first + TOGETHER]}, encode
            )
            for first in range(0, len(missing), TOGETHER)
        ]
        found: dict[Window, ImageEmbedding] = {}
        for future in self._images.submit(works, self._caller, urgent=False):
            try:
                found |= future.result(self._left_s)
            except (FutureTimeoutError, CancelledError):
                future.cancel()
            except Exception:  # whatever the error, the first answers stand
                logger.exception("could not encode parts of image %s", self._image_key)
        return [found.get(window) or self._views.get(keys[window]) for window in windows]

    def _encode(self, keys: dict[Window, str], encode: EncodeParts) -> dict[Window, ImageEmbedding]:
        """Work of the lane of images."""
        embeddings = dict(zip(keys, encode(self._image, list(keys)), strict=True))
        for window, embedding in embeddings.items():
            self._views.put(keys[window], embedding)
        return embeddings
