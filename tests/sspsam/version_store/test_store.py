"""The version store: contents, crashes, and concurrent writers."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from sspsam.checkpoints.bundles import frozen_weights
from sspsam.version_store.store import (
    DamagedVersionError,
    ForeignVersionError,
    UnknownVersionError,
    VersionCard,
    VersionStateError,
    VersionStore,
)

PRESET = "ssp-sam-test"


@pytest.fixture
def store(tmp_path: Path) -> VersionStore:
    return VersionStore(tmp_path, PRESET)


def publish(store: VersionStore, value: float = 1.0) -> VersionCard:
    card = VersionCard(parent=store.current(), metrics={"held_out_samples": 3}, data={"digest": "d"})
    return store.publish({"adapter.weight": torch.full((2, 3), value)}, card, {"report.md": "# Report\n"})


def test_an_empty_store_serves_the_base_and_writes_nothing(store: VersionStore, tmp_path: Path) -> None:
    assert store.current() == store.base_version == "ssp-sam-test-base"
    assert [card.version_id for card in store.list()] == ["ssp-sam-test-base"]
    assert store.load(store.base_version) == {}
    assert store.weights_path(store.base_version) is None
    assert store.history() == []
    assert list(tmp_path.iterdir()) == []


def test_published_tensors_come_back_and_do_not_serve_yet(store: VersionStore) -> None:
    card = publish(store, 2.5)
    assert card.version_id == "ssp-sam-test-0001"
    assert card.status == "candidate"
    assert store.get(card.version_id) == card
    torch.testing.assert_close(store.load(card.version_id)["adapter.weight"], torch.full((2, 3), 2.5))
    assert (store.path(card.version_id) / "report.md").read_text() == "# Report\n"
    assert set(card.sha256) == {"weights.safetensors", "report.md"}
    assert store.current() == store.base_version


def test_tensors_that_are_views_are_stored_whole(store: VersionStore) -> None:
    matrix = torch.arange(6.0).reshape(2, 3)
    card = store.publish({"transposed": matrix.T}, VersionCard(), {})
    torch.testing.assert_close(store.load(card.version_id)["transposed"], matrix.T)


def test_promote_and_roll_back_twice(store: VersionStore) -> None:
    first, second = publish(store), publish(store)
    store.promote(first.version_id, "0.41 -> 0.52")
    store.promote(second.version_id, "0.52 -> 0.60")
    assert store.current() == second.version_id
    assert store.get(first.version_id).reason == "0.41 -> 0.52"
    assert store.rollback("worse on cups") == first.version_id
    assert store.get(second.version_id).status == "rejected"
    assert store.get(second.version_id).reason == "worse on cups"
    assert store.rollback() == store.base_version
    with pytest.raises(VersionStateError, match="nothing to roll back to"):
        store.rollback()
    assert [(entry.action, entry.version_id) for entry in store.history()] == [
        ("promote", first.version_id),
        ("promote", second.version_id),
        ("rollback", first.version_id),
        ("rollback", store.base_version),
    ]


def test_promoting_what_serves_changes_no_history(store: VersionStore) -> None:
    card = publish(store)
    store.promote(card.version_id)
    store.promote(card.version_id)
    assert len(store.history()) == 1
    assert store.rollback() == store.base_version


def test_the_base_can_be_promoted_again(store: VersionStore) -> None:
    card = publish(store)
    store.promote(card.version_id)
    store.promote(store.base_version)
    assert store.current() == store.base_version
    assert store.rollback() == card.version_id


def test_a_rejected_version_keeps_its_files_and_reason(store: VersionStore) -> None:
    card = publish(store)
    rejected = store.reject(card.version_id, "0.60 -> 0.58 on 12 held-out samples")
    assert (rejected.status, rejected.reason) == ("rejected", "0.60 -> 0.58 on 12 held-out samples")
    assert "adapter.weight" in store.load(card.version_id)


def test_the_version_that_serves_cannot_be_rejected(store: VersionStore) -> None:
    card = publish(store)
    store.promote(card.version_id)
    with pytest.raises(VersionStateError):
        store.reject(card.version_id, "no")
    assert store.get(card.version_id).status == "promoted"


@pytest.mark.parametrize("version_id", ["ssp-sam-test-0009", "../../etc", "", "ssp-sam-demo-base"])
def test_unknown_versions_are_named_with_the_known_ones(store: VersionStore, version_id: str) -> None:
    publish(store)
    with pytest.raises(UnknownVersionError, match="ssp-sam-test-0001"):
        store.get(version_id)
    with pytest.raises(UnknownVersionError):
        store.promote(version_id)


@pytest.mark.parametrize("name", ["weights.safetensors", "report.md"])
def test_a_changed_file_is_refused(store: VersionStore, name: str) -> None:
    card = publish(store)
    path = store.path(card.version_id) / name
    path.write_bytes(path.read_bytes()[:-1] + b"x")
    with pytest.raises(DamagedVersionError, match=name):
        store.load(card.version_id)
    with pytest.raises(DamagedVersionError, match="sha256"):
        store.promote(card.version_id)
    assert store.current() == store.base_version


def test_a_missing_file_is_refused(store: VersionStore) -> None:
    card = publish(store)
    (store.path(card.version_id) / "weights.safetensors").unlink()
    with pytest.raises(DamagedVersionError, match=r"weights\.safetensors is missing"):
        store.load(card.version_id)


def test_a_pickle_under_the_name_of_the_weights_is_refused(store: VersionStore) -> None:
    card = publish(store)
    folder = store.path(card.version_id)
    torch.save({"adapter.weight": torch.ones(1)}, folder / "weights.safetensors")
    with pytest.raises(DamagedVersionError):
        store.load(card.version_id)


@pytest.fixture
def parents(tmp_path: Path) -> tuple[Path, Path]:
    """Two files of weights."""
    for name in ("one", "other"):
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path / "one", tmp_path / "other"


def test_a_version_of_other_frozen_weights_is_refused(tmp_path: Path, parents: tuple[Path, Path]) -> None:
    one, other = parents
    theirs, ours = VersionStore(tmp_path, PRESET, other), VersionStore(tmp_path, PRESET, one)
    card = VersionCard(parents_sha256=frozen_weights(PRESET, other))
    card = theirs.publish({"w": torch.ones(1)}, card, {})
    own = publish(ours)
    message = (
        rf"{card.version_id} was trained on other \(sha256 \w+\.\.\.\), but would be served with one \(sha256"
    )
    with pytest.raises(ForeignVersionError, match=message):
        ours.load(card.version_id)
    with pytest.raises(ForeignVersionError, match="set WEIGHTS to the file"):
        ours.weights_path(card.version_id)
    with pytest.raises(ForeignVersionError):
        ours.promote(card.version_id)
    assert ours.current() == ours.base_version
    with pytest.raises(ForeignVersionError, match="served with random weights"):
        VersionStore(tmp_path, PRESET).load(card.version_id)
    theirs.promote(card.version_id)
    ours.promote(own.version_id)
    with pytest.raises(ForeignVersionError):
        ours.rollback()
    assert ours.current() == own.version_id


def test_the_same_frozen_weights_may_have_another_name(tmp_path: Path, parents: tuple[Path, Path]) -> None:
    store = VersionStore(tmp_path, PRESET, parents[0])
    card = store.publish(
        {"w": torch.ones(1)}, VersionCard(parents_sha256=frozen_weights(PRESET, parents[0])), {}
    )
    renamed = parents[0].rename(tmp_path / "renamed")
    assert "w" in VersionStore(tmp_path, PRESET, renamed).load(card.version_id)


def test_the_weights_in_the_package_are_parents_as_well(tmp_path: Path, parents: tuple[Path, Path]) -> None:
    store = VersionStore(tmp_path, "ssp-sam-demo")
    card = VersionCard(parents_sha256=frozen_weights("ssp-sam-demo"))
    card = store.publish({"w": torch.ones(1)}, card, {})
    assert set(card.parents_sha256) == {"ssp-sam-demo.safetensors"}
    assert "w" in store.load(card.version_id)
    with pytest.raises(ForeignVersionError, match=r"trained on ssp-sam-demo\.safetensors"):
        VersionStore(tmp_path, "ssp-sam-demo", parents[0]).load(card.version_id)


def test_rollback_to_a_damaged_version_changes_nothing(store: VersionStore) -> None:
    first, second = publish(store), publish(store)
    store.promote(first.version_id)
    store.promote(second.version_id)
    (store.path(first.version_id) / "weights.safetensors").unlink()
    with pytest.raises(DamagedVersionError):
        store.rollback()
    assert store.current() == second.version_id


def test_half_written_folders_are_not_versions(store: VersionStore) -> None:
    publish(store)
    leftover = store.folder / ".0123456789abcdef"
    leftover.mkdir()
    (leftover / "weights.safetensors").write_bytes(b"half")
    assert [card.version_id for card in store.list()] == [store.base_version, "ssp-sam-test-0001"]


def test_a_failed_publish_leaves_nothing(store: VersionStore, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.publish({"w": torch.ones(1)}, VersionCard(), {"report.md": tmp_path / "absent.md"})
    assert list(store.folder.iterdir()) == []


def test_a_version_cannot_bring_a_file_from_outside_its_folder(store: VersionStore) -> None:
    for name in ("card.json", "weights.safetensors", "../report.md", "a/b"):
        with pytest.raises(ValueError, match="cannot contain"):
            store.publish({"w": torch.ones(1)}, VersionCard(), {name: "text"})


def test_an_id_is_not_given_twice(store: VersionStore) -> None:
    card = publish(store)
    store.promote(card.version_id)
    store.rollback()
    for path in store.path(card.version_id).iterdir():
        path.unlink()
    (store.folder / card.version_id).rmdir()
    assert publish(store).version_id == "ssp-sam-test-0002"


def test_cards_of_a_newer_code_can_be_read(store: VersionStore) -> None:
    card = publish(store)
    path = store.path(card.version_id) / "card.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"a_new_field": 1}))
    assert store.get(card.version_id) == card


def test_a_version_with_an_unreadable_card_is_left_out_of_the_list(store: VersionStore) -> None:
    card = publish(store)
    (store.path(card.version_id) / "card.json").write_text("{")
    assert [entry.version_id for entry in store.list()] == [store.base_version]
    with pytest.raises(DamagedVersionError):
        store.get(card.version_id)


def test_a_card_that_cannot_be_opened_for_the_moment_is_not_damaged(store: VersionStore) -> None:
    card = publish(store)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(OSError, match="Too many open files"):
            store.files.card(card.version_id)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert store.get(card.version_id) == card


def test_presets_do_not_see_each_other(tmp_path: Path) -> None:
    publish(VersionStore(tmp_path, "ssp-sam-test"))
    assert len(VersionStore(tmp_path, "ssp-sam-demo").list()) == 1


PUBLISH_MANY = """
import sys, torch
from pathlib import Path
from sspsam.version_store.store import VersionCard, VersionStore
store = VersionStore(Path(sys.argv[1]), "ssp-sam-test")
for _ in range(5):
    card = store.publish({"w": torch.ones(1)}, VersionCard(parent=sys.argv[2]), {})
    store.promote(card.version_id)
"""


@pytest.mark.integration
def test_processes_that_publish_at_once_get_ids_of_their_own(store: VersionStore, tmp_path: Path) -> None:
    writers = [
        subprocess.Popen([sys.executable, "-c", PUBLISH_MANY, str(tmp_path), f"writer-{number}"])
        for number in range(3)
    ]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0, 0]
    cards = store.list()[1:]
    assert [card.version_id for card in cards] == [f"ssp-sam-test-{number:04d}" for number in range(1, 16)]
    assert sorted(card.parent for card in cards) == sorted([f"writer-{n}" for n in range(3)] * 5)
    assert len(store.history()) == 15
    for card in cards:
        store.verify(card.version_id)
