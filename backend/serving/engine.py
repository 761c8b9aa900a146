"""The serving model: loaded in the background, shared by callers (`backend.serving.shared_model`), with the
weights of each project's current version (`backend.serving.served_lines`).
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from threading import Event, Lock, Thread
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt
from redis import Redis

from backend.errors import ModelUnavailableError, PhraseRefusedError
from backend.metrics import Metrics
from backend.serving.batch_queue import Caller
from backend.serving.embedding_store import EmbeddingCache, EmbeddingOrigin
from backend.serving.loaded_versions import LoadedVersions
from backend.serving.served_lines import Refusal, ServedLines
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

if TYPE_CHECKING:
    from sspsam import SSPSAM, ImageEmbedding, Referent

State = Literal["loading", "ready", "failed"]

LOAD_WAIT_S = 60.0
"""Time that a request waits for a loading model; Label Studio waits 100 s."""
STORE_WAIT_S = 2.0
"""Time that `start` waits for the current version: the store may be remote, or down."""
VERSION_BYTES = 2**30
"""Default limit of the versions in memory."""
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
    """Version that serves requests without a project; while loading, the version being loaded."""
    error: str = ""
    """Why there is no model."""
    device: str = ""
    """Device of the model; empty until known."""
    lines: Mapping[str, str] = field(default_factory=dict)
    """Lines that were asked -> the versions that serve them."""
    refusals: Sequence[Refusal] = ()
    """Promoted versions that could not be loaded."""
    loaded_versions: int = 0
    """Number of versions in memory, besides the base version."""
    loaded_bytes: int = 0
    """Memory of their tensors."""

    @property
    def refused(self) -> dict[str, str]:
        """Promoted versions that could not be loaded -> reason."""
        return {refusal.version: refusal.reason for refusal in self.refusals}


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
        version_bytes: Limit of the tensors of versions in memory.
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
        version_bytes: int = VERSION_BYTES,
    ) -> None:
        self._load_predictor = load_predictor
        self._versions = versions
        self.embeddings = embeddings
        self._redis = redis
        self._metrics = metrics or Metrics()
        self._loaded_versions = LoadedVersions(version_bytes, self._find_version, self._load_version)
        self._lines = ServedLines(versions, self._loaded_versions, self._metrics)
        self._model = SharedModel(embeddings, self._lines, self._metrics, options or SharingOptions())
        self._poll_s = poll_s
        self._predictor: SwappablePredictor | None = None
        self._error = ""
        self._read_store = Event()  # set when the first version to serve is known
        self._loaded = Event()  # set when loading has finished or failed
        self._stopped = Event()
        self._refresh_lock = Lock()
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
        """The version that serves requests without a project."""
        return self.version_of("")

    def version_of(self, project: str) -> str:
        """The version that serves a project; before the model is loaded, the one that will. Never waits."""
        return self._lines.version_of(project)

    def line_of(self, project: str) -> str:
        """The line of versions that serves a project."""
        return self._lines.line_of(project)

    def status(self) -> EngineStatus:
        """Returns the status; never waits for the model."""
        if not self._loaded.is_set():
            return EngineStatus("loading", self.version)
        return EngineStatus(
            "failed" if self._predictor is None else "ready",
            self.version,
            self._error,
            str(getattr(self._predictor, "device", "")),
            self._lines.in_use(),
            self._lines.refusals(),
            len(self._loaded_versions),
            self._loaded_versions.size_bytes,
        )

    def waiting(self) -> dict[str, int]:
        """Queue -> number of waiting requests."""
        return self._model.waiting()

    def predict(
        self,
        image_key: str,
        read_image: ReadImage,
        phrases: Sequence[str],
        caller: Caller = ANONYMOUS,
        split: bool = False,
        min_presence: float | None = None,
    ) -> Answer:
        """Segments the referents of phrases in an image.

        Args:
            image_key: Identifies the image's content, such as its sha256.
            read_image: Returns the pixels; called in another thread, only if the embedding is not cached.
            phrases: Referring expressions.
            caller: Identifies the requester, for fairness; its project's line of versions answers.
            split: Split each mask into its objects (`Referent.instances`).
            min_presence: As for `sspsam.Predictor.finish`: improbable masks are marked as unsure.

        Raises:
            ModelUnavailableError: no model, or it is still loading after LOAD_WAIT_S.
            ModelBusyError: the queue is full.
            TooLateError: the caller timed out before its turn.
        """
        self._require_model(caller)
        refusals = {phrase: _refusal(phrase) for phrase in phrases}
        good = [phrase for phrase, refusal in refusals.items() if refusal is None]
        if not good:
            version = self.version_of(caller.project)
            return Answer(version, [no for phrase in phrases if (no := refusals[phrase])])
        version, referents = self._model.ask(
            image_key, read_image, good, Clicks(), caller, split, min_presence
        )
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
        """Reads the store and swaps the lines whose version has changed.

        A version that cannot be loaded is recorded, and its line goes on with what it had.
        """
        with self._refresh_lock:
            if self._predictor is not None:
                self._lines.refresh()

    def _start_thread(self, name: str, work: Callable[[], None]) -> None:
        thread = Thread(target=work, name=name, daemon=True)
        self._threads.append(thread)
        thread.start()

    def _start_up(self) -> None:
        """Loads the model. Loading uses all cores, so its thread must end (`sspsam.runtime.cores`)."""
        try:
            self._lines.read()
            self._read_store.set()
            self._load()
        except Exception as error:  # shown to annotators, and on the start page
            logger.exception("cannot load the model")
            self._predictor, self._error = None, f"{type(error).__name__}: {error}"
            self._loaded.set()
            return
        self._loaded.set()
        self._start_thread("versions", self._follow_versions)
        try:
            _ = self._versions.frozen_weights  # hashed now, so that the first cold line does not wait for it
        except OSError:
            logger.exception("cannot read the frozen weights")

    def _load(self) -> None:
        from sspsam.results import Question

        since_s = time.monotonic()
        predictor = self._load_predictor()
        black = predictor.embed(np.zeros((64, 64, 3), np.uint8))
        [decoded] = predictor.decode([Question(black, "warm up")])
        predictor.finish(decoded)
        self._predictor = predictor
        self._lines.use("", ANONYMOUS).release()
        self._model.start(predictor)
        logger.info("serving %s, loaded in %.1f s", self.version, time.monotonic() - since_s)

    def _find_version(self, version: str) -> Path:
        path = self._versions.weights_path(version)
        assert path is not None, "the base version is the predictor's own"
        return path

    def _load_version(self, path: Path) -> SSPSAM:
        from sspsam.checkpoints.load import read_tensors

        assert self._predictor is not None, "versions are loaded onto a model"
        model = self._predictor.variant(read_tensors(path))
        self._metrics.loads.inc()
        return model

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
                    self._lines.forgive()  # a new promotion: versions that failed may work now
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
