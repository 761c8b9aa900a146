"""Lines of versions: one for each project, apart from each other, in every kind of storage."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from sspsam.version_store.lines import line_of_project, project_of_line
from sspsam.version_store.pruning import plan_pruning
from sspsam.version_store.store import CURRENT, VersionCard, VersionStateError, VersionStore

PRESET = "ssp-sam-test"
BASE = f"{PRESET}-base"
SEVEN, NINE = line_of_project(7), line_of_project(9)


@pytest.fixture(params=["folders", "memory"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> VersionStore:
    url = "" if request.param == "folders" else f"memory://{tmp_path.name}-{request.param}"
    return VersionStore(tmp_path, PRESET, url=url)


def publish(store: VersionStore, line: str = "", **card: object) -> str:
    values = {"parent": store.current(line), "line": line, **card}
    return store.publish({"w": torch.ones(2)}, VersionCard(**values), {}).version_id  # type: ignore[arg-type]


def test_each_project_has_a_line_which_starts_at_the_base(store: VersionStore) -> None:
    assert (store.line_of(7), store.line_of(9), store.line_of(None)) == (SEVEN, NINE, "")
    assert [store.current(line) for line in (SEVEN, NINE, "")] == [BASE] * 3
    assert (project_of_line(SEVEN), project_of_line("project-x"), project_of_line("7")) == (7, None, None)


def test_a_promotion_serves_its_own_line_alone(store: VersionStore) -> None:
    first, second = publish(store, SEVEN), publish(store, NINE)
    store.promote(first, "koalas")
    assert [store.current(line) for line in (SEVEN, NINE, "")] == [first, BASE, BASE]
    store.promote(second, "guitars")
    assert [store.current(line) for line in (SEVEN, NINE, "")] == [first, second, BASE]
    assert store.rollback("worse", line=NINE) == BASE
    assert [store.current(line) for line in (SEVEN, NINE, "")] == [first, BASE, BASE]
    assert (store.get(second).status, store.get(second).reason) == ("rejected", "worse")
    assert store.get(first).status == "promoted"
    assert [entry.version_id for entry in store.history(SEVEN)] == [first]
    assert [entry.version_id for entry in store.history(NINE)] == [second, BASE]
    assert store.history() == []


def test_ids_are_unique_over_all_lines_and_lists_are_by_line(store: VersionStore) -> None:
    first, second, third = publish(store, SEVEN), publish(store, NINE), publish(store)
    assert [first, second, third] == [f"{PRESET}-000{number}" for number in (1, 2, 3)]
    assert [card.version_id for card in store.list()] == [BASE, first, second, third]
    assert [card.version_id for card in store.list(SEVEN)] == [BASE, first, third]
    assert [card.line for card in store.list(NINE)] == ["", NINE, ""]


def test_a_version_of_another_line_cannot_be_promoted_into_a_line(store: VersionStore) -> None:
    version = publish(store, SEVEN)
    with pytest.raises(VersionStateError, match=f"{version} belongs to {SEVEN}, not to {NINE}"):
        store.promote(version, line=NINE)
    with pytest.raises(VersionStateError, match="the default line"):
        store.promote(version, line="")
    assert [store.current(line) for line in (SEVEN, NINE, "")] == [BASE] * 3


def test_a_rejection_does_not_keep_a_line_from_following_the_default(store: VersionStore) -> None:
    rejected, default = publish(store, SEVEN), publish(store)
    store.reject(rejected, "no better")
    assert store.get(rejected).status == "rejected"
    store.promote(default)
    assert store.current(SEVEN) == default


def test_what_serves_any_line_cannot_be_rejected(store: VersionStore) -> None:
    version = publish(store)
    store.promote(version, line=NINE)
    with pytest.raises(VersionStateError, match="it serves"):
        store.reject(version, "no")


def test_judgements_of_a_version_without_a_line_are_by_line(store: VersionStore) -> None:
    """It serves one project, and was rolled back for another."""
    version = publish(store)
    store.promote(version, "better")
    store.rollback("worse on bats", line=NINE)
    by_line = {line: store.list(line)[1] for line in (SEVEN, NINE, "")}
    assert {line: card.status for line, card in by_line.items()} == {
        SEVEN: "promoted", NINE: "rejected", "": "promoted",
    }  # fmt: skip
    assert (by_line[NINE].reason, store.get(version).reason) == ("worse on bats", "better")


def test_the_base_can_be_promoted_in_one_line(store: VersionStore) -> None:
    version = publish(store)
    store.promote(version)
    assert store.promote(BASE, line=SEVEN).version_id == BASE
    assert [store.current(line) for line in (SEVEN, NINE)] == [BASE, version]
    assert store.rollback(line=SEVEN) == version


def test_the_ids_of_every_line_are_not_given_twice(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET)
    version = publish(store, SEVEN)
    store.promote(version)
    store.rollback(line=SEVEN)
    store.files.remove(store.get(version))
    assert publish(store, NINE) == f"{PRESET}-0002"


def test_one_line_for_all_projects(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET, model_lines="shared")
    assert {store.line_of(project) for project in (7, 9, None)} == {"shared"}
    version = publish(store, "shared")
    store.promote(version)
    assert store.current(store.line_of(9)) == version
    assert VersionStore(tmp_path, PRESET).current(SEVEN) == BASE, "modes have lines of their own"


def test_prune_keeps_the_serving_and_the_latest_versions_of_each_line(store: VersionStore) -> None:
    old, serving, latest = (publish(store, SEVEN, data={"run": "finetune"}) for _ in range(3))
    only = publish(store, NINE, data={"run": "finetune"})
    store.promote(serving)
    for version in (old, latest, only):
        store.reject(version, "no better")
    plan = plan_pruning(store, keep_latest=0)
    assert list(plan.removed) == [old]
    assert plan.kept == {
        serving: "serves", BASE: "serves",
        latest: f"the latest of {SEVEN}: records what was learned",
        only: f"the latest of {NINE}: records what was learned",
    }  # fmt: skip


STATE_OF_0_2 = {
    "version_id": f"{PRESET}-0002",
    "stack": [BASE, f"{PRESET}-0001"],
    "history": [
        {"action": "promote", "version_id": f"{PRESET}-0001", "before": BASE, "at": "2026-11-01T10:00:00"},
        {
            "action": "promote", "version_id": f"{PRESET}-0002", "before": f"{PRESET}-0001",
            "at": "2026-11-02T10:00:00",
        },
    ],
    "judgements": {
        f"{PRESET}-0001": {"status": "promoted", "reason": "better"},
        f"{PRESET}-0002": {"status": "promoted", "reason": "better again"},
    },
}  # fmt: skip
"""As release 0.2 wrote it."""


def test_a_store_from_before_there_were_lines_goes_on(tmp_path: Path) -> None:
    store = VersionStore(tmp_path, PRESET)
    first, second = publish(store), publish(store)
    (store.folder / CURRENT).write_text(json.dumps(STATE_OF_0_2))
    assert [store.current(line) for line in (SEVEN, NINE, "", "shared")] == [second] * 4
    third = publish(store, SEVEN)
    assert store.get(third).parent == second
    store.promote(third)
    assert [store.current(line) for line in (SEVEN, NINE)] == [third, second]
    assert [store.rollback(line=SEVEN) for _ in range(3)] == [second, first, BASE]
    assert store.current(NINE) == second
    kept = json.loads((store.folder / CURRENT).read_text())
    assert {name: kept[name] for name in STATE_OF_0_2} == STATE_OF_0_2, "a 0.2 could read it"
