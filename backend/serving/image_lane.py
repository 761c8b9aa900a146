"""Images on their way to embeddings: read and prepared in some threads, encoded together in one.

The encoder's thread never waits for a file, a JPEG decoder or a disk. Images are read ahead of it, so many
that a batch is ready whenever it is; more of them wait unread. On a GPU, a batch fills the device. On a CPU
one image already does, and further ones in a batch would only make the first wait.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Future
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from threading import Lock, Semaphore
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from backend.serving.batch_queue import BatchQueue, Caller, wait_for
from backend.serving.embedding_store import EmbeddingCache, EmbeddingOrigin

if TYPE_CHECKING:
    from sspsam import ImageEmbedding
    from sspsam.encoding import PreparedImage

UInt8Image = npt.NDArray[np.uint8]
ReadImage = Callable[[], UInt8Image]

LOADING_THREADS = 4
"""Threads that read and prepare images."""
MAX_IMAGES = 8
"""Images of a batch on a GPU."""
AHEAD_BATCHES = 2
"""Batches of images that are read at most, and not yet encoded."""

Found = tuple["Future[ImageEmbedding]", EmbeddingOrigin]


class ImageEncoders(Protocol):
    """The interface of `sspsam.Predictor` that the lane uses."""

    def prepare(self, image: UInt8Image) -> PreparedImage: ...

    def encode(self, images: Sequence[PreparedImage]) -> Sequence[ImageEmbedding]: ...


@dataclass(frozen=True)
class _Wanted:
    """An image that is to be read."""

    key: str
    read: ReadImage
    caller: Caller


@dataclass(frozen=True, eq=False)
class _Read:
    """An image that is to be encoded."""

    key: str
    image: PreparedImage


class ImageLane:
    """Embeds images for many callers, each image once. The constructor starts nothing.

    Args:
        embeddings: Cache of embeddings.
        make_lane: `BatchQueue`, but for what all lanes share.
    """

    def __init__(
        self, embeddings: EmbeddingCache[ImageEmbedding], make_lane: Callable[..., BatchQueue[Any, Any]]
    ) -> None:
        self._embeddings = embeddings
        self._room = Semaphore(0)
        self._coming: dict[str, Future[ImageEmbedding]] = {}
        self._lock = Lock()
        self._encoders: ImageEncoders | None = None
        self._on_stream: Callable[[], AbstractContextManager[None]] = nullcontext
        self.loading: BatchQueue[_Wanted, Found] = make_lane(
            "loading", self._load, threads=LOADING_THREADS, room=self._room
        )
        self.encoding: BatchQueue[_Read | Callable[[], Any], Any] = make_lane("images", self._run)
        """Runs functions, too: for parts of images."""

    def start(self, encoders: ImageEncoders) -> None:
        """Starts the threads.

        Args:
            encoders: `encode` is called by one thread at a time.
        """
        device = getattr(encoders, "device", None)
        together = 1 if device is not None and device.type == "cpu" else MAX_IMAGES
        if device is not None:
            from sspsam.runtime.streams import own_stream

            self._on_stream = own_stream(device)
        self._encoders = encoders
        self._room.release(AHEAD_BATCHES * together)
        self.encoding.start(together)
        self.loading.start()

    def embedding(self, key: str, read: ReadImage, caller: Caller) -> tuple[ImageEmbedding, EmbeddingOrigin]:
        """The embedding of an image, and its source; on the disk, too, when this returns.

        Args:
            key: Identifies the image's content.
            read: Returns its pixels; called in another thread, unless the embedding is there.
            caller: The requester.

        Raises:
            TooLateError: the caller timed out. An image that has been read by then is encoded all the same,
                for the next request.
        """
        known = self._embeddings.find(key)
        if known is not None:
            return known
        [future] = self.loading.submit([_Wanted(key, read, caller)], caller)
        coming, source = wait_for(future, caller)
        embedding = wait_for(coming, caller)
        if source == "encoder":
            self._embeddings.write(key, embedding)
        return embedding, source

    def _load(self, wanted: Sequence[_Wanted]) -> list[Found]:
        """Work of the threads that read: of one image, with room for it."""
        [one] = wanted
        with self._lock:
            known, coming = self._embeddings.get(one.key), self._coming.get(one.key)
            if known is None and coming is None:
                new = self._coming[one.key] = _running()
        if coming is None and known is not None:
            coming = _running()
            coming.set_result(known)
        if coming is not None:  # another caller's
            self._room.release()
            return [(coming, "memory")]
        try:
            read = _Read(one.key, self._working.prepare(one.read()))
        except BaseException as error:
            self._deliver(one.key, new, None, error)
            raise
        [encoded] = self.encoding.submit([read], replace(one.caller, until_s=float("inf")))
        encoded.add_done_callback(lambda done: self._deliver(one.key, new, done, None))
        return [(new, "encoder")]

    def _deliver(
        self,
        key: str,
        coming: Future[ImageEmbedding],
        done: Future[ImageEmbedding] | None,
        error: BaseException | None,
    ) -> None:
        """Passes an image's result on to all who wait for it, and makes room for the next."""
        with self._lock:
            del self._coming[key]
        self._room.release()
        if done is not None:
            error = CancelledError() if done.cancelled() else done.exception()
        if error is not None:
            coming.set_exception(error)
        elif done is not None:
            coming.set_result(done.result())

    def _run(self, works: Sequence[_Read | Callable[[], Any]]) -> list[Any]:
        """Work of the encoder's thread: images together, and functions."""
        images = [work for work in works if isinstance(work, _Read)]
        with self._on_stream():
            embeddings = self._working.encode([work.image for work in images]) if images else []
            found = dict(zip(images, map(self._embeddings.as_read, embeddings), strict=True))
            results = [found[work] if isinstance(work, _Read) else work() for work in works]
        for image, embedding in found.items():
            self._embeddings.remember(image.key, embedding)
        return results

    @property
    def _working(self) -> ImageEncoders:
        assert self._encoders is not None, "call start first"
        return self._encoders


def _running() -> Future[Any]:
    """A result that several wait for: none of them cancels it for the others."""
    future: Future[Any] = Future()
    future.set_running_or_notify_cancel()
    return future
