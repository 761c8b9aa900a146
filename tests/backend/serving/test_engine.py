"""The engine: loading in the background, one model at a time, swapping versions without a failed request."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest
import torch
from fsspec.implementations.local import LocalFileSystem
from redis import Redis

from backend.errors import ModelUnavailableError, PhraseRefusedError
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.engine import Engine
from backend.serving.shared_model import SwappablePredictor
from backend.shared_redis import VERSIONS_CHANNEL, connect_for_requests
from sspsam import ImageEmbedding, Predictor, Referent
from sspsam.checkpoints.load import CheckpointError
from sspsam.version_store.lines import StoreState
from sspsam.version_store.objects import VersionObjects
from sspsam.version_store.store import VersionCard, VersionStore
from tests.backend.colours import ColourPredictor, picture
from tests.waiting import wait_until

PRESET = "ssp-sam-test"
BASE = f"{PRESET}-base"


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine]) -> Callable[..., Engine]:
    """Makes engines that tests start, and that read the store often."""

    def make(
        load: Callable[[], SwappablePredictor], redis: Redis | None = None, cache_bytes: int = 10**8
    ) -> Engine:
        embeddings: EmbeddingCache[Any] = EmbeddingCache(cache_bytes)
        return make_engine(load, redis, embeddings=embeddings, poll_s=0.1, started=False)

    return make


def preset() -> Predictor:
    return Predictor.from_preset(PRESET, "cpu")


def publish(versions: VersionStore, scale: float, promote: bool = True) -> str:
    """Publishes a version whose tensors are the base's, scaled."""
    state = {key: value * scale for key, value in preset().trainable_state().items()}
    version = versions.publish(state, VersionCard(), {}).version_id
    if promote:
        versions.promote(version)
    return version


def referents(engine: Engine, *phrases: str) -> list[Referent]:
    found = engine.predict("picture", picture, phrases).referents
    assert not any(isinstance(referent, PhraseRefusedError) for referent in found)
    return [referent for referent in found if not isinstance(referent, PhraseRefusedError)]


def test_nothing_is_loaded_before_start(make_engine: Callable[..., Engine]) -> None:
    loaded = Event()

    def load() -> SwappablePredictor:
        loaded.set()
        return ColourPredictor()

    engine = make_engine(load)

    assert engine.status().state == "loading"
    assert not loaded.is_set()
    engine.start()
    wait_until(lambda: engine.status().state == "ready", "the model is loaded")


def test_status_does_not_wait_for_the_model(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    version, may_go_on = publish(versions, 0.5), Event()

    def load() -> SwappablePredictor:
        assert may_go_on.wait(20)
        return preset()

    engine = make_engine(load)
    engine.start()

    assert (engine.status().state, engine.version) == ("loading", version)
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(engine.predict, "picture", picture, ["the dog"])
        assert not answer.done()
        may_go_on.set()
        assert answer.result(timeout=20).version == version


class FarStore(VersionStore):
    """Answers when it may; an object store may be far away, or down."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PRESET)
        self.reads, self.may_answer = 0, Event()

    def state(self) -> StoreState:
        self.reads += 1
        assert self.may_answer.wait(20)
        return super().state()


def test_status_does_not_wait_for_the_version_store(tmp_path: Path) -> None:
    store = FarStore(tmp_path)
    version = publish(VersionStore(tmp_path, PRESET), 0.5, promote=False)
    engine = Engine(preset, store, EmbeddingCache(10**8), poll_s=0.1)
    engine.start()

    assert [engine.status().state for _ in range(3)] == ["loading"] * 3
    assert store.reads == 1, "once, and not for each question"
    store.may_answer.set()
    wait_until(lambda: engine.status().state == "ready", "the model is loaded")
    store.promote(version)
    wait_until(lambda: engine.version == version, "the version")
    engine.stop()


def test_a_model_that_cannot_be_loaded_says_why(make_engine: Callable[..., Engine]) -> None:
    def load() -> SwappablePredictor:
        raise CheckpointError("no weights for ssp-sam-336")

    engine = make_engine(load)
    engine.start()

    with pytest.raises(ModelUnavailableError, match="no weights for ssp-sam-336"):
        engine.predict("picture", picture, ["the dog"])
    assert engine.status().state == "failed"
    assert "no weights" in engine.status().error


def test_answers_are_the_predictors_own(make_engine: Callable[..., Engine]) -> None:
    engine, predictor = make_engine(preset), preset()
    engine.start()

    answer = engine.predict("picture", picture, ["the dog", "a boat on the left"])

    assert answer.version == BASE
    expected = predictor.predict(predictor.embed(picture()), ["the dog", "a boat on the left"])
    for found, wanted in zip(answer.referents, expected, strict=True):
        assert isinstance(found, Referent)
        np.testing.assert_array_equal(found.mask, wanted.mask)
        assert found.score == pytest.approx(wanted.score, abs=1e-4)


def test_a_bad_phrase_does_not_spoil_the_others(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(preset)
    engine.start()

    empty, good, long = engine.predict("picture", picture, [" ", "the dog", "very " * 90]).referents

    assert isinstance(empty, PhraseRefusedError)
    assert isinstance(good, Referent)
    assert isinstance(long, PhraseRefusedError)
    assert "too long" in str(long)


def test_a_picture_is_read_and_embedded_once(make_engine: Callable[..., Engine]) -> None:
    predictor = ColourPredictor()
    engine = make_engine(lambda: predictor)
    engine.start()
    reads: list[str] = []

    def read() -> np.ndarray:
        reads.append("read")
        return picture()

    for _ in range(3):
        engine.predict("same", read, ["red"])
    at_load = predictor.embedded - 1
    engine.predict("other", read, ["red"])

    assert len(reads) == 2
    assert predictor.embedded == at_load + 2
    assert len(engine.embeddings) == 2


def test_without_room_for_embeddings_it_still_answers(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(ColourPredictor, cache_bytes=0)
    engine.start()

    assert [referent.no_target for referent in referents(engine, "red", "green")] == [False, True]
    assert len(engine.embeddings) == 0


def test_it_starts_with_the_promoted_version(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    version = publish(versions, 0.5)
    engine = make_engine(preset)
    engine.start()

    scaled = preset()
    scaled.load_trainable(versions.load(version))

    assert engine.predict("picture", picture, ["the dog"]).version == version
    expected = scaled.predict(scaled.embed(picture()), ["the dog"])[0]
    assert referents(engine, "the dog")[0].box_xyxy == pytest.approx(expected.box_xyxy, abs=0.01)


@pytest.mark.parametrize("announced", [True, False], ids=["message", "poll"])
def test_a_promoted_version_serves_soon(
    make_engine: Callable[..., Engine], versions: VersionStore, redis_server: Redis, announced: bool
) -> None:
    engine = make_engine(preset, redis_server if announced else None)
    engine.start()
    before = referents(engine, "the dog")[0]

    version = publish(versions, 0.5)
    if announced:
        redis_server.publish(VERSIONS_CHANNEL, version)

    wait_until(lambda: engine.version == version, "the version serves")
    assert referents(engine, "the dog")[0].box_xyxy != pytest.approx(before.box_xyxy, abs=0.01)


def test_rolling_back_to_the_base_brings_its_answers_back(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    engine = make_engine(preset)
    engine.start()
    before = referents(engine, "the dog")[0]
    version = publish(versions, 0.5)
    wait_until(lambda: engine.version == version, "the version serves")

    assert versions.rollback() == BASE

    wait_until(lambda: engine.version == BASE, "the base serves")
    after = referents(engine, "the dog")[0]
    assert after.box_xyxy == pytest.approx(before.box_xyxy, abs=0.01)
    np.testing.assert_array_equal(after.mask, before.mask)


def test_a_version_that_does_not_fit_leaves_the_old_one(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    engine = make_engine(preset)
    engine.start()
    before = referents(engine, "the dog")[0]
    wrong = versions.publish({"something": torch.zeros(3)}, VersionCard(), {}).version_id
    versions.promote(wrong)

    wait_until(lambda: wrong in engine.status().refused, "the version was refused")

    assert engine.version == BASE
    assert referents(engine, "the dog")[0].box_xyxy == pytest.approx(before.box_xyxy, abs=0.01)
    good = publish(versions, 0.5)
    wait_until(lambda: engine.version == good, "the next version serves")


def test_a_damaged_version_at_the_start_leaves_the_base(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    version = publish(versions, 0.5)
    (versions.path(version) / "weights.safetensors").write_bytes(b"damaged")
    engine = make_engine(preset)
    engine.start()

    assert engine.predict("picture", picture, ["the dog"]).version == BASE
    assert "sha256" in engine.status().refused[version]


class AwayNowAndThen(LocalFileSystem):
    """Storage that objects can be listed in, but not always fetched from."""

    cachable = False
    is_away = True
    tries = 0

    def get_file(self, *arguments: Any, **options: Any) -> None:
        self.tries += 1
        if self.is_away:
            raise ConnectionError("no route to host")
        super().get_file(*arguments, **options)


def test_a_store_that_is_away_for_a_moment_refuses_no_version(
    make_engine: Callable[..., Engine], versions: VersionStore, tmp_path: Path
) -> None:
    here, there = AwayNowAndThen(), LocalFileSystem(auto_mkdir=True)
    elsewhere = VersionStore(tmp_path, PRESET)
    for store, storage, name in ((versions, here, "here"), (elsewhere, there, "there")):
        store.files = VersionObjects(str(tmp_path / "bucket"), PRESET, tmp_path / name, storage)
    engine = make_engine(preset)
    engine.start()
    assert engine.predict("picture", picture, ["the dog"]).version == BASE
    version = publish(elsewhere, 0.5)

    wait_until(lambda: here.tries > 1, "it is tried again and again")

    assert (engine.version, engine.status().refused) == (BASE, {})
    here.is_away = False
    wait_until(lambda: engine.version == version, "the version serves")


def test_no_request_fails_during_swaps(make_engine: Callable[..., Engine], versions: VersionStore) -> None:
    """Every answer comes from one version: the colour predictor's shift is that of the version it names."""
    engine = make_engine(ColourPredictor)
    engine.start()
    shifts = {BASE: 0}
    promoted: list[str] = []
    done = Event()

    def ask() -> list[tuple[str, int]]:
        seen = []
        while not done.is_set():
            answer = engine.predict("picture", picture, ["red", "red again"])
            tops = {int(np.flatnonzero(found.mask.any(axis=1))[0]) for found in _found(answer.referents)}
            (top,) = tops
            seen.append((answer.version, top - 5))
        return seen

    with ThreadPoolExecutor() as pool:
        askers = [pool.submit(ask) for _ in range(4)]
        for shift in (3, 7, 1):
            version = versions.publish({"shift": torch.tensor(shift)}, VersionCard(), {}).version_id
            shifts[version] = shift
            promoted.append(version)
            versions.promote(version)
            engine.refresh()
        done.set()
        seen = [pair for asker in askers for pair in asker.result(timeout=20)]

    assert engine.version == promoted[-1]
    assert seen
    assert all(shifts[version] == shift for version, shift in seen)


def test_it_goes_on_without_redis(make_engine: Callable[..., Engine], versions: VersionStore) -> None:
    engine = make_engine(preset, connect_for_requests("unix:///nonexistent/redis.sock"))
    engine.start()
    assert referents(engine, "the dog")

    version = publish(versions, 0.5)

    wait_until(lambda: engine.version == version, "the version serves")


def _found(referents: list[Referent | PhraseRefusedError]) -> list[Referent]:
    return [referent for referent in referents if isinstance(referent, Referent)]


def test_the_real_predictor_is_what_the_engine_expects() -> None:
    predictor: SwappablePredictor = preset()

    assert isinstance(predictor.embed(picture()), ImageEmbedding)
