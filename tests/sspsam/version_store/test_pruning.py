"""Pruning: which versions are removed or kept, why, and no leftover files."""

from __future__ import annotations

from pathlib import Path
from threading import Thread
from typing import Any

import pytest
import torch

from sspsam.version_store.pruning import plan_pruning, prune
from sspsam.version_store.store import UnknownVersionError, VersionCard, VersionStateError, VersionStore

PRESET = "ssp-sam-test"


@pytest.fixture(params=["folders", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VersionStore:
    url = "" if request.param == "folders" else f"memory://{tmp_path.name}-{request.param}"
    return VersionStore(tmp_path, PRESET, url=url)


def publish(store: VersionStore, count: int, **card: Any) -> list[str]:
    published = [store.publish({"w": torch.ones(100)}, VersionCard(**card), {}) for _ in range(count)]
    return [card.version_id for card in published]


def reject_all(store: VersionStore, version_ids: list[str]) -> None:
    for version_id in version_ids:
        store.reject(version_id, "no better")


def test_what_serves_what_it_can_go_back_to_and_the_latest_stay(store: VersionStore) -> None:
    ids = publish(store, 6)
    reject_all(store, [ids[0], ids[2], ids[4], ids[5]])
    store.promote(ids[1])
    store.promote(ids[3])
    plan = plan_pruning(store, keep_latest=1)
    assert list(plan.removed) == [ids[0], ids[2], ids[4]]
    assert plan.kept == {
        ids[1]: "can be rolled back to", ids[3]: "serves", ids[5]: "among the latest",
        store.base_version: "can be rolled back to",
    }  # fmt: skip
    assert all(400 < size_bytes < 10_000 for size_bytes in plan.removed.values())
    assert plan.bytes_freed == sum(plan.removed.values())
    assert len(store.list()) == 7, "a plan removes nothing"

    prune(store, plan)
    assert [card.version_id for card in store.list()] == [store.base_version, ids[1], ids[3], ids[5]]
    with pytest.raises(UnknownVersionError):
        store.load(ids[0])
    assert store.rollback() == ids[1]
    assert store.rollback() == store.base_version
    assert plan_pruning(store, keep_latest=1).removed.keys() == {ids[1], ids[3]}


@pytest.mark.parametrize("keep_latest", range(8))
def test_as_many_of_the_latest_stay_as_there_are(store: VersionStore, keep_latest: int) -> None:
    ids = publish(store, 4, line="project-7")
    reject_all(store, ids)
    assert list(plan_pruning(store, keep_latest).removed) == ids[: max(0, 4 - keep_latest)]


def test_what_was_rolled_back_can_go_but_the_base_serves(store: VersionStore) -> None:
    [version_id] = publish(store, 1)
    store.promote(version_id)
    store.rollback()
    plan = plan_pruning(store, keep_latest=0)
    assert (list(plan.removed), plan.kept) == ([version_id], {store.base_version: "serves"})


def test_what_is_not_judged_and_what_tells_what_was_learned_stays(store: VersionStore) -> None:
    """The latest of a project says which labels were learned: without it they would be learned again."""
    ids = publish(store, 2, data={"project": 3}) + publish(store, 1, data={"project": 4}) + publish(store, 2)
    reject_all(store, ids[:-1])
    plan = plan_pruning(store, keep_latest=0)
    assert list(plan.removed) == [ids[0], ids[3]]
    assert plan.kept[ids[1]] == "the latest of project 3: records what was learned"
    assert plan.kept[ids[2]].startswith("the latest of project 4")
    assert plan.kept[ids[4]] == "not judged yet"


def test_no_id_is_given_again(store: VersionStore) -> None:
    ids = publish(store, 2)
    reject_all(store, ids)
    prune(store, plan_pruning(store, keep_latest=0))
    assert publish(store, 1) == [f"{PRESET}-0003"]


def test_what_is_needed_by_now_is_not_removed(store: VersionStore) -> None:
    ids = publish(store, 2)
    reject_all(store, ids)
    plan = plan_pruning(store, keep_latest=0)
    store.promote(ids[1], "it was better after all")
    with pytest.raises(VersionStateError, match=f"{ids[1]} is needed now"):
        prune(store, plan)
    assert store.current() == ids[1]
    assert "w" in store.load(ids[1])


def test_nothing_of_a_version_is_left_behind(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET)
    reject_all(store, publish(store, 1))
    prune(store, plan_pruning(store, keep_latest=0))
    assert [path.name for path in store.folder.iterdir() if path.is_dir()] == []


def test_a_negative_number_is_refused(store: VersionStore) -> None:
    with pytest.raises(ValueError, match="0 or more, got -1"):
        plan_pruning(store, keep_latest=-1)


def test_a_version_is_not_promoted_while_it_is_removed(tmp_path: Path) -> None:
    """In folders, the promotion waits for the removal, and is then refused."""
    store = VersionStore(tmp_path, PRESET)
    (version,) = publish(store, 1)
    store.reject(version, "no better")
    plan = plan_pruning(store, keep_latest=0)
    remove, refused, threads = store.files.remove, [], []

    def promote() -> None:
        try:
            store.promote(version)
        except UnknownVersionError as error:
            refused.append(error)

    def remove_slowly(card: VersionCard) -> None:
        threads.append(Thread(target=promote))
        threads[0].start()
        threads[0].join(0.3)
        remove(card)

    store.files.remove = remove_slowly  # type: ignore[method-assign]
    prune(store, plan)
    threads[0].join()
    assert len(refused) == 1
    assert store.current() == store.base_version


def test_two_that_prune_at_once_end_without_an_error(store: VersionStore) -> None:
    versions = publish(store, 3)
    reject_all(store, versions)
    plan = plan_pruning(store, keep_latest=0)
    prune(store, plan)
    prune(store, plan)
    assert plan_pruning(store, keep_latest=0).removed == {}
