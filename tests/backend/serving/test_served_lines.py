"""Lines of versions in one engine: each has its own version, swaps and refusals."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cache
from pathlib import Path
from threading import Event

import numpy as np
import pytest
import torch
from redis import Redis

from backend.metrics import Metrics
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from backend.shared_redis import announce_version
from sspsam import Predictor, Referent
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.store import WEIGHTS, DamagedVersionError, VersionCard, VersionStore
from tests.backend.colours import picture
from tests.backend.serving.colour_versions import BASE, PRESET, TOP, ask, promote, promote_state, shift_of
from tests.waiting import wait_until


def value(metrics: Metrics, name: str, **labels: str) -> float:
    return metrics.registry.get_sample_value(name, labels) or 0.0


def test_each_project_is_answered_by_its_line(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    of_one, of_two = promote(versions, 1, 1), promote(versions, 2, 2)
    engine = make_engine()

    assert shift_of(engine, 1) == (of_one, 1)
    assert shift_of(engine, 2) == (of_two, 2)
    assert shift_of(engine, 3) == (BASE, 0), "a line without a version"
    assert shift_of(engine, "") == (BASE, 0), "a request without a project"
    assert [engine.version_of(project) for project in ("1", "2", "3", "")] == [of_one, of_two, BASE, BASE]
    assert engine.status().lines == {"": BASE, "project-1": of_one, "project-2": of_two, "project-3": BASE}


def test_a_shared_line_answers_all(make_engine: Callable[..., Engine], tmp_path: Path) -> None:
    versions = VersionStore(tmp_path, PRESET, model_lines="shared")
    version = versions.publish({"shift": torch.tensor(2)}, VersionCard(line="shared"), {}).version_id
    versions.promote(version)
    engine = make_engine(store=versions)
    assert [shift_of(engine, project) for project in (1, 2, "")] == [(version, 2)] * 3
    assert engine.status().loaded_versions == 1


def test_lines_on_one_version_share_its_tensors(
    make_engine: Callable[..., Engine], versions: VersionStore, metrics: Metrics
) -> None:
    """As in a store from before there were lines: what served then serves every project."""
    version = versions.publish({"shift": torch.tensor(4)}, VersionCard(), {}).version_id
    versions.promote(version)
    engine = make_engine()

    assert [shift_of(engine, project) for project in (1, 2, "")] == [(version, 4)] * 3
    assert engine.status().loaded_versions == 1
    assert value(metrics, "sspsam_version_loads_total") == 1


def test_a_promotion_swaps_its_line_alone(
    make_engine: Callable[..., Engine], versions: VersionStore, metrics: Metrics
) -> None:
    of_one, of_two = promote(versions, 1, 1), promote(versions, 2, 2)
    engine = make_engine()
    shift_of(engine, 1), shift_of(engine, 2)

    newer = promote(versions, 2, 3)
    engine.refresh()

    assert (shift_of(engine, 1), shift_of(engine, 2)) == ((of_one, 1), (newer, 3))
    assert value(metrics, "sspsam_version_swaps_total") == 1
    assert engine.status().loaded_versions == 2, "what no line needs is no longer in memory"

    versions.rollback(line=line_of_project(2))
    engine.refresh()

    assert (shift_of(engine, 1), shift_of(engine, 2)) == ((of_one, 1), (of_two, 2))


def test_a_message_is_enough(
    make_engine: Callable[..., Engine], versions: VersionStore, redis_server: Redis
) -> None:
    engine = make_engine(redis=redis_server, poll_s=0.1)
    assert shift_of(engine, 7) == (BASE, 0)

    version = promote(versions, 7, 2)
    announce_version(redis_server, line_of_project(7), version)

    wait_until(lambda: engine.version_of("7") == version, "it serves")
    assert (shift_of(engine, 7), shift_of(engine, 8)) == ((version, 2), (BASE, 0))


def preset() -> Predictor:
    return Predictor.from_preset(PRESET, "cpu")


@cache
def base_state() -> dict[str, torch.Tensor]:
    return preset().trainable_state()


def near_base(seed: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        key: value + 0.1 * torch.randn(value.shape, generator=generator)
        for key, value in base_state().items()
    }


def same(one: Referent, other: Referent) -> bool:
    """Bit for bit."""
    return np.array_equal(one.mask, other.mask) and (one.score, one.stability, one.box_xyxy) == (
        other.score,
        other.stability,
        other.box_xyxy,
    )


@pytest.mark.slow
def test_answers_stay_bit_for_bit_while_another_line_swaps(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    of_one = promote_state(versions, 1, near_base(1))
    earlier = [promote_state(versions, 2, near_base(seed)) for seed in (2, 3)]
    engine = make_engine(preset)
    expected = {phrase: ask(engine, 1, phrase)[1] for phrase in ("the dog", "a boat on the left")}
    stop, seen = Event(), list[str]()

    def swap() -> None:
        for _ in range(3):
            versions.rollback(line=line_of_project(2))
            engine.refresh()
            seen.append(ask(engine, 2, "the dog")[0])
            versions.promote(earlier[-1], line=line_of_project(2))
            engine.refresh()
            seen.append(ask(engine, 2, "the dog")[0])
        stop.set()

    other = threading.Thread(target=swap)
    other.start()
    while not stop.is_set():
        for phrase, before in expected.items():
            version, found = ask(engine, 1, phrase)
            assert version == of_one
            np.testing.assert_allclose(found.score, before.score, atol=1e-5)
    other.join()

    assert seen == [earlier[0], earlier[1]] * 3
    for phrase, before in expected.items():
        assert same(ask(engine, 1, phrase)[1], before), phrase


def test_versions_leave_and_come_back_with_the_same_answers(
    make_engine: Callable[..., Engine], versions: VersionStore, metrics: Metrics
) -> None:
    projects = (1, 2, 3)
    for project in projects:
        promote_state(versions, project, near_base(project))
    room_for_one = versions.weights_path(versions.current("project-1"))
    assert room_for_one is not None
    engine = make_engine(preset, version_bytes=room_for_one.stat().st_size)
    first = {project: ask(engine, project, "the dog") for project in projects}
    again = {project: ask(engine, project, "the dog") for project in projects}

    for project in projects:
        (before_version, before), (version, found) = first[project], again[project]
        assert version == before_version
        assert same(found, before)
    assert not same(first[1][1], first[2][1])
    status = engine.status()
    assert (status.loaded_versions, status.loaded_bytes) == (1, room_for_one.stat().st_size)
    assert value(metrics, "sspsam_version_loads_total") == 6


def damage(versions: VersionStore, version: str) -> None:
    (versions.path(version) / WEIGHTS).write_bytes(b"damaged")


def test_a_damaged_version_is_refused_for_its_line_alone(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    of_one, of_two = promote(versions, 1, 1), promote(versions, 2, 2)
    engine = make_engine()
    shift_of(engine, 1), shift_of(engine, 2)
    bad, newer = promote(versions, 1, 5), promote(versions, 2, 3)
    damage(versions, bad)

    engine.refresh()

    assert (shift_of(engine, 1), shift_of(engine, 2)) == ((of_one, 1), (newer, 3))
    [refusal] = engine.status().refusals
    assert (refusal.line, refusal.version, refusal.serving) == ("project-1", bad, of_one)
    assert "sha256" in refusal.reason
    good = promote(versions, 1, 6)
    engine.refresh()
    assert shift_of(engine, 1) == (good, 6)
    assert (engine.status().refusals, of_two in engine.status().lines.values()) == ([], False)


def test_a_cold_line_with_a_damaged_version_is_served_by_the_one_before(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    good, bad, only = promote(versions, 1, 1), promote(versions, 1, 2), promote(versions, 2, 3)
    damage(versions, bad)
    damage(versions, only)
    engine = make_engine()

    assert shift_of(engine, 1) == (good, 1)
    assert shift_of(engine, 2) == (BASE, 0), "nothing served it before"
    assert {refusal.version for refusal in engine.status().refusals} == {bad, only}
    engine.refresh()
    assert engine.version_of("1") == good


def test_lines_without_a_version_go_on_with_what_served_them(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    """A damaged default version concerns them all, whether they were asked before or not."""
    good, bad = (
        versions.publish({"shift": torch.tensor(shift)}, VersionCard(), {}).version_id for shift in (1, 2)
    )
    versions.promote(good)
    engine = make_engine()
    assert shift_of(engine, 1) == (good, 1)
    damage(versions, bad)
    with pytest.raises(DamagedVersionError):
        versions.promote(bad)
    state = versions.state()
    versions.change_state(lambda _: replace(state, default=replace(state.default, version_id=bad)))
    engine.refresh()

    assert [shift_of(engine, project) for project in (1, 2, "")] == [(good, 1)] * 3
    assert engine.version_of("3") == good


def test_a_version_that_was_damaged_after_it_left_memory_is_refused(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    of_one, of_two = promote(versions, 1, 1), promote(versions, 2, 2)
    engine = make_engine(version_bytes=0)
    assert shift_of(engine, 1) == (of_one, 1)
    assert shift_of(engine, 2) == (of_two, 2), "there is room for one"
    damage(versions, of_one)

    assert shift_of(engine, 1) == (BASE, 0)
    assert of_one in engine.status().refused


@pytest.mark.slow
def test_no_answer_is_another_lines_while_versions_come_and_go(
    make_engine: Callable[..., Engine], versions: VersionStore
) -> None:
    """Six projects ask from eight threads, with room for two versions, during promotions of all of them."""
    projects, stop = range(1, 7), Event()
    allowed = {project: {promote(versions, project, project): project} for project in projects}
    file = versions.weights_path(versions.current("project-1"))
    assert file is not None
    size = file.stat().st_size
    engine = make_engine(version_bytes=2 * size)
    most: list[int] = []
    answered: set[int] = set()

    def annotate(number: int) -> list[tuple[int, str, int]]:
        seen = []
        while not stop.is_set():
            project = projects[(number + len(seen)) % len(projects)]
            caller = Caller(f"{project}/{number}", project=str(project))
            answer = engine.predict("picture", picture, ["red", "red again"], caller)
            tops = [int(np.flatnonzero(one.mask.any(axis=1))[0]) for one in answer.referents]
            assert tops[0] == tops[1]
            seen.append((project, answer.version, tops[0] - TOP))
            most.append(engine.status().loaded_bytes)
            answered.add(project)
        return seen

    with ThreadPoolExecutor(8) as pool:
        threads = [pool.submit(annotate, number) for number in range(8)]
        for project in (*projects, *projects):
            shift = 7 + project if len(allowed[project]) == 1 else project
            allowed[project][promote(versions, project, shift)] = shift
            engine.refresh()
        wait_until(lambda: answered == set(projects), "all were answered")
        stop.set()
        seen = [one for thread in threads for one in thread.result(60)]

    assert all(allowed[project].get(version) == shift for project, version, shift in seen)
    assert max(most) <= 2 * size
    assert [shift_of(engine, project)[1] for project in projects] == list(projects), "the newest serve"
