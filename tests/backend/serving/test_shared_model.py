"""One model for many callers: phrases are batched, images in parallel, excess requests are refused."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import numpy as np
import pytest

from backend.errors import ImageFormatError, ModelBusyError, TooLateError
from backend.images.store import UInt8Image
from backend.metrics import Metrics
from backend.serving.batch_queue import Caller
from backend.serving.embedding_store import EmbeddingCache
from backend.serving.engine import Engine
from backend.serving.shared_model import MAX_EDGES, MAX_SPECK, SwappablePredictor
from sspsam import Predictor, Referent
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.backend.colours import ColourPredictor, Pixels, as_referent, picture
from tests.waiting import wait_until

PRESET = "ssp-sam-test"


class Held(ColourPredictor):
    """Embeds and answers only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_embed, self.may_answer = Event(), Event()
        self.embedding, self.answering = Event(), Event()

    def embed(self, image: UInt8Image) -> Pixels:
        if image.shape != (64, 64, 3):  # not the one to warm up with
            self.embedding.set()
            assert self.may_embed.wait(20)
        return super().embed(image)

    def decode(self, questions: Sequence[Any], models: Sequence[Any] | None = None) -> list[Referent]:
        if questions[0].phrase != "warm up":
            self.answering.set()
            assert self.may_answer.wait(20)
        return super().decode(questions, models)


@pytest.fixture
def make_engine(make_engine: Callable[..., Engine], tmp_path: Path) -> Callable[..., Engine]:
    """Makes engines that share embeddings on disk."""

    def make(predictor: Callable[[], SwappablePredictor], cache_bytes: int = 10**8, **options: Any) -> Engine:
        embeddings: EmbeddingCache[Any] = EmbeddingCache(cache_bytes, tmp_path / "embeddings", 10**8)
        return make_engine(predictor, embeddings=embeddings, **options)

    return make


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_phrases_of_several_callers_share_a_pass(
    make_engine: Callable[..., Engine], metrics: Metrics
) -> None:
    predictor = Held()
    predictor.may_embed.set()
    engine = make_engine(lambda: predictor, max_batch=8)
    for image in ("a", "b"):
        engine.embed(image, picture)

    with ThreadPoolExecutor(6) as pool:
        first = pool.submit(engine.predict, "a", picture, ["red"], Caller("0"))
        assert predictor.answering.wait(20)
        rest = [
            pool.submit(engine.predict, "ab"[number % 2], picture, ["red", "green"], Caller(str(number)))
            for number in (1, 2, 3)
        ]
        wait_until(lambda: engine.waiting()["phrases"] == 6, "all wait")
        predictor.may_answer.set()
        answers = [one.result(20) for one in (first, *rest)]

    assert predictor.batches == [1, 1, 6]
    for answer in answers[1:]:
        assert [referent.phrase for referent in answer.referents] == ["red", "green"]
        assert [referent.no_target for referent in answer.referents] == [False, True]
    assert value(metrics, "sspsam_batch_size_sum") == 7
    assert value(metrics, "sspsam_batch_size_count") == 2


def test_a_real_models_answers_do_not_depend_on_who_else_asks(make_engine: Callable[..., Engine]) -> None:
    def load() -> Predictor:
        return Predictor.from_preset(PRESET, "cpu")

    engine, alone = make_engine(load, max_batch=8, gather_s=0.05), load()
    pictures = [picture(), picture(50, 30)]

    with ThreadPoolExecutor(8) as pool:
        asked = [(f"thing {number}", number % 2) for number in range(8)]
        answers = pool.map(
            lambda one: engine.predict(str(one[1]), lambda: pictures[one[1]], [one[0]], Caller(one[0])), asked
        )
        for (phrase, which), answer in zip(asked, answers, strict=True):
            [expected] = alone.predict(alone.embed(pictures[which]), [phrase])
            [found] = answer.referents
            assert isinstance(found, Referent)
            assert found.phrase == phrase
            assert (found.mask == expected.mask).mean() > 0.99
            assert found.box_xyxy == pytest.approx(expected.box_xyxy, abs=0.1)


def test_a_new_picture_does_not_hold_up_phrases(make_engine: Callable[..., Engine]) -> None:
    predictor = Held()
    predictor.may_answer.set()
    predictor.may_embed.set()
    engine = make_engine(lambda: predictor)
    engine.embed("known", picture)
    predictor.may_embed.clear()
    predictor.embedding.clear()

    with ThreadPoolExecutor(2) as pool:
        new = pool.submit(engine.predict, "new", picture, ["red"], Caller("1"))
        assert predictor.embedding.wait(20)
        engine.predict("known", picture, ["red"], Caller("2"))
        assert not new.done()
        predictor.may_embed.set()
        new.result(20)


def test_a_picture_that_several_wait_for_is_embedded_once(
    make_engine: Callable[..., Engine], metrics: Metrics
) -> None:
    predictor = Held()
    predictor.may_answer.set()
    engine = make_engine(lambda: predictor)
    reads: list[int] = []

    def read() -> UInt8Image:
        reads.append(1)
        return picture()

    with ThreadPoolExecutor(3) as pool:
        asked = [pool.submit(engine.predict, "new", read, ["red"], Caller(str(n))) for n in range(3)]
        assert predictor.embedding.wait(20)
        wait_until(lambda: engine.waiting()["loading"] == 0, "two wait for the third's")
        predictor.may_embed.set()
        for one in asked:
            one.result(20)

    assert len(reads) == 1
    assert value(metrics, "sspsam_embeddings_total", source="encoder") == 1
    assert value(metrics, "sspsam_embeddings_total", source="memory") == 2


def test_too_many_are_told_that_the_model_is_busy(
    make_engine: Callable[..., Engine], metrics: Metrics
) -> None:
    predictor = Held()
    predictor.may_embed.set()
    engine = make_engine(lambda: predictor, queue_limit=2, max_batch=1)

    with ThreadPoolExecutor(2) as pool:
        inside = [pool.submit(engine.predict, "a", picture, ["red"], Caller(str(n))) for n in range(2)]
        assert predictor.answering.wait(20)
        wait_until(lambda: engine.waiting()["phrases"] == 1, "one is answered, one waits")
        with pytest.raises(ModelBusyError, match="2"):
            engine.predict("a", picture, ["red"], Caller("3"))
        predictor.may_answer.set()
        for one in inside:
            one.result(20)

    assert engine.predict("a", picture, ["red"], Caller("3")).referents
    assert value(metrics, "sspsam_refused_total", reason="busy") == 1


def test_nothing_is_computed_for_a_client_that_gave_up(
    make_engine: Callable[..., Engine], metrics: Metrics
) -> None:
    predictor = Held()
    predictor.may_embed.set()
    engine = make_engine(lambda: predictor)

    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(engine.predict, "a", picture, ["red"], Caller("patient"))
        assert predictor.answering.wait(20)
        with pytest.raises(TooLateError):
            engine.predict("a", picture, ["blue"], Caller("hurried", time.monotonic() + 0.05))
        predictor.may_answer.set()
        first.result(20)

    engine.predict("a", picture, ["red"], Caller("patient"))
    assert "blue" not in predictor.asked
    assert value(metrics, "sspsam_refused_total", reason="late") == 1


def test_a_picture_that_cannot_be_read_spoils_no_other(make_engine: Callable[..., Engine]) -> None:
    engine = make_engine(ColourPredictor)

    def broken() -> UInt8Image:
        raise ImageFormatError("the image file is damaged")

    with pytest.raises(ImageFormatError, match="damaged"):
        engine.predict("broken", broken, ["red"])
    assert engine.predict("fine", picture, ["red"]).referents


def test_another_process_finds_embeddings_on_disk(
    make_engine: Callable[..., Engine], metrics: Metrics
) -> None:
    make_engine(ColourPredictor).predict("a", picture, ["red"])
    predictor = ColourPredictor()
    other = make_engine(lambda: predictor)
    at_load = predictor.embedded

    def unread() -> UInt8Image:
        raise AssertionError("the embedding is on disk")

    [found] = other.predict("a", unread, ["red"]).referents

    assert isinstance(found, Referent)
    assert found.mask.any()
    assert predictor.embedded == at_load
    assert value(metrics, "sspsam_embeddings_total", source="disk") == 1
    assert other.embed("a", unread) == "memory"


def test_another_process_has_the_same_embedding(make_engine: Callable[..., Engine]) -> None:
    image = np.random.default_rng(0).integers(0, 256, (90, 120, 3), np.uint8)

    first, second = (
        make_engine(lambda: Predictor.from_preset(PRESET, "cpu")).describe("a", lambda: image)
        for _ in range(2)
    )

    np.testing.assert_array_equal(first, second)


def test_a_picture_is_embedded_ahead(make_engine: Callable[..., Engine], metrics: Metrics) -> None:
    engine = make_engine(ColourPredictor)

    engine.prefetch(lambda: ("a", picture))

    wait_until(lambda: value(metrics, "sspsam_prefetched_total") == 1, "it is embedded")
    assert engine.embed("a", picture) == "memory"


def test_pictures_that_nobody_waits_for_take_turns_with_those_that_somebody_does(
    make_engine: Callable[..., Engine],
) -> None:
    predictor = Held()
    predictor.may_answer.set()
    engine = make_engine(lambda: predictor)
    order: list[str] = []

    def read(name: str) -> Callable[[], UInt8Image]:
        def reads() -> UInt8Image:
            order.append(name)
            return picture()

        return reads

    for name in ("ahead 1", "ahead 2", "ahead 3"):
        engine.prefetch(lambda name=name: (name, read(name)))
    assert predictor.embedding.wait(20)
    with ThreadPoolExecutor(1) as pool:
        wanted = pool.submit(engine.predict, "wanted", read("wanted"), ["red"], Caller("anna"))
        wait_until(lambda: engine.waiting()["images"] == 1, "it waits")
        predictor.may_embed.set()
        wanted.result(20)

    assert order[:2] == ["ahead 1", "wanted"]


class Ragged(ColourPredictor):
    """Answers with specks everywhere, fewer of them the larger they have to be."""

    enough = 1e-3
    """Size of specks from which on there are few."""

    def finish(
        self, decoded: Referent, min_speck: float = 0.0, min_presence: float | None = None
    ) -> Referent:
        self.asked.append(f"{min_speck:g}")
        share = 0.5 if min_speck < self.enough else 0.001
        mask = np.random.default_rng(0).random((1500, 2000)) < share
        return as_referent(decoded.phrase, mask)


@pytest.mark.parametrize(("min_speck", "tries"), [(1e-4, ["0.0001", "0.0004", "0.0016"]), (0.0, ["0"])])
def test_a_mask_is_smoothed_until_it_can_be_sent(
    make_engine: Callable[..., Engine], min_speck: float, tries: list[str]
) -> None:
    predictor = Ragged()
    engine = make_engine(lambda: predictor, min_speck=min_speck)
    predictor.asked.clear()

    [found] = engine.predict("a", picture, ["red"]).referents

    assert predictor.asked == ["red", *tries]
    assert isinstance(found, Referent)
    if min_speck:
        assert len(",".join(map(str, mask_to_brush_rle(found.mask)))) < 1e6


def test_parts_above_the_limit_stay_however_ragged_a_mask_is(make_engine: Callable[..., Engine]) -> None:
    predictor = Ragged()
    predictor.enough = 1.0
    engine = make_engine(lambda: predictor, min_speck=1e-3)
    predictor.asked.clear()

    engine.predict("a", picture, ["red"])

    assert predictor.asked == ["red", "0.001", "0.004", f"{MAX_SPECK:g}"]


class Shortsighted(ColourPredictor):
    """Fails at further looks."""

    def look_further(
        self, referents: Sequence[Referent], decoded: Sequence[Referent], viewer: object
    ) -> list[Referent]:
        raise RuntimeError("out of memory")


def test_a_further_look_that_fails_costs_no_answer(
    make_engine: Callable[..., Engine], caplog: pytest.LogCaptureFixture
) -> None:
    [found] = make_engine(Shortsighted).predict("a", picture, ["red"]).referents

    assert isinstance(found, Referent)
    assert found.mask.any()
    assert "out of memory" in caplog.text


def test_the_bound_on_edges_keeps_answers_below_a_megabyte() -> None:
    """Every run of a length that takes most bits: no mask with this number of edges is larger."""
    runs = np.full(MAX_EDGES, 65)
    mask = np.repeat(np.arange(MAX_EDGES) % 2 == 0, runs).reshape(650, -1)

    assert len(",".join(map(str, mask_to_brush_rle(mask)))) < 1e6
