"""Scheduling of one model for many callers.

Images are read and encoded in lanes of their own (`backend.serving.image_lane`), and phrases answered in
another (`backend.serving.batch_queue`), with those of several callers in one forward pass; further looks at a
picture wait behind them (`backend.serving.lane_viewer`). Masks are resized to their image in the callers'
threads. A pass may hold phrases of several lines of versions, as many as possible of each: every row names
its model, and rows of one model are cheaper together. An answer comes from one version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from backend.errors import BackendError, ModelBusyError, TooLateError
from backend.metrics import Metrics
from backend.serving.batch_queue import (
    AdmissionLimit,
    BatchQueue,
    Caller,
    Result,
    Work,
    stop_queues,
    wait_for,
    when_done,
)
from backend.serving.embedding_store import EmbeddingCache, EmbeddingOrigin
from backend.serving.image_lane import ImageLane
from backend.serving.lane_viewer import VIEW_BYTES, LaneViewer
from backend.serving.served_lines import ServedLines

if TYPE_CHECKING:
    import torch

    from sspsam import SSPSAM, ImageEmbedding, Instance, Referent
    from sspsam.encoding import PreparedImage
    from sspsam.images.masks import BoolMask
    from sspsam.images.views import Window
    from sspsam.looks.second_look import Viewer
    from sspsam.results import Decoded, Question

UInt8Image = npt.NDArray[np.uint8]
ReadImage = Callable[[], UInt8Image]
FindImage = Callable[[], tuple[str, ReadImage]]
"""Returns an image's key and the function that reads its pixels; may download it first."""

AHEAD = 16
"""Maximum number of images waiting to be embedded in advance."""
MAX_EDGES = 80_000
"""Limit of edges along the rows of all masks of an answer. Each is a token of about 3 numbers in Label
Studio's RLE, at most 12 bytes of JSON: an answer stays below 1 MB.
"""
SAMPLED_ROWS = 512
"""Rows of a mask on which edges are counted: at least two per row of the mask logits."""
MAX_SPECK = 0.01
"""Parts and holes above this share of the image are never removed."""
ANONYMOUS = Caller()
PREFETCH = Caller("prefetch")

logger = logging.getLogger(__name__)


class SwappablePredictor(Protocol):
    """The interface of `sspsam.Predictor` that the engine uses."""

    def embed(self, image: UInt8Image) -> ImageEmbedding: ...

    def prepare(self, image: UInt8Image) -> PreparedImage: ...

    def encode(self, images: Sequence[PreparedImage]) -> Sequence[ImageEmbedding]: ...

    def decode(
        self, questions: Sequence[Question], models: Sequence[SSPSAM | None] | None = None
    ) -> list[Decoded]: ...

    def finish(
        self, decoded: Decoded, min_speck: float = 0.0, min_presence: float | None = None
    ) -> Referent: ...

    def embed_views(self, image: UInt8Image, windows: Sequence[Window]) -> Sequence[ImageEmbedding]: ...

    def look_further(
        self, referents: Sequence[Referent], decoded: Sequence[Decoded], viewer: Viewer
    ) -> Sequence[Referent]: ...

    def split(
        self,
        embedding: ImageEmbedding,
        referent: Referent,
        decode: Callable[[Sequence[Question]], Sequence[Decoded]],
    ) -> Sequence[Instance]: ...

    def from_tensors(self, tensors: Mapping[str, torch.Tensor]) -> ImageEmbedding: ...

    @property
    def encoders_digest(self) -> str: ...

    def variant(self, state: Mapping[str, torch.Tensor]) -> SSPSAM: ...


@dataclass(frozen=True)
class Clicks:
    """A user's clicks and boxes, in fractions of the image's width and height."""

    points: tuple[tuple[float, float, bool], ...] = ()
    """x, y, and whether it is part of the object."""
    box_xyxy: tuple[float, float, float, float] | None = None
    includes_points: bool = False
    """The mask has to include the positive points, however unlikely they are."""

    def in_pixels(self, original_hw: tuple[int, int]) -> dict[str, Any]:
        """Fields of `sspsam.results.Question`."""
        height, width = original_hw
        points = np.array([(x * width, y * height, part) for x, y, part in self.points], np.float32)
        box = None
        if self.box_xyxy is not None:
            box = np.array(self.box_xyxy, np.float32) * (width, height, width, height)
        given = points if self.points else None
        return {"points": given, "boxes": box, "includes_points": self.includes_points}


@dataclass(frozen=True)
class SharingOptions:
    """Scheduling options."""

    max_batch: int = 16
    """Maximum number of phrases in one forward pass; 1 disables batching."""
    gather_s: float = 0.003
    """How long the first phrase of a batch waits for others."""
    queue_limit: int = 64
    """Maximum number of requests at the model or waiting for it; further ones are refused as busy."""
    min_speck: float = 0.0
    """Parts and holes of masks below this share of the image are removed; 0 keeps all."""


class SharedModel:
    """A predictor shared by callers. The constructor starts nothing; `start` takes the predictor.

    Args:
        embeddings: Cache of embeddings; its disk part is shared with other processes.
        lines: The versions that answer.
        metrics: Counts batches, refusals and sources of embeddings.
        options: Scheduling options.
    """

    def __init__(
        self,
        embeddings: EmbeddingCache[ImageEmbedding],
        lines: ServedLines,
        metrics: Metrics,
        options: SharingOptions,
    ) -> None:
        self.embeddings = embeddings
        self._lines = lines
        self._metrics = metrics
        self._options = options
        self._entrance = AdmissionLimit(options.queue_limit)
        self._images = ImageLane(embeddings, self._make_lane)
        self._views: EmbeddingCache[ImageEmbedding] = EmbeddingCache(VIEW_BYTES)
        self._phrases = self._make_lane(
            "phrases", self._decode, options.max_batch, options.gather_s, lambda asked: id(asked[0])
        )
        self._ahead = self._make_lane("ahead", self._embed_ahead)
        self._lanes: dict[str, BatchQueue[Any, Any]] = {
            "loading": self._images.loading,
            "images": self._images.encoding,
            "phrases": self._phrases,
            "ahead": self._ahead,
        }
        self._predictor: SwappablePredictor | None = None

    def start(self, predictor: SwappablePredictor) -> None:
        """Starts answering.

        Args:
            predictor: Used exclusively from now on, but for `variant`.
        """
        self.embeddings.open_files(predictor.encoders_digest, predictor.from_tensors)
        self._predictor = predictor
        self._images.start(predictor)
        for lane in self._lanes.values():
            lane.start()

    def stop(self) -> None:
        """Stops the threads after their current work; waiting requests get an error."""
        stop_queues(self._lanes.values())

    def waiting(self) -> dict[str, int]:
        """Lane -> number of waiting items."""
        return {name: len(lane) for name, lane in self._lanes.items()}

    def ask(
        self,
        image_key: str,
        read_image: ReadImage,
        phrases: Sequence[str],
        clicks: Clicks,
        caller: Caller,
        split: bool = False,
        min_presence: float | None = None,
    ) -> tuple[str, list[Referent]]:
        """Answers all questions about one image.

        Args:
            image_key: Identifies the image's content, such as its sha256.
            read_image: Returns the pixels; called in another thread, only if the embedding is not cached.
            phrases: At least one; an empty phrase asks for the object that is clicked.
            clicks: For every phrase; `Clicks()` for none.
            caller: Identifies the requester, for fairness; its project's line of versions answers.
            split: Split each mask into its objects.
            min_presence: As for `sspsam.Predictor.finish`.

        Returns:
            The version that answered, and its answers, in order.

        Raises:
            ModelBusyError: the queue is full.
            TooLateError: the caller timed out before its turn.
        """
        from sspsam.results import Question

        with self._entered(caller):
            embedding, source = self.embedding(image_key, read_image, caller)
            self._metrics.embeddings.labels(source).inc()
            where = clicks.in_pixels(embedding.original_hw)
            questions = [Question(embedding, phrase, **where) for phrase in phrases]
            used = self._lines.use(caller.project, caller)
            viewer = LaneViewer(
                self._working, self._images.encoding, self._phrases, self._views,
                image_key, read_image, used.model, caller,
            )  # fmt: skip
            futures = self._phrases.submit([(used.model, question) for question in questions], caller)
            try:
                referents = self._finished(
                    [wait_for(future, caller) for future in futures], viewer, min_presence
                )
                if split:
                    referents = [
                        self._split(embedding, referent, caller, used.model, futures)
                        for referent in referents
                    ]
            finally:
                when_done([*futures, *viewer.asked], used.release)
            return used.version, referents

    def _finished(
        self, answers: Sequence[Decoded], viewer: LaneViewer, min_presence: float | None
    ) -> list[Referent]:
        """The masks of answers, after further looks at the picture."""
        edges = MAX_EDGES // len(answers)
        first = [self._finish(decoded, edges, min_presence) for decoded in answers]
        try:
            found = self._working.look_further(first, answers, viewer)
        except TooLateError:
            return first
        except Exception:  # whatever the error, the first answers stand
            logger.exception("a further look failed")
            return first
        return [
            one if other is one or _edges(other.mask) > edges else other
            for one, other in zip(first, found, strict=True)
        ]

    def _split(
        self,
        embedding: ImageEmbedding,
        referent: Referent,
        caller: Caller,
        model: SSPSAM | None,
        asked: list[Future[Decoded]],
    ) -> Referent:
        """Splits a mask into its objects. Phrases are asked of the version that answered, points of the base
        version: what an object is does not depend on what a project's version has learned of its phrases.

        Args:
            embedding: The image's.
            referent: The answer.
            caller: Identifies the requester.
            model: Of the answer.
            asked: Gets the questions that are asked here.
        """

        def decode(questions: Sequence[Question]) -> list[Decoded]:
            futures = self._phrases.submit(
                [(model if question.phrase else None, question) for question in questions], caller
            )
            asked.extend(futures)
            return [wait_for(future, caller) for future in futures]

        if referent.no_target:
            return referent
        instances = self._working.split(embedding, referent, decode)
        return replace(referent, find_instances=lambda: instances)

    def _finish(self, decoded: Decoded, max_edges: int, min_presence: float | None) -> Referent:
        """Removes small regions; if the mask is still too ragged to be sent, larger ones, too."""
        min_speck = self._options.min_speck
        referent = self._working.finish(decoded, min_speck, min_presence)
        while 0 < min_speck < MAX_SPECK and _edges(referent.mask) > max_edges:
            min_speck = min(4 * min_speck, MAX_SPECK)
            referent = self._working.finish(decoded, min_speck, min_presence)
        return referent

    @contextmanager
    def _entered(self, caller: Caller) -> Iterator[None]:
        try:
            with self._entrance.enter(caller):
                yield
        except ModelBusyError:
            self._metrics.refused.labels("busy").inc()
            raise

    def embedding(
        self, image_key: str, read_image: ReadImage, caller: Caller
    ) -> tuple[ImageEmbedding, EmbeddingOrigin]:
        """The embedding of an image, and its source.

        Raises:
            TooLateError: as for `ask`.
        """
        return self._images.embedding(image_key, read_image, caller)

    def _decode(self, asked: Sequence[tuple[SSPSAM | None, Question]]) -> list[Decoded]:
        """Work of the phrase lane."""
        models, questions = zip(*asked, strict=True)
        return self._working.decode(questions, models)

    def _embed_ahead(self, pictures: Sequence[FindImage]) -> list[None]:
        """Work of the lane for images embedded in advance."""
        for find_image in pictures:
            try:
                if self.embedding(*find_image(), PREFETCH)[1] == "encoder":
                    self._metrics.prefetched.inc()
            except BackendError as error:
                logger.info("could not embed an image in advance: %s", error)
        return [None] * len(pictures)

    def prefetch(self, find_image: FindImage) -> None:
        """Queues an image for embedding in the background.

        Does nothing if AHEAD images are waiting already.
        """
        if len(self._ahead) < AHEAD:
            self._ahead.submit([find_image], PREFETCH)

    @property
    def _working(self) -> SwappablePredictor:
        assert self._predictor is not None, "call start first"
        return self._predictor

    def _make_lane(
        self,
        name: str,
        perform: Callable[[Sequence[Work]], Sequence[Result]],
        max_batch: int = 1,
        gather_s: float = 0.0,
        kind: Callable[[Work], Hashable] = lambda work: None,
        **threads: Any,
    ) -> BatchQueue[Work, Result]:
        def note(size: int, waited_s: float) -> None:
            self._metrics.waited.labels(name).observe(waited_s)
            if name == "phrases":
                self._metrics.batch.observe(size)

        late = self._metrics.refused.labels("late").inc
        return BatchQueue(name, perform, max_batch, gather_s, note, late, kind, **threads)


def _edges(mask: BoolMask) -> int:
    """Estimates the number of edges along a mask's rows; large masks are sampled."""
    step = max(1, len(mask) // SAMPLED_ROWS)
    rows = mask[::step]
    return step * int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))
