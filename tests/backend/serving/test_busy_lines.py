"""Lines of versions in one engine that load slowly, fail or are busy hold up no other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest
import torch

from backend.errors import ModelBusyError
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from sspsam import Referent
from sspsam.version_store.store import VersionCard, VersionStore
from tests.backend.colours import ColourPredictor, picture
from tests.backend.serving.colour_versions import BASE, PRESET, promote, shift_of
from tests.waiting import wait_until


class BusyStore(VersionStore):
    """Promotes another version while one is being found."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PRESET)
        self.meanwhile: Callable[[], None] = lambda: None

    def weights_path(self, version_id: str) -> Path | None:
        self.meanwhile()
        return super().weights_path(version_id)


def test_a_promotion_during_a_load_serves_the_next_request(
    make_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    versions = BusyStore(tmp_path)
    before = promote(versions, 1, 1)
    after = versions.publish({"shift": torch.tensor(2)}, VersionCard(line="project-1"), {}).version_id
    engine = make_engine(store=versions)

    def promote_once() -> None:
        versions.meanwhile = lambda: None
        versions.promote(after)
        engine.refresh()

    versions.meanwhile = promote_once
    assert shift_of(engine, 1) == (before, 1), "it was the newest when the request came"
    assert shift_of(engine, 1) == (after, 2)


class SlowStore(VersionStore):
    """Finds some versions only when it may, and fails for others."""

    def __init__(self, folder: Path) -> None:
        super().__init__(folder, PRESET)
        self.slow, self.may_find, self.finding = "", Event(), Event()
        self.unreadable: set[str] = set()
        self.error: Exception = OSError("stale file handle")

    def weights_path(self, version_id: str) -> Path | None:
        if version_id in self.unreadable:
            raise self.error
        if version_id == self.slow:
            self.finding.set()
            assert self.may_find.wait(20)
        return super().weights_path(version_id)


def test_a_cold_line_holds_up_no_other(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    versions = SlowStore(tmp_path)
    versions.slow, of_two = promote(versions, 1, 1), promote(versions, 2, 2)
    versions.finding.clear()
    versions.may_find.set()
    engine = make_engine(store=versions, poll_s=0.1)
    versions.may_find.clear()
    with ThreadPoolExecutor(1) as pool:
        cold = pool.submit(shift_of, engine, 1)
        assert versions.finding.wait(20)
        assert [shift_of(engine, 2) for _ in range(3)] == [(of_two, 2)] * 3
        assert not cold.done()
        versions.may_find.set()
        assert cold.result(20) == (versions.slow, 1)


@pytest.mark.parametrize(
    "error",
    [
        OSError("stale file handle"),
        MemoryError(),
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB."),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 4096 bytes."),
    ],
)
def test_a_disk_or_memory_that_fails_for_a_moment_refuses_no_version(
    make_engine: Callable[..., Engine], tmp_path: Path, error: Exception
) -> None:
    versions = SlowStore(tmp_path)
    versions.error = error
    before, now = promote(versions, 1, 1), promote(versions, 1, 2)
    versions.unreadable = {now}
    engine = make_engine(store=versions, poll_s=0.05)
    assert shift_of(engine, 1) == (before, 1), "the one before serves meanwhile"
    assert engine.status().refusals == []
    versions.unreadable.clear()
    wait_until(lambda: engine.version_of("1") == now, "it is tried again")
    assert shift_of(engine, 1) == (now, 2)


class Held(ColourPredictor):
    """Answers only when it may."""

    def __init__(self) -> None:
        super().__init__()
        self.may_answer, self.answering = Event(), Event()
        self.models: list[Sequence[Any]] = []

    def decode(self, questions: Sequence[Any], models: Sequence[Any] | None = None) -> list[Referent]:
        if questions[0].phrase != "warm up":
            self.answering.set()
            assert self.may_answer.wait(20)
            self.models.append(models or [])
        return super().decode(questions, models)


def test_a_pass_holds_phrases_of_several_lines(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    expected = {project: (promote(versions, project, project), project) for project in (1, 2, 3)}
    predictor = Held()
    engine = make_engine(lambda: predictor, max_batch=8)

    with ThreadPoolExecutor(4) as pool:
        first = pool.submit(shift_of, engine, 9)
        assert predictor.answering.wait(20)
        rest = {project: pool.submit(shift_of, engine, project) for project in expected}
        wait_until(lambda: engine.waiting()["phrases"] == 3, "all wait")
        predictor.may_answer.set()
        assert {project: one.result(20) for project, one in rest.items()} == expected
        assert first.result(20) == (BASE, 0)

    assert [len(models) for models in predictor.models] == [1, 3]


def test_a_version_in_a_pass_stays_in_memory(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    of_one, of_two = promote(versions, 1, 1), promote(versions, 2, 2)
    predictor = Held()
    engine = make_engine(lambda: predictor, version_bytes=1)

    with ThreadPoolExecutor(2) as pool:
        one = pool.submit(shift_of, engine, 1)
        assert predictor.answering.wait(20)
        two = pool.submit(shift_of, engine, 2)
        wait_until(lambda: of_one not in engine._loaded_versions, "it is to leave")
        assert engine.status().loaded_versions == 1
        assert not two.done()
        predictor.may_answer.set()
        assert (one.result(20), two.result(20)) == ((of_one, 1), (of_two, 2))


def test_a_busy_line_does_not_lock_out_a_rare_one(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    rare = promote(versions, 2, 2)
    predictor = Held()
    engine = make_engine(lambda: predictor, queue_limit=8, max_batch=2)

    def busy(number: int) -> str:
        return engine.predict("picture", picture, ["red"], Caller(f"1/{number}", project="1")).version

    with ThreadPoolExecutor(10) as pool:
        first = [pool.submit(busy, number) for number in range(8)]
        wait_until(lambda: engine._model._entrance.inside == 8, "the queue is full")
        with pytest.raises(ModelBusyError):
            busy(8)
        alone = pool.submit(shift_of, engine, 2)
        wait_until(lambda: engine._model._entrance.inside == 9, "it is admitted")
        with pytest.raises(ModelBusyError):
            shift_of(engine, 2)
        predictor.may_answer.set()
        assert alone.result(20) == (rare, 2)
        assert [one.result(20) for one in first] == [BASE] * 8


def test_callers_of_a_rare_line_get_their_turn(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    """One phrase behind forty of a busy line's annotator is answered in the next pass."""
    promote(versions, 2, 2)
    predictor = Held()
    engine = make_engine(lambda: predictor, max_batch=4)

    with ThreadPoolExecutor(3) as pool:
        first = pool.submit(shift_of, engine, 3)
        assert predictor.answering.wait(20)
        red = [f"red {number}" for number in range(40)]
        many = pool.submit(engine.predict, "picture", picture, red, Caller("1/busy", project="1"))
        wait_until(lambda: engine.waiting()["phrases"] == 40, "the busy line waits")
        rare = pool.submit(shift_of, engine, 2)
        wait_until(lambda: engine.waiting()["phrases"] == 41, "and the rare one")
        predictor.may_answer.set()
        assert rare.result(20)[1] == 2
        first.result(20), many.result(20)

    shifts = [
        [0 if model is None else int(model["shift"]) for model in models] for models in predictor.models
    ]
    assert 2 in shifts[1], "the pass after the running one"
