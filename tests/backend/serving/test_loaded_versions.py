"""Versions in memory: bounded, least recently used out, never one in use; a load blocks no other version."""

from __future__ import annotations

import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Event
from typing import Any

import pytest

from backend.errors import TooLateError
from backend.serving.batch_queue import Caller
from backend.serving.loaded_versions import LoadedVersions
from tests.waiting import wait_until

SIZE = 100
ANYONE = Caller()


class Store:
    """Files of SIZE bytes, one per version; counts loads, and holds those of some versions back."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.loads: list[str] = []
        self.held: dict[str, Event] = {}
        self.broken: set[str] = set()

    def find(self, version: str) -> Path:
        if version in self.held:
            assert self.held[version].wait(20)
        if version in self.broken:
            raise ValueError(f"{version} is damaged")
        path = self.folder / version
        path.write_bytes(b"0" * SIZE)
        return path

    def load(self, path: Path) -> Any:
        self.loads.append(path.name)
        return [path.name]


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


@pytest.fixture
def make(store: Store) -> Callable[[int], LoadedVersions]:
    return lambda count: LoadedVersions(count * SIZE, store.find, store.load)


def test_a_version_is_loaded_once_and_stays(store: Store, make: Callable[[int], LoadedVersions]) -> None:
    loaded = make(2)
    for version in ("a", "b", "a", "b"):
        used = loaded.use(version, ANYONE)
        assert used.model == [version]
        used.release()

    assert store.loads == ["a", "b"]
    assert (len(loaded), loaded.size_bytes) == (2, 2 * SIZE)


def test_the_least_recently_used_goes_first(store: Store, make: Callable[[int], LoadedVersions]) -> None:
    loaded = make(2)
    for version in ("a", "b", "a", "c"):
        loaded.use(version, ANYONE).release()

    assert ["a" in loaded, "b" in loaded, "c" in loaded] == [True, False, True]
    loaded.use("b", ANYONE).release()
    assert store.loads == ["a", "b", "c", "b"]


def test_a_version_in_use_goes_only_when_it_is_released(
    store: Store, make: Callable[[int], LoadedVersions]
) -> None:
    loaded = make(1)
    used = loaded.use("a", ANYONE)
    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(loaded.use, "b", ANYONE)
        wait_until(lambda: "a" not in loaded, "it accepts no further users")
        again = pool.submit(loaded.use, "a", ANYONE)
        assert used.model == ["a"]
        assert store.loads == ["a"], "no room yet"
        used.release()
        other.result(20).release()
        again.result(20).release()

    assert store.loads == ["a", "b", "a"]
    assert loaded.size_bytes == SIZE


def test_one_that_is_larger_than_the_limit_is_served(make: Callable[[int], LoadedVersions]) -> None:
    loaded = make(0)
    for version in ("a", "b"):
        used = loaded.use(version, ANYONE)
        assert (used.model, len(loaded)) == ([version], 1)
        used.release()


def test_a_slow_load_holds_up_no_other_version(store: Store, make: Callable[[int], LoadedVersions]) -> None:
    store.held["cold"] = Event()
    loaded = make(3)
    with ThreadPoolExecutor(3) as pool:
        cold = [pool.submit(loaded.use, "cold", ANYONE) for _ in range(2)]
        loaded.use("a", ANYONE).release()
        loaded.use("b", ANYONE).release()
        assert not any(one.done() for one in cold)
        store.held["cold"].set()
        assert [one.result(20).model for one in cold] == [["cold"]] * 2
    assert store.loads.count("cold") == 1, "the second waits for the first one's load"


def test_a_load_that_fails_fails_for_all_that_wait_and_is_tried_again_later(
    store: Store, make: Callable[[int], LoadedVersions]
) -> None:
    store.held["a"], store.broken = Event(), {"a"}
    loaded = make(1)
    with ThreadPoolExecutor(2) as pool:
        waiting = [pool.submit(loaded.use, "a", ANYONE) for _ in range(2)]
        store.held["a"].set()
        for one in waiting:
            with pytest.raises(ValueError, match="a is damaged"):
                one.result(20)
    assert (len(loaded), loaded.size_bytes) == (0, 0)
    store.broken.clear()
    assert loaded.use("a", ANYONE).model == ["a"]


def test_a_caller_without_time_left_does_not_wait(
    store: Store, make: Callable[[int], LoadedVersions]
) -> None:
    loaded = make(1)
    used = loaded.use("a", ANYONE)

    with pytest.raises(TooLateError):
        loaded.use("b", Caller("hurried", time.monotonic() + 0.02))

    used.release()
    assert loaded.use("b", ANYONE).model == ["b"]


def test_a_dropped_version_leaves_once_it_is_unused(make: Callable[[int], LoadedVersions]) -> None:
    loaded = make(2)
    used = loaded.use("a", ANYONE)
    loaded.drop("a")
    loaded.drop("unknown")
    assert loaded.size_bytes == SIZE
    used.release()
    assert loaded.size_bytes == 0


def test_many_threads_never_exceed_the_limit(store: Store, make: Callable[[int], LoadedVersions]) -> None:
    loaded, most = make(3), list[int]()

    def ask(seed: int) -> None:
        rng = random.Random(seed)
        for _ in range(60):
            version = f"v{rng.randrange(6)}"
            used = loaded.use(version, Caller(until_s=time.monotonic() + 20))
            assert used.model == [version]
            most.append(loaded.size_bytes)
            if rng.random() < 0.1:
                time.sleep(0.0005)
            if rng.random() < 0.05:
                loaded.drop(version)
            used.release()

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(ask, seed) for seed in range(8)]:
            done.result(60)

    assert max(most) <= 3 * SIZE
    assert len(loaded) <= 3
