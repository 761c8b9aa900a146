"""Versions in folders and object stores: the same operations, and the state after a crash at any point."""

from __future__ import annotations

import os
import time
import uuid
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
import torch
from fsspec.implementations.local import LocalFileSystem

from sspsam.version_store.objects import KEPT_STATES, VersionObjects
from sspsam.version_store.places import check_versions_url
from sspsam.version_store.store import (
    DamagedVersionError,
    UnknownVersionError,
    UnreachableStoreError,
    VersionCard,
    VersionStateError,
    VersionStore,
)

PRESET = "ssp-sam-test"
FIRST, SECOND = f"{PRESET}-0001", f"{PRESET}-0002"

MakeStore = Callable[[], VersionStore]
"""Each call is another process's view of one store; what they have fetched is each its own."""


class ObjectsOnDisk(LocalFileSystem):
    """Makes an object whole or not at all, and not where there is one, as S3 does."""

    cachable = False

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **kwargs: Any) -> None:
        self.makedirs(self._parent(path), exist_ok=True)
        aside = Path(self._parent(path)).parent / f"{uuid.uuid4().hex}.aside"
        aside.write_bytes(value)
        try:
            os.link(aside, path) if mode == "create" else os.replace(aside, path)
        finally:
            aside.unlink(missing_ok=True)


def objects_on_disk(root: Path, disk: Path) -> VersionStore:
    """An object store whose objects are files on a disk."""
    store = VersionStore(root, PRESET)
    store.files = VersionObjects(str(disk), PRESET, root / "fetched", ObjectsOnDisk(auto_mkdir=True))
    return store


@pytest.fixture(params=["folders", "file URL", "memory", "objects on a disk"])
def make_store(request: pytest.FixtureRequest, tmp_path: Path) -> MakeStore:
    roots = (tmp_path / f"machine-{number}" for number in range(100))
    url = {
        "folders": "",
        "file URL": (tmp_path / "a store").as_uri(),
        "memory": f"memory://bucket/{uuid.uuid4().hex}",
    }
    if request.param == "folders":
        return lambda: VersionStore(tmp_path / "shared", PRESET)
    if request.param == "objects on a disk":
        return lambda: objects_on_disk(next(roots), tmp_path / "disk")
    return lambda: VersionStore(next(roots), PRESET, url=url[request.param])


def publish(store: VersionStore, value: float = 1.0, **card: Any) -> VersionCard:
    return store.publish({"w": torch.full((2, 3), value)}, VersionCard(**card), {"report.md": f"# {value}\n"})


def ids(store: VersionStore) -> list[str]:
    return [card.version_id for card in store.list()[1:]]


def test_what_one_machine_publishes_serves_on_another(make_store: MakeStore) -> None:
    here, there = make_store(), make_store()
    assert (there.list()[1:], there.current()) == ([], f"{PRESET}-base")
    card = publish(here, 2.5, parent=here.base_version, data={"project": 3})
    assert card.version_id == FIRST
    assert there.list()[1:] == [card]
    torch.testing.assert_close(there.load(FIRST)["w"], torch.full((2, 3), 2.5))
    report = there.file(FIRST, "report.md")
    assert report is not None
    assert report.read_text() == "# 2.5\n"
    assert there.file(FIRST, "other.md") is None
    assert {path.name for path in there.path(FIRST).iterdir()} >= {"weights.safetensors", "report.md"}
    here.promote(FIRST, "better")
    assert there.current() == FIRST
    assert (there.get(FIRST).status, there.get(FIRST).reason) == ("promoted", "better")


def test_steps_are_the_same_everywhere(make_store: MakeStore) -> None:
    store, other = make_store(), make_store()
    publish(store)
    publish(other)
    assert ids(store) == [FIRST, SECOND]
    store.promote(FIRST)
    other.promote(SECOND)
    with pytest.raises(VersionStateError, match="serves"):
        store.reject(SECOND, "no")
    assert store.rollback("worse on cups") == FIRST
    assert (other.get(SECOND).status, other.get(SECOND).reason) == ("rejected", "worse on cups")
    assert other.rollback() == store.base_version
    with pytest.raises(VersionStateError, match="nothing to roll back to"):
        store.rollback()
    assert [(entry.action, entry.version_id) for entry in other.history()] == [
        ("promote", FIRST), ("promote", SECOND), ("rollback", FIRST), ("rollback", store.base_version),
    ]  # fmt: skip
    with pytest.raises(UnknownVersionError, match=f"there are: {PRESET}-base, {FIRST}, {SECOND}"):
        store.promote(f"{PRESET}-0007")


@pytest.mark.parametrize("make_store", ["folders", "file URL", "objects on a disk"], indirect=True)
def test_writers_at_once_get_ids_of_their_own_and_lose_no_step(make_store: MakeStore) -> None:
    stores = [make_store() for _ in range(4)]

    def write(store: VersionStore) -> None:
        for _ in range(3):
            store.promote(publish(store).version_id)

    with ThreadPoolExecutor(len(stores)) as pool:
        list(pool.map(write, stores))
    assert ids(stores[0]) == [f"{PRESET}-{number:04d}" for number in range(1, 13)]
    assert len(stores[0].history()) == 12
    assert {entry.version_id for entry in stores[0].history()} == set(ids(stores[0]))


@pytest.mark.parametrize("make_store", ["folders", "file URL", "objects on a disk"], indirect=True)
def test_of_writers_at_once_of_the_same_thing_one_publishes_it(make_store: MakeStore) -> None:
    stores, runs = [make_store() for _ in range(6)], ("this", "that")
    all_have_looked = Barrier(len(stores), timeout=60)

    def write(number: int) -> VersionCard:
        store, run, looks = stores[number], runs[number % 2], 0

        def find() -> VersionCard | None:
            nonlocal looks
            found = next((card for card in store.list() if card.data.get("run") == run), None)
            looks += 1
            if looks == 1:  # nothing is there that anybody could find
                all_have_looked.wait()
            return found

        return store.publish({"w": torch.ones(1)}, VersionCard(data={"run": run}), {}, find)

    with ThreadPoolExecutor(len(stores)) as pool:
        cards = list(pool.map(write, range(len(stores))))
    assert ids(stores[0]) == [FIRST, SECOND]
    for run in runs:
        [card] = [card for card in stores[0].list() if card.data.get("run") == run]
        assert [one for one in cards if one.data["run"] == run] == [card] * 3


# Object stores alone


@pytest.fixture
def disk(tmp_path: Path) -> Path:
    return tmp_path / "disk"


@pytest.fixture
def objects(tmp_path: Path, disk: Path) -> MakeStore:
    roots = (tmp_path / f"machine-{number}" for number in range(100))
    return lambda: objects_on_disk(next(roots), disk)


def test_a_file_is_fetched_once_and_again_when_it_was_damaged_here(objects: MakeStore, disk: Path) -> None:
    publish(objects())
    here = objects()
    path = here.weights_path(FIRST)
    assert path is not None
    uploaded = next(disk.rglob("weights.safetensors"))
    aside = uploaded.rename(uploaded.with_suffix(".away"))
    assert here.weights_path(FIRST) == path, "from this machine"
    path.write_bytes(b"damaged")
    with pytest.raises(DamagedVersionError, match=r"weights\.safetensors is missing"):
        here.weights_path(FIRST)
    aside.rename(uploaded)
    assert "w" in here.load(FIRST)


def test_what_need_not_be_published_leaves_nothing(objects: MakeStore, disk: Path) -> None:
    card = publish(objects())
    again = objects().publish({"w": torch.ones(1)}, VersionCard(), {}, lambda: card)
    assert again == card
    assert ids(objects()) == [FIRST]
    assert len(list((disk / PRESET / "files").iterdir())) == 1


def test_an_object_that_is_not_what_was_published_is_refused(objects: MakeStore, disk: Path) -> None:
    publish(objects())
    next(disk.rglob("weights.safetensors")).write_bytes(b"other")
    store = objects()
    with pytest.raises(DamagedVersionError, match="differs from what was published"):
        store.promote(FIRST)
    assert store.current() == store.base_version
    assert not [path for path in store.folder.rglob("*") if path.is_file()], "nothing of it stays here"


@pytest.mark.parametrize(
    "card",
    ["", "[]", '{"files": "../../secret", "sha256": {}}', '{"files": 3, "sha256": {"report.md": "0"}}'],
)
def test_a_card_that_is_none_is_a_damaged_version(objects: MakeStore, disk: Path, card: str) -> None:
    publish(objects())
    (disk / PRESET / "cards" / f"{FIRST}.json").write_text(card)
    with pytest.raises(DamagedVersionError):
        objects().load(FIRST)
    objects().list()


def test_a_damaged_state_is_named(objects: MakeStore, disk: Path) -> None:
    store = objects()
    store.promote(publish(store).version_id)
    next((disk / PRESET / "states").iterdir()).write_text("{")
    with pytest.raises(DamagedVersionError, match=f"{PRESET}/states cannot be read"):
        store.current()
    assert ids(store) == [FIRST]


def test_old_states_go_and_the_last_stays(objects: MakeStore, disk: Path) -> None:
    store = objects()
    publish(store)
    publish(store)
    for turn in range(KEPT_STATES):
        store.promote((FIRST, SECOND)[turn % 2])
    assert len(list((disk / PRESET / "states").iterdir())) == KEPT_STATES
    assert store.current() == SECOND
    assert len(objects().history()) == KEPT_STATES


class Broken(LocalFileSystem):
    """A store that refuses everything."""

    cachable = False

    def ls(self, path: str, detail: bool = False, **kwargs: Any) -> Any:
        raise PermissionError("Access Denied")


def test_a_store_that_refuses_is_named(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET)
    store.files = VersionObjects("s3://bucket/models", PRESET, tmp_path / "fetched", Broken())
    with pytest.raises(UnreachableStoreError, match="s3://bucket/models: PermissionError: Access Denied"):
        store.current()


@pytest.mark.parametrize(
    "url", ["models", "s3://", "file://models/here", "nosuch://bucket/models", "ftp://host/models"]
)
def test_a_url_that_names_no_store_is_refused(url: str) -> None:
    with pytest.raises(ValueError, match=url):
        check_versions_url(url)


# What such a process leaves


@pytest.fixture
def old() -> Iterator[Callable[[Path], None]]:
    def make_old(folder: Path) -> None:
        for path in (folder, *folder.rglob("*")):
            os.utime(path, (time.time() - 2 * 86400,) * 2)

    return make_old


def test_what_a_dead_writer_left_is_found_when_it_is_a_day_old(
    objects: MakeStore, disk: Path, tmp_path: Path, old: Callable[[Path], None]
) -> None:
    folders = VersionStore(tmp_path / "folders", PRESET)
    for store, place in ((objects(), disk / PRESET / "files"), (folders, folders.folder)):
        publish(store)
        left = place / (".left" if store is folders else "left")
        left.mkdir()
        (left / "weights.safetensors").write_bytes(b"half")
        assert store.files.leftovers() == {}, "it may still be written"
        old(left)
        assert store.files.leftovers() == {left.name: 4}
        store.files.remove_leftover(left.name)
        assert not left.exists()
        assert ids(store) == [FIRST]
