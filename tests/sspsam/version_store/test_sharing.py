"""Sharing a line, leaving it, starting from another's version, and the end of a project."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from sspsam.version_store.lines import line_of_project
from sspsam.version_store.pruning import plan_pruning, prune
from sspsam.version_store.sharing import adopt, restore, retire, share, unshare
from sspsam.version_store.store import VersionCard, VersionStateError, VersionStore

PRESET = "ssp-sam-test"
BASE = f"{PRESET}-base"
THREE, SEVEN, NINE = (line_of_project(project) for project in (3, 7, 9))


@pytest.fixture(params=["folders", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VersionStore:
    url = "" if request.param == "folders" else f"memory://{tmp_path.name}-{request.param}"
    return VersionStore(tmp_path, PRESET, url=url)


def learn(store: VersionStore, line: str, value: float = 1.0) -> str:
    """Publishes and promotes a version with a report."""
    card = VersionCard(line=line, parent=store.current(line), data={"run": "finetune"}, config={"steps": 60})
    files = {"report.html": "pictures of a project"}
    version = store.publish({"w": torch.full((2,), value)}, card, files).version_id
    store.promote(version)
    return version


def test_a_project_starts_from_the_version_of_another(store: VersionStore) -> None:
    original = learn(store, SEVEN, 2.5)
    card = adopt(store, NINE, SEVEN)
    assert (card.line, card.parent, card.status) == (NINE, original, "promoted")
    assert card.reason == f"adopted from {SEVEN}"
    assert store.current(NINE) == card.version_id != original
    torch.testing.assert_close(store.load(card.version_id), store.load(original))
    assert store.file_names(card) == ["weights.safetensors"], "no report with the other project's pictures"
    assert store.current(SEVEN) == original
    learn(store, SEVEN)
    assert store.current(NINE) == card.version_id, "from then on, they are apart"
    assert store.rollback(line=NINE) == BASE


def test_adopting_twice_makes_one_copy(store: VersionStore) -> None:
    learn(store, SEVEN)
    card = adopt(store, NINE, SEVEN)
    assert adopt(store, NINE, SEVEN).version_id == card.version_id
    store.rollback(line=NINE)
    assert adopt(store, NINE, SEVEN).version_id == card.version_id == store.current(NINE)
    assert len(store.list()) == 3


def test_a_line_without_a_version_of_its_own_has_the_default_to_give(store: VersionStore) -> None:
    learn(store, NINE)
    assert adopt(store, NINE, SEVEN).version_id == BASE == store.current(NINE)
    with pytest.raises(VersionStateError, match="its own version"):
        adopt(store, NINE, NINE)


def test_projects_share_a_line_which_starts_with_what_one_of_them_learned(store: VersionStore) -> None:
    learned = learn(store, SEVEN, 2.5)
    line = share(store, [7, 3])
    assert line == "projects-3-7" == store.line_of(3) == store.line_of(7)
    assert store.line_of(9) == NINE
    assert store.get(store.current(line)).parent == learned, "3 has learned nothing yet"
    assert store.get(store.current(line)).line == line
    later = learn(store, line)
    assert share(store, [9], line) == line
    assert [store.current(store.line_of(project)) for project in (3, 7, 9)] == [later] * 3
    assert store.current(SEVEN) == learned


def test_the_version_that_a_shared_line_starts_with_can_be_chosen(store: VersionStore) -> None:
    learn(store, THREE)
    learned = learn(store, SEVEN)
    line = share(store, [3, 7], "bats", source=SEVEN)
    assert (line, store.get(store.current("bats")).parent) == ("bats", learned)


def test_who_leaves_a_shared_line_goes_on_with_its_version(store: VersionStore) -> None:
    line = share(store, [3, 7, 9], "bats")
    learned = learn(store, line, 2.5)
    unshare(store, [7])
    assert store.state().groups == {"bats": (3, 9)}
    assert store.line_of(7) == SEVEN
    assert store.get(store.current(SEVEN)).parent == learned
    unshare(store, [3, 9])
    assert store.state().groups == {}
    with pytest.raises(VersionStateError, match="project 7 shares no line"):
        unshare(store, [7])


@pytest.mark.parametrize(
    ("projects", "name", "problem"),
    [
        ([3], "", "two projects or more"),
        ([3, 3], "", "two projects or more"),
        ([3, 7], "shared", "cannot name a line"),
        ([3, 7], "project-9", "cannot name a line"),
        ([3, 7], "../bats", "cannot name a line"),
        ([3, 7], "Bats", "cannot name a line"),
        ([3, 11], "", "project 11 shares cups: `sspsam versions unshare` first"),
    ],
)
def test_what_cannot_be_shared(store: VersionStore, projects: list[int], name: str, problem: str) -> None:
    share(store, [11, 12], "cups")
    before = store.state()
    with pytest.raises(VersionStateError, match=problem):
        share(store, projects, name)
    assert store.state() == before


def test_where_all_share_one_line_none_share_another(tmp_path: Path) -> None:
    with pytest.raises(VersionStateError, match="MODEL_LINES=shared"):
        share(VersionStore(tmp_path, PRESET, model_lines="shared"), [3, 7])


def test_a_deleted_project_gives_its_versions_to_prune(store: VersionStore) -> None:
    mine, other = learn(store, SEVEN), learn(store, NINE)
    retire(store, 7)
    plan = plan_pruning(store)
    assert list(plan.removed) == [mine]
    prune(store, plan)
    assert [card.version_id for card in store.list()] == [BASE, other]
    assert (store.current(SEVEN), store.current(NINE)) == (BASE, other)
    assert learn(store, NINE) == f"{PRESET}-0003", "no ID is assigned twice"


def test_a_project_that_was_not_deleted_after_all_keeps_its_versions(store: VersionStore) -> None:
    mine = learn(store, SEVEN)
    retire(store, 7)
    restore(store, 7)
    assert (plan_pruning(store).removed, store.current(SEVEN)) == ({}, mine)


def test_projects_that_were_not_deleted_after_all_share_their_line_again(store: VersionStore) -> None:
    learn(store, THREE)
    learn(store, share(store, [3, 7, 9], "bats"), 2.0)
    version = learn(store, "bats", 3.0)
    for project in (3, 7, 9):
        retire(store, project)
    assert version in plan_pruning(store).removed
    for project in (7, 3):
        restore(store, project)
        assert store.line_of(project) == "bats"
        assert store.current(store.line_of(project)) == version
    assert (store.state().groups, store.state().former) == ({"bats": (3, 7)}, {"bats": (9,)})
    assert version not in plan_pruning(store).removed
    restore(store, 3)
    assert store.state().groups == {"bats": (3, 7)}, "once is enough"


def test_a_deleted_project_does_not_come_back_to_a_line_that_others_have_begun(store: VersionStore) -> None:
    share(store, [3, 7], "bats")
    retire(store, 3)
    retire(store, 7)
    share(store, [11, 12], "bats")
    restore(store, 3)
    assert (store.line_of(3), store.state().groups) == (THREE, {"bats": (11, 12)})


def test_a_shared_line_ends_with_its_last_project(store: VersionStore) -> None:
    version = learn(store, share(store, [3, 7], "bats"))
    retire(store, 3)
    assert store.line_of(7) == "bats"
    assert version not in plan_pruning(store).removed
    retire(store, 7)
    assert version in plan_pruning(store).removed
    assert share(store, [11, 12], "bats") == "bats"
    assert version not in plan_pruning(store).removed, "the name is in use again"
