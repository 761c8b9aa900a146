"""The model in service: one predictor, the embeddings of pictures, and the version whose weights it has.

Everything that runs the model goes through `Engine.predict`, one caller at a time. Weights are swapped
between two such calls, so that each answer comes from one version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Literal, Protocol

import numpy as np
import numpy.typing as npt
from redis import Redis

from backend.embeddings import EmbeddingCache
from backend.errors import ModelUnavailableError, PhraseRefusedError
from sspsam.versions import VERSIONS_CHANNEL, VersionError, VersionStore

if TYPE_CHECKING:
    import torch

    from sspsam import ImageEmbedding, Referent

UInt8Image = npt.NDArray[np.uint8]
State = Literal["loading", "ready", "failed"]

LOAD_WAIT_S = 60.0
"""How long a request waits for a model that is still loading; Label Studio waits 100 s."""
POLL_S = 1.0
"""How often the version store is read, in case a message was lost."""
_MESSAGE_WAIT_S = 0.1  # how long `stop` may have to wait

logger = logging.getLogger(__name__)


class SwappablePredictor(Protocol):
    """What the engine needs of `sspsam.Predictor`."""

    def embed(self, image: UInt8Image) -> ImageEmbedding: ...

    def predict(
        self,
        embedding: ImageEmbedding,
        phrases: Sequence[str],
        points: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
    ) -> list[Referent]: ...

    def segment(
        self,
        embedding: ImageEmbedding,
        points: npt.ArrayLike | None = None,
        boxes: npt.ArrayLike | None = None,
    ) -> Referent: ...

    def load_trainable(self, state: Mapping[str, torch.Tensor]) -> None: ...

    def trainable_state(self) -> dict[str, torch.Tensor]: ...


@dataclass(frozen=True)
class Answer:
    """What one version of the model says about one picture."""

    version: str
    referents: Sequence[Referent | PhraseRefusedError]
    """One for each phrase, in order."""


@dataclass(frozen=True)
class Clicks:
    """What a person pointed at, in fractions of the picture's width and height."""

    points: tuple[tuple[float, float, bool], ...] = ()
    """x, y, and whether it is part of the object."""
    box_xyxy: tuple[float, float, float, float] | None = None

    def in_pixels(self, original_hw: tuple[int, int]) -> dict[str, npt.NDArray[np.float32] | None]:
        """`points` and `boxes`, as `Predictor.predict` takes them."""
        height, width = original_hw
        points = np.array([(x * width, y * height, part) for x, y, part in self.points], np.float32)
        box = None
        if self.box_xyxy is not None:
            box = np.array(self.box_xyxy, np.float32) * (width, height, width, height)
        return {"points": points if self.points else None, "boxes": box}


@dataclass
class EngineStatus:
    """What the start page and the metrics show."""

    state: State
    version: str
    """Whose weights serve; while loading, whose weights will."""
    error: str = ""
    """Why there is no model."""
    device: str = ""
    """What the model runs on; empty while it is not known."""
    refused: dict[str, str] = field(default_factory=dict)
    """Versions that were to serve and could not be loaded -> why."""


class Engine:
    """Owns the predictor. Making one loads nothing; `start` does, in the background.

    Args:
        load_predictor: Loads the preset with its base weights; called once, in another thread.
        versions: Where fine-tuned weights come from, and which of them serve.
        embeddings: Shared with nobody else.
        redis: Where new versions are announced; without one, the store is read every poll_s.
        on_swap: Called with the version after each swap.
        poll_s: How often the store is read.
    """

    def __init__(
        self,
        load_predictor: Callable[[], SwappablePredictor],
        versions: VersionStore,
        embeddings: EmbeddingCache[ImageEmbedding],
        redis: Redis | None = None,
        on_swap: Callable[[str], None] = lambda version: None,
        poll_s: float = POLL_S,
    ) -> None:
        self._load_predictor = load_predictor
        self._versions = versions
        self.embeddings = embeddings
        self._redis = redis
        self._on_swap = on_swap
        self._poll_s = poll_s
        self._predictor: SwappablePredictor | None = None
        self._base_state: Mapping[str, torch.Tensor] = {}
        self._version = versions.base_version
        self._error = ""
        self._refused: dict[str, str] = {}
        self._loaded = Event()  # set when loading has ended, well or not
        self._stopped = Event()
        self._model_lock = Lock()
        self._swap_lock = Lock()
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Begins to load the model, and to follow the version store."""
        if not self._threads:
            self._threads = [Thread(target=self._run, name="engine", daemon=True)]
            self._threads[0].start()

    def stop(self) -> None:
        """Ends the thread; a running predict ends by itself."""
        self._stopped.set()
        for thread in self._threads:
            thread.join(timeout=2 * self._poll_s)

    def wait(self, timeout_s: float) -> bool:
        """Waits until loading has ended, well or not; returns whether it has."""
        return self._loaded.wait(timeout_s)

    @property
    def version(self) -> str:
        """The version that serves; before the model is loaded, the one that is to."""
        return self.status().version

    def status(self) -> EngineStatus:
        """Says how things are; never waits for the model."""
        if self._loaded.is_set():
            state: State = "failed" if self._predictor is None else "ready"
            device = str(getattr(self._predictor, "device", ""))
            return EngineStatus(state, self._version, self._error, device, dict(self._refused))
        return EngineStatus("loading", self._version if self._predictor else self._wanted())

    def predict(self, image_key: str, read_image: Callable[[], UInt8Image], phrases: Sequence[str]) -> Answer:
        """Segments what phrases refer to in a picture.

        Args:
            image_key: Names the picture's content, such as its sha256.
            read_image: Gives the pixels; called only when the embedding is not at hand.
            phrases: Referring expressions.

        Raises:
            ModelUnavailableError: no model, or it is still loading after LOAD_WAIT_S.
        """
        predictor = self._ready_predictor()
        refusals = {phrase: _refusal(phrase) for phrase in phrases}
        good = [phrase for phrase, refusal in refusals.items() if refusal is None]
        if not good:
            return Answer(self._version, [no for phrase in phrases if (no := refusals[phrase])])
        version, referents = self._ask(
            predictor, image_key, read_image, lambda embedding: predictor.predict(embedding, good)
        )
        found = dict(zip(good, referents, strict=True))
        return Answer(version, [refusals[phrase] or found[phrase] for phrase in phrases])

    def refine(
        self, image_key: str, read_image: Callable[[], UInt8Image], phrase: str, clicks: Clicks
    ) -> Answer:
        """Segments what a person points at: with a phrase, what it refers to; with an empty one, SAM alone.

        Args:
            image_key: As for `predict`.
            read_image: As for `predict`.
            phrase: May be empty.
            clicks: At least one.

        Raises:
            ModelUnavailableError: as for `predict`.
            PhraseRefusedError: the model cannot read the phrase.
        """
        predictor = self._ready_predictor()
        refusal = _refusal(phrase) if phrase else None
        if refusal is not None:
            raise refusal

        def use(embedding: ImageEmbedding) -> list[Referent]:
            where = clicks.in_pixels(embedding.original_hw)
            if phrase:
                return predictor.predict(embedding, [phrase], **where)
            return [predictor.segment(embedding, **where)]

        return Answer(*self._ask(predictor, image_key, read_image, use))

    def refresh(self) -> None:
        """Makes the store's current version serve, if it does not yet.

        A version that cannot be loaded is noted, and the one in service stays.
        """
        with self._swap_lock:
            wanted = self._wanted()
            if self._predictor is None or wanted == self._version or wanted in self._refused:
                return
            try:
                self._swap(self._predictor, wanted)
            except Exception as error:  # whatever it is, what serves must go on serving
                logger.exception("version %s cannot be loaded; %s serves on", wanted, self._version)
                self._refused[wanted] = str(error)

    def _run(self) -> None:
        try:
            self._load()
        except Exception as error:  # shown to whoever asks for a mask, and on the start page
            logger.exception("the model cannot be loaded")
            self._error = f"{type(error).__name__}: {error}"
            self._loaded.set()
            return
        self._loaded.set()
        self._follow_versions()

    def _load(self) -> None:
        since_s = time.monotonic()
        predictor = self._load_predictor()
        self._base_state = predictor.trainable_state()
        predictor.predict(predictor.embed(np.zeros((64, 64, 3), np.uint8)), ["warm up"])
        self._predictor = predictor
        self.refresh()
        logger.info("%s serves, loaded in %.1f s", self._version, time.monotonic() - since_s)

    def _swap(self, predictor: SwappablePredictor, version: str) -> None:
        state = self._versions.load(version) or self._base_state
        with self._model_lock:
            predictor.load_trainable(state)
            self._version = version
        logger.info("%s serves from now on", version)
        self._on_swap(version)

    def _wanted(self) -> str:
        try:
            return self._versions.current()
        except (VersionError, OSError):
            logger.exception("the version store cannot be read")
            return self._version

    def _follow_versions(self) -> None:
        reason = ""
        while not self._stopped.is_set():
            try:
                self._listen()
            except Exception as error:  # Redis away, or its connection broken: the store tells as well
                if reason != type(error).__name__:
                    reason = type(error).__name__
                    logger.warning("no news of versions from Redis (%s): reading the store", reason)
                self._stopped.wait(self._poll_s)
                self.refresh()

    def _listen(self) -> None:
        """Refreshes at each message about versions, and every poll_s; returns when stopped."""
        if self._redis is None:
            self._stopped.wait(self._poll_s)
            self.refresh()
            return
        with self._redis.pubsub(ignore_subscribe_messages=True) as messages:  # type: ignore[no-untyped-call]
            messages.subscribe(VERSIONS_CHANNEL)
            due_s = 0.0
            while not self._stopped.is_set():
                if messages.get_message(timeout=_MESSAGE_WAIT_S) is not None:
                    self._refused.clear()  # somebody promoted: what failed may be mended
                    due_s = 0.0
                if time.monotonic() >= due_s:
                    self.refresh()
                    due_s = time.monotonic() + self._poll_s

    def _ask(
        self,
        predictor: SwappablePredictor,
        image_key: str,
        read_image: Callable[[], UInt8Image],
        use: Callable[[ImageEmbedding], list[Referent]],
    ) -> tuple[str, list[Referent]]:
        """Runs the model; nothing else does. Pixels are read before the lock is taken."""
        image = read_image() if self.embeddings.get(image_key) is None else None
        with self._model_lock:
            embedding = self.embeddings.get(image_key)  # another request may have just made it
            if embedding is None:
                embedding = predictor.embed(read_image() if image is None else image)
                self.embeddings.put(image_key, embedding)
            return self._version, use(embedding)

    def _ready_predictor(self) -> SwappablePredictor:
        if not self._loaded.wait(LOAD_WAIT_S):
            raise ModelUnavailableError("the model is still loading: try again in a minute")
        if self._predictor is None:
            raise ModelUnavailableError(f"the model could not be loaded ({self._error})")
        return self._predictor


def _refusal(phrase: str) -> PhraseRefusedError | None:
    from sspsam import PhraseError
    from sspsam.phrases import tokenize

    try:
        tokenize([phrase])
    except PhraseError as error:
        return PhraseRefusedError(str(error))
    return None
