"""The serving model: loaded in the background, shared by callers (`backend.serving.shared_model`), with the
weights of the current version.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from redis import Redis

from backend.errors import ModelUnavailableError, PhraseRefusedError
from backend.metrics import Metrics
from backend.serving.batch_queue import Caller
from backend.serving.embedding_store import EmbeddingCache, EmbeddingOrigin
from backend.serving.shared_model import (
    ANONYMOUS,
    Clicks,
    FindImage,
    ReadImage,
    SharedModel,
    SharingOptions,
    SwappablePredictor,
)
from backend.shared_redis import VERSIONS_CHANNEL
from sspsam import VersionStore
from sspsam.version_store.store import UnreachableStoreError, VersionError

if TYPE_CHECKING:
    import torch

    from sspsam import ImageEmbedding, Referent

State = Literal["loading", "ready", "failed"]

LOAD_WAIT_S = 60.0
"""Time that a request waits for a loading model; Label Studio waits 100 s."""
STORE_WAIT_S = 2.0
"""Time that `start` waits for the current version: the store may be remote, or down."""
POLL_S = 1.0
"""Polling interval of the version store, for lost messages."""
_MESSAGE_WAIT_S = 0.1  # upper bound of the wait in `stop`

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """Answers of one model version for one image."""

    version: str
    referents: Sequence[Referent | PhraseRefusedError]
    """One per phrase, in order."""


@dataclass
class EngineStatus:
    """Status for the start page and the metrics."""

    state: State
    version: str
    """Serving version; while loading, the version being loaded."""
    error: str = ""
    """Why there is no model."""
    device: str = ""
    """Device of the model; empty until known."""
    refused: dict[str, str] = field(default_factory=dict)
    """Promoted versions that could not be loaded -> reason."""


class Engine:
    """Owns the predictor. The constructor loads nothing; `start` does, in the background.

    Args:
        load_predictor: Loads the preset with its base weights; called once, in another thread.
        versions: Store of fine-tuned weights and of the current version.
        embeddings: Cache of embeddings; its disk part is shared with other processes.
        redis: Announces new versions; without it, the store is polled every poll_s.
        metrics: Counts swaps, batches, refusals and sources of embeddings.
        options: How requests share the model.
        poll_s: Polling interval of the store.
    """

    def __init__(
        self,
        load_predictor: Callable[[], SwappablePredictor],
        versions: VersionStore,
        embeddings: EmbeddingCache[ImageEmbedding],
        redis: Redis | None = None,
        metrics: Metrics | None = None,
        options: SharingOptions | None = None,
        poll_s: float = POLL_S,
    ) -> None:
        self._load_predictor = load_predictor
        self._versions = versions
        self.embeddings = embeddings
        self._redis = redis
        self._metrics = metrics or Metrics()
        self._model = SharedModel(embeddings, self._metrics, options or SharingOptions())
        self._poll_s = poll_s
        self._predictor: SwappablePredictor | None = None
        self._base_state: Mapping[str, torch.Tensor] = {}
        self._version = versions.base_version
        self._error = ""
        self._refused: dict[str, str] = {}
        self._expected = self._version
        self._read_store = Event()  # set when the first version to serve is known
        self._loaded = Event()  # set when loading has finished or failed
        self._stopped = Event()
        self._swap_lock = Lock()
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Starts loading the model and following the version store."""
        if not self._threads:
            self._start_thread("loading", self._start_up)
            self._read_store.wait(STORE_WAIT_S)

    def stop(self) -> None:
        """Stops the threads after their current work; waiting requests get an error."""
        self._stopped.set()
        self._model.stop()
        for thread in list(self._threads):
            thread.join(timeout=2 * self._poll_s)

    def wait(self, timeout_s: float) -> bool:
        """Waits until loading has finished or failed; returns whether it has."""
        return self._loaded.wait(timeout_s)

    @property
    def version(self) -> str:
        """The serving version; before the model is loaded, the one being loaded."""
        return self.status().version

    def status(self) -> EngineStatus:
        """Returns the status; never waits for the model."""
        if self._loaded.is_set():
            state: State = "failed" if self._predictor is None else "ready"
            device = str(getattr(self._predictor, "device", ""))
            return EngineStatus(state, self._version, self._error, device, dict(self._refused))
        return EngineStatus("loading", self._expected)

    def waiting(self) -> dict[str, int]:
        """Queue -> number of waiting requests."""
        return self._model.waiting()

    def predict(
        self, image_key: str, read_image: ReadImage, phrases: Sequence[str], caller: Caller = ANONYMOUS
    ) -> Answer:
        """Segments the referents of phrases in an image.

        Args:
            image_key: Identifies the image's content, such as its sha256.
            read_image: Returns the pixels; called in another thread, only if the embedding is not cached.
            phrases: Referring expressions.
            caller: Identifies the requester, for fairness.

        Raises:
            ModelUnavailableError: no model, or it is still loading after LOAD_WAIT_S.
            ModelBusyError: the queue is full.
            TooLateError: the caller timed out before its turn.
        """
        self._require_model(caller)
        refusals = {phrase: _refusal(phrase) for phrase in phrases}
        good = [phrase for phrase, refusal in refusals.items() if refusal is None]
        if not good:
            return Answer(self._version, [no for phrase in phrases if (no := refusals[phrase])])
        version, referents = self._model.ask(image_key, read_image, good, Clicks(), caller)
        found = dict(zip(good, referents, strict=True))
        return Answer(version, [refusals[phrase] or found[phrase] for phrase in phrases])

    def refine(
        self,
        image_key: str,
        read_image: ReadImage,
        phrase: str,
        clicks: Clicks,
        caller: Caller = ANONYMOUS,
    ) -> Answer:
        """Segments with clicks: the referent of a phrase, or plain SAM for an empty phrase.

        Args:
            image_key: As for `predict`.
            read_image: As for `predict`.
            phrase: May be empty.
            clicks: At least one.
            caller: As for `predict`.

        Raises:
            ModelUnavailableError: as for `predict`.
            PhraseRefusedError: the model cannot process the phrase.
        """
        self._require_model(caller)
        refusal = _refusal(phrase) if phrase else None
        if refusal is not None:
            raise refusal
        return Answer(*self._model.ask(image_key, read_image, [phrase], clicks, caller))

    def embed(self, image_key: str, read_image: ReadImage, caller: Caller = ANONYMOUS) -> EmbeddingOrigin:
        """Makes sure that an image's embedding is cached; returns its source.

        Raises:
            ModelUnavailableError: as for `predict`.
        """
        self._require_model(caller)
        return self._model.embedding(image_key, read_image, caller)[1]

    def describe(
        self, image_key: str, read_image: ReadImage, caller: Caller = ANONYMOUS
    ) -> npt.NDArray[np.float32]:
        """Descriptor for comparing images: (D,).

        Raises:
            ModelUnavailableError: as for `predict`.
        """
        self._require_model(caller)
        return self._model.embedding(image_key, read_image, caller)[0].descriptor

    def prefetch(self, find_image: FindImage) -> None:
        """Embeds an image in the background, if there is a model and the encoder is not busy."""
        if self.status().state == "ready":
            self._model.prefetch(find_image)

    def refresh(self) -> None:
        """Loads the store's current version, unless it already serves.

        A version that cannot be loaded is recorded, and the serving version stays.
        """
        with self._swap_lock:
            wanted = self._wanted()
            if self._predictor is None or wanted == self._version or wanted in self._refused:
                return
            try:
                self._swap(wanted)
            except UnreachableStoreError as error:  # the version may be good: retry at the next poll
                logger.warning(
                    "cannot fetch version %s; %s stays in service: %s", wanted, self._version, error
                )
            except Exception as error:  # whatever the error, the serving version must stay
                logger.exception("cannot load version %s; %s stays in service", wanted, self._version)
                self._refused[wanted] = str(error)

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        thread = Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start_up(self) -> None:
        """Loads the model. Loading uses all cores, so its thread must end (`sspsam.runtime.cores`)."""
        try:
            self._expected = self._wanted()
            self._read_store.set()
            self._load()
        except Exception as error:  # shown to annotators, and on the start page
            logger.exception("cannot load the model")
            self._error = f"{type(error).__name__}: {error}"
            self._loaded.set()
            return
        self._loaded.set()
        self._start_thread("versions", self._follow_versions)

    def _load(self) -> None:
        from sspsam.results import Question

        since_s = time.monotonic()
        predictor = self._load_predictor()
        self._base_state = predictor.trainable_state()
        black = predictor.embed(np.zeros((64, 64, 3), np.uint8))
        [decoded] = predictor.decode([Question(black, "warm up")])
        predictor.finish(decoded)
        self._model.start(predictor, self._version)
        self._predictor = predictor
        self.refresh()
        logger.info("serving %s, loaded in %.1f s", self._version, time.monotonic() - since_s)

    def _swap(self, version: str) -> None:
        self._model.swap(self._versions.load(version) or self._base_state, version)
        self._version = version
        logger.info("now serving %s", version)
        self._metrics.swaps.inc()

    def _wanted(self) -> str:
        try:
            return self._versions.current()
        except (VersionError, OSError):
            logger.exception("cannot read the version store")
            return self._version

    def _follow_versions(self) -> None:
        reason = ""
        while not self._stopped.is_set():
            try:
                self._listen()
            except (
                Exception
            ) as error:  # Redis unavailable or connection lost: polling finds new versions as well
                if reason != type(error).__name__:
                    reason = type(error).__name__
                    logger.warning("no version messages from Redis (%s): polling the store", reason)
                self._stopped.wait(self._poll_s)
                self.refresh()

    def _listen(self) -> None:
        """Refreshes on each version message and every poll_s; returns when stopped."""
        if self._redis is None:
            self._stopped.wait(self._poll_s)
            self.refresh()
            return
        with self._redis.pubsub(ignore_subscribe_messages=True) as messages:  # type: ignore[no-untyped-call]
            messages.subscribe(VERSIONS_CHANNEL)
            due_s = 0.0
            while not self._stopped.is_set():
                if messages.get_message(timeout=_MESSAGE_WAIT_S) is not None:
                    self._refused.clear()  # a new promotion: versions that failed may work now
                    due_s = 0.0
                if time.monotonic() >= due_s:
                    self.refresh()
                    due_s = time.monotonic() + self._poll_s

    def _require_model(self, caller: Caller) -> None:
        """Waits for a loading model.

        Raises:
            ModelUnavailableError: it is still loading, or could not be loaded.
        """
        if not self._loaded.wait(min(LOAD_WAIT_S, caller.left_s)):
            raise ModelUnavailableError("the model is still loading: try again in a minute")
        if self._predictor is None:
            raise ModelUnavailableError(f"the model could not be loaded ({self._error})")


def _refusal(phrase: str) -> PhraseRefusedError | None:
    from sspsam import PhraseError
    from sspsam.phrases import tokenize

    try:
        tokenize([phrase])
    except PhraseError as error:
        return PhraseRefusedError(str(error))
    return None
