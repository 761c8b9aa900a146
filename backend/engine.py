"""The model in service: loaded in the background, shared by callers (`backend.sharing`), its weights always
those of the version that is to serve.
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

from backend.embeddings import EmbeddingCache, Source
from backend.errors import ModelUnavailableError, PhraseRefusedError
from backend.lanes import Caller
from backend.metrics import Metrics
from backend.sharing import (
    NOBODY,
    Asked,
    Clicks,
    FindImage,
    ReadImage,
    SharedModel,
    SharingOptions,
    SwappablePredictor,
)
from sspsam.versions import VERSIONS_CHANNEL, UnreachableStoreError, VersionError, VersionStore

if TYPE_CHECKING:
    import torch

    from sspsam import ImageEmbedding, Referent

State = Literal["loading", "ready", "failed"]

LOAD_WAIT_S = 60.0
"""How long a request waits for a model that is still loading; Label Studio waits 100 s."""
STORE_WAIT_S = 2.0
"""How long `start` waits to know which version is to serve: the store may be far away, or down."""
POLL_S = 1.0
"""How often the version store is read, in case a message was lost."""
_MESSAGE_WAIT_S = 0.1  # how long `stop` may have to wait

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Answer:
    """What one version of the model says about one picture."""

    version: str
    referents: Sequence[Referent | PhraseRefusedError]
    """One for each phrase, in order."""


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
        embeddings: In memory shared with nobody else, on disk with everybody.
        redis: Where new versions are announced; without one, the store is read every poll_s.
        metrics: Counts swaps, batches, refusals and where embeddings came from.
        options: How requests share the model.
        poll_s: How often the store is read.
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
        self._read_store = Event()  # set when it is known which version is to serve first
        self._loaded = Event()  # set when loading has ended, well or not
        self._stopped = Event()
        self._swap_lock = Lock()
        self._threads: list[Thread] = []

    def start(self) -> None:
        """Begins to load the model, and to follow the version store."""
        if not self._threads:
            self._start_thread("loading", self._start_up)
            self._read_store.wait(STORE_WAIT_S)

    def stop(self) -> None:
        """Ends the threads, after what they are at; who still waits is told so."""
        self._stopped.set()
        self._model.stop()
        for thread in list(self._threads):
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
        return EngineStatus("loading", self._expected)

    def waiting(self) -> dict[str, int]:
        """What for -> how many wait for it."""
        return self._model.waiting()

    def predict(
        self, image_key: str, read_image: ReadImage, phrases: Sequence[str], caller: Caller = NOBODY
    ) -> Answer:
        """Segments what phrases refer to in a picture.

        Args:
            image_key: Names the picture's content, such as its sha256.
            read_image: Gives the pixels; called, in another thread, only when the embedding is not at hand.
            phrases: Referring expressions.
            caller: For whom.

        Raises:
            ModelUnavailableError: no model, or it is still loading after LOAD_WAIT_S.
            ModelBusyError: too many wait already.
            TooLateError: its turn came after the caller had stopped waiting.
        """
        self._require_model(caller)
        refusals = {phrase: _refusal(phrase) for phrase in phrases}
        good = [phrase for phrase, refusal in refusals.items() if refusal is None]
        if not good:
            return Answer(self._version, [no for phrase in phrases if (no := refusals[phrase])])
        version, referents = self._model.ask(
            image_key, read_image, [Asked(phrase) for phrase in good], caller
        )
        found = dict(zip(good, referents, strict=True))
        return Answer(version, [refusals[phrase] or found[phrase] for phrase in phrases])

    def refine(
        self,
        image_key: str,
        read_image: ReadImage,
        phrase: str,
        clicks: Clicks,
        caller: Caller = NOBODY,
    ) -> Answer:
        """Segments what a person points at: with a phrase, what it refers to; with an empty one, SAM alone.

        Args:
            image_key: As for `predict`.
            read_image: As for `predict`.
            phrase: May be empty.
            clicks: At least one.
            caller: As for `predict`.

        Raises:
            ModelUnavailableError: as for `predict`.
            PhraseRefusedError: the model cannot read the phrase.
        """
        self._require_model(caller)
        refusal = _refusal(phrase) if phrase else None
        if refusal is not None:
            raise refusal
        return Answer(*self._model.ask(image_key, read_image, [Asked(phrase, clicks)], caller))

    def embed(self, image_key: str, read_image: ReadImage, caller: Caller = NOBODY) -> Source:
        """Makes sure that a picture's embedding is at hand; returns where it was.

        Raises:
            ModelUnavailableError: as for `predict`.
        """
        self._require_model(caller)
        return self._model.embedding(image_key, read_image, caller)[1]

    def describe(
        self, image_key: str, read_image: ReadImage, caller: Caller = NOBODY
    ) -> npt.NDArray[np.float32]:
        """What a picture can be compared with others by: (D,).

        Raises:
            ModelUnavailableError: as for `predict`.
        """
        self._require_model(caller)
        return self._model.embedding(image_key, read_image, caller)[0].descriptor

    def prefetch(self, find_image: FindImage) -> None:
        """Embeds a picture in the background, if there is a model and not much else to embed."""
        if self.status().state == "ready":
            self._model.prefetch(find_image)

    def refresh(self) -> None:
        """Makes the store's current version serve, if it does not yet.

        A version that cannot be loaded is noted, and the one in service stays.
        """
        with self._swap_lock:
            wanted = self._wanted()
            if self._predictor is None or wanted == self._version or wanted in self._refused:
                return
            try:
                self._swap(wanted)
            except UnreachableStoreError as error:  # the version may be good: again at the next look
                logger.warning("version %s cannot be fetched; %s serves on: %s", wanted, self._version, error)
            except Exception as error:  # whatever it is, what serves must go on serving
                logger.exception("version %s cannot be loaded; %s serves on", wanted, self._version)
                self._refused[wanted] = str(error)

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        thread = Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start_up(self) -> None:
        """Loads the model. Loading splits operations over cores, so its thread must end (`sspsam.cores`)."""
        try:
            self._expected = self._wanted()
            self._read_store.set()
            self._load()
        except Exception as error:  # shown to whoever asks for a mask, and on the start page
            logger.exception("the model cannot be loaded")
            self._error = f"{type(error).__name__}: {error}"
            self._loaded.set()
            return
        self._loaded.set()
        self._start_thread("versions", self._follow_versions)

    def _load(self) -> None:
        since_s = time.monotonic()
        predictor = self._load_predictor()
        self._base_state = predictor.trainable_state()
        black = predictor.embed(np.zeros((64, 64, 3), np.uint8))
        [decoded] = predictor.decode([Asked("warm up").about(black)])
        predictor.finish(decoded)
        self._model.start(predictor, self._version)
        self._predictor = predictor
        self.refresh()
        logger.info("%s serves, loaded in %.1f s", self._version, time.monotonic() - since_s)

    def _swap(self, version: str) -> None:
        self._model.swap(self._versions.load(version) or self._base_state, version)
        self._version = version
        logger.info("%s serves from now on", version)
        self._metrics.swaps.inc()

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

    def _require_model(self, caller: Caller) -> None:
        """Waits for the model while it is loading.

        Raises:
            ModelUnavailableError: it still is, or could not be loaded.
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
