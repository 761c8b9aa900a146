"""One model, many callers: who gets it when, and what they wait for.

Images are encoded in one lane and phrases answered in another (`backend.lanes`), those of several callers in
one forward pass; masks are brought to the size of their picture in the callers' own threads. Weights are
swapped between two passes, and each answer comes from one version.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from threading import Lock
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import numpy.typing as npt

from backend.embeddings import EmbeddingCache, Source
from backend.errors import BackendError, ModelBusyError
from backend.lanes import Caller, Entrance, Lane, Result, Work, stop_lanes, wait_for
from backend.metrics import Metrics

if TYPE_CHECKING:
    import torch

    from sspsam import ImageEmbedding, Referent
    from sspsam.answers import Decoded, Question
    from sspsam.masks import BoolMask

UInt8Image = npt.NDArray[np.uint8]
ReadImage = Callable[[], UInt8Image]
FindImage = Callable[[], tuple[str, ReadImage]]
"""Gives a picture's key, and what reads its pixels; may fetch it first."""

AHEAD = 16
"""Pictures that may wait to be embedded before anybody asks."""
MAX_EDGES = 80_000
"""Along the rows of all masks of an answer. Each is a token of some 3 numbers in Label Studio's RLE, 12 bytes
of JSON at most: so an answer stays below 1 MB."""
SAMPLED_ROWS = 512
"""Of a mask, along which edges are counted: two or more for each row of the logits that it is made of."""
MAX_SPECK = 0.01
"""Parts and holes of a mask that are larger than this share of the picture are never left out."""
NOBODY = Caller()
PREFETCH = Caller("prefetch")

logger = logging.getLogger(__name__)


class SwappablePredictor(Protocol):
    """What the engine needs of `sspsam.Predictor`."""

    def embed(self, image: UInt8Image) -> ImageEmbedding: ...

    def decode(self, questions: Sequence[Question]) -> list[Decoded]: ...

    def finish(self, decoded: Decoded, min_speck: float = 0.0) -> Referent: ...

    def from_tensors(self, tensors: Mapping[str, torch.Tensor]) -> ImageEmbedding: ...

    @property
    def encoders_digest(self) -> str: ...

    def load_trainable(self, state: Mapping[str, torch.Tensor]) -> None: ...

    def trainable_state(self) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Clicks:
    """What a person pointed at, in fractions of the picture's width and height."""

    points: tuple[tuple[float, float, bool], ...] = ()
    """x, y, and whether it is part of the object."""
    box_xyxy: tuple[float, float, float, float] | None = None

    def in_pixels(self, original_hw: tuple[int, int]) -> dict[str, npt.NDArray[np.float32] | None]:
        """`points` and `boxes`, as `sspsam.answers.Question` has them."""
        height, width = original_hw
        points = np.array([(x * width, y * height, part) for x, y, part in self.points], np.float32)
        box = None
        if self.box_xyxy is not None:
            box = np.array(self.box_xyxy, np.float32) * (width, height, width, height)
        return {"points": points if self.points else None, "boxes": box}


@dataclass(frozen=True)
class Asked:
    """A phrase, what was pointed at, or both."""

    phrase: str
    clicks: Clicks | None = None

    def about(self, embedding: ImageEmbedding) -> Question:
        from sspsam.answers import Question

        where = self.clicks.in_pixels(embedding.original_hw) if self.clicks is not None else {}
        return Question(embedding, self.phrase, **where)


@dataclass(frozen=True)
class SharingOptions:
    """How requests share the model."""

    max_batch: int = 16
    """Phrases in one forward pass; 1 answers each by itself."""
    gather_s: float = 0.003
    """For how long the first phrase of a pass waits for others."""
    queue_limit: int = 64
    """Requests at the model or waiting for it; further ones are told that it is busy."""
    min_speck: float = 0.0
    """Parts and holes of masks that are smaller than this share of the picture are left out; 0 sends all."""


class SharedModel:
    """A predictor that callers share. Making one starts nothing; `start` takes the predictor.

    Args:
        embeddings: In memory shared with nobody else, on disk with everybody.
        metrics: Counts batches, refusals and where embeddings came from.
        options: How callers share.
    """

    def __init__(
        self, embeddings: EmbeddingCache[ImageEmbedding], metrics: Metrics, options: SharingOptions
    ) -> None:
        self.embeddings = embeddings
        self._metrics = metrics
        self._options = options
        self._entrance = Entrance(options.queue_limit)
        self._images = self._make_lane("images", self._encode)
        self._phrases = self._make_lane("phrases", self._decode, options.max_batch, options.gather_s)
        self._ahead = self._make_lane("ahead", self._embed_ahead)
        self._lanes: dict[str, Lane[Any, Any]] = {
            "images": self._images,
            "phrases": self._phrases,
            "ahead": self._ahead,
        }
        self._on_image_stream: Callable[[], AbstractContextManager[None]] = nullcontext
        self._predictor: SwappablePredictor | None = None
        self._version = ""
        self._weights_lock = Lock()

    def start(self, predictor: SwappablePredictor, version: str) -> None:
        """Begins to answer.

        Args:
            predictor: From now on used by nobody else.
            version: Whose weights it has.
        """
        self.embeddings.open_files(predictor.encoders_digest, predictor.from_tensors)
        self._on_image_stream = _own_stream(predictor)
        self._predictor, self._version = predictor, version
        for lane in self._lanes.values():
            lane.start()

    def stop(self) -> None:
        """Ends the threads, after what they are at; who still waits is told so."""
        stop_lanes(self._lanes.values())

    def swap(self, state: Mapping[str, torch.Tensor], version: str) -> None:
        """Puts other weights in, between two passes.

        Raises:
            CheckpointError: they do not fit; nothing has changed.
        """
        with self._weights_lock:
            self._working.load_trainable(state)
            self._version = version

    def waiting(self) -> dict[str, int]:
        """Lane -> how much waits in it."""
        return {name: len(lane) for name, lane in self._lanes.items()}

    def ask(
        self,
        image_key: str,
        read_image: ReadImage,
        asked: Sequence[Asked],
        caller: Caller,
    ) -> tuple[str, list[Referent]]:
        """Answers everything that is asked about one picture.

        Args:
            image_key: Names the picture's content, such as its sha256.
            read_image: Gives the pixels; called, in another thread, only when the embedding is not at hand.
            asked: At least one question.
            caller: For whom.

        Returns:
            The version that answered, and its answers, in order.

        Raises:
            ModelBusyError: too many wait already.
            TooLateError: its turn came after the caller had stopped waiting.
        """
        with self._entered(caller):
            embedding, source = self.embedding(image_key, read_image, caller)
            self._metrics.embeddings.labels(source).inc()
            questions = [one.about(embedding) for one in asked]
            while True:  # once, unless weights were swapped between two of the phrases
                futures = self._phrases.submit(questions, caller)
                answers = [wait_for(future, caller) for future in futures]
                version = answers[0][0]
                if all(one == version for one, _ in answers):
                    break
            edges = MAX_EDGES // len(answers)
            return version, [self._finish(decoded, edges) for _, decoded in answers]

    def _finish(self, decoded: Decoded, max_edges: int) -> Referent:
        """Leaves specks out; where the mask is still too ragged to be sent, larger ones, too."""
        min_speck = self._options.min_speck
        referent = self._working.finish(decoded, min_speck)
        while 0 < min_speck < MAX_SPECK and _edges(referent.mask) > max_edges:
            min_speck *= 4
            referent = self._working.finish(decoded, min_speck)
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
    ) -> tuple[ImageEmbedding, Source]:
        """The embedding of a picture, and where it was.

        Raises:
            TooLateError: as for `ask`.
        """
        known = self.embeddings.find(image_key)
        if known is not None:
            return known
        [future] = self._images.submit([(image_key, read_image)], caller)
        return wait_for(future, caller)

    def _encode(self, pictures: Sequence[tuple[str, ReadImage]]) -> list[tuple[ImageEmbedding, Source]]:
        """The work of the lane of images."""
        found: list[tuple[ImageEmbedding, Source]] = []
        for image_key, read_image in pictures:
            known = self.embeddings.get(image_key)  # somebody else may have waited for it, too
            if known is not None:
                found.append((known, "memory"))
                continue
            image = read_image()
            with self._on_image_stream():
                embedding = self._working.embed(image)
            self.embeddings.put(image_key, embedding)
            found.append((embedding, "encoder"))
        return found

    def _decode(self, questions: Sequence[Question]) -> list[tuple[str, Decoded]]:
        """The work of the lane of phrases."""
        with self._weights_lock:
            return [(self._version, decoded) for decoded in self._working.decode(questions)]

    def _embed_ahead(self, pictures: Sequence[FindImage]) -> list[None]:
        """The work of the lane of pictures that nobody waits for yet."""
        for find_image in pictures:
            try:
                if self.embedding(*find_image(), PREFETCH)[1] == "encoder":
                    self._metrics.prefetched.inc()
            except BackendError as error:
                logger.info("a picture was not embedded ahead: %s", error)
        return [None] * len(pictures)

    def prefetch(self, find_image: FindImage) -> None:
        """Embeds a picture in the background, when it is the turn of pictures that nobody waits for.

        Does nothing while AHEAD of them wait.
        """
        if len(self._ahead) < AHEAD:
            self._ahead.submit([find_image], PREFETCH)

    @property
    def _working(self) -> SwappablePredictor:
        assert self._predictor is not None, "start comes first"
        return self._predictor

    def _make_lane(
        self,
        name: str,
        perform: Callable[[Sequence[Work]], Sequence[Result]],
        max_batch: int = 1,
        gather_s: float = 0.0,
    ) -> Lane[Work, Result]:
        def note(size: int, waited_s: float) -> None:
            self._metrics.waited.labels(name).observe(waited_s)
            if name == "phrases":
                self._metrics.batch.observe(size)

        return Lane(name, perform, max_batch, gather_s, note, self._metrics.refused.labels("late").inc)


def _edges(mask: BoolMask) -> int:
    """About how often a mask begins or ends along its rows: not all of a large one's are looked at."""
    step = max(1, len(mask) // SAMPLED_ROWS)
    rows = mask[::step]
    return step * int(np.count_nonzero(rows[:, 1:] != rows[:, :-1]))


def _own_stream(predictor: SwappablePredictor) -> Callable[[], AbstractContextManager[None]]:
    """Images are encoded beside the phrases, on a GPU too."""
    from sspsam.streams import own_stream

    device = getattr(predictor, "device", None)
    return nullcontext if device is None else own_stream(device)
