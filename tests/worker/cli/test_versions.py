"""`sspsam versions`: its output, and notifications to backends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from redis import Redis
from typer.testing import CliRunner, Result

from backend.shared_redis import VERSIONS_CHANNEL
from sspsam.version_store.store import UnknownVersionError, VersionCard, VersionStateError, VersionStore
from tests.facts import untold
from worker.cli.commands import app
from worker.lines import load_split, save_split

PRESET = "ssp-sam-test"


@pytest.fixture
def store(
    tmp_path: Path, redis_url: str, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> VersionStore:
    monkeypatch.setenv("MODEL_DIR", str(tmp_path))
    monkeypatch.setenv("PRESET", PRESET)
    monkeypatch.setenv("REDIS_URL", redis_url)
    store = VersionStore(tmp_path, PRESET)
    metrics = {
        "incumbent": {"gIoU": 0.612, "mIoU": 0.6},
        "candidate": {"gIoU": 0.745, "mIoU": 0.7},
        "metric": "gIoU",
        "held_out_samples": 5,
        "held_out_images": 2,
    }
    card = VersionCard(parent=store.base_version, metrics=metrics, data={"project": 3})
    store.publish({"w": torch.ones(2)}, card, {"report.md": "# Better on cups\n", "report.html": "<p>"})
    return store


def run(*words: str) -> Result:
    return CliRunner().invoke(app, ["versions", *words])


def test_list_shows_the_figure_the_status_and_the_reason(store: VersionStore) -> None:
    store.promote("ssp-sam-test-0001", "clearly better")
    lines = {line.split("│")[1].strip(): line for line in run("list").output.splitlines() if "│" in line}
    row = lines["ssp-sam-test-0001"]
    for text in ("gIoU 61.2 -> 74.5 % (5 labels, 2 images)", "promoted", "clearly better", "│ yes"):
        assert text in row
    assert "base weights of the preset" in lines["ssp-sam-test-base"]
    assert "yes" not in lines["ssp-sam-test-base"]


def test_list_as_json(store: VersionStore) -> None:
    cards = json.loads(run("list", "--json").stdout)
    assert [(card["version_id"], card["serves"]) for card in cards] == [
        ("ssp-sam-test-base", True),
        ("ssp-sam-test-0001", False),
    ]


def learn(store: VersionStore, line: str) -> str:
    """Publishes and promotes a version of a line."""
    card = VersionCard(line=line, parent=store.current(line), data={"run": "finetune"})
    version = store.publish({"w": torch.ones(2)}, card, {}).version_id
    store.promote(version, f"better in {line}")
    return version


def test_lists_are_of_all_lines_or_of_a_project_s(store: VersionStore) -> None:
    learn(store, "project-7")
    learn(store, "project-9")
    rows = {row["version_id"]: row["serves_lines"] for row in json.loads(run("list", "--json").stdout)}
    assert rows == {
        "ssp-sam-test-base": ["default"], "ssp-sam-test-0001": [],
        "ssp-sam-test-0002": ["project-7"], "ssp-sam-test-0003": ["project-9"],
    }  # fmt: skip
    rows = {
        row["version_id"]: row["serves"] for row in json.loads(run("list", "--project", "9", "--json").stdout)
    }
    assert rows == {"ssp-sam-test-base": False, "ssp-sam-test-0001": False, "ssp-sam-test-0003": True}
    table = run("list").output
    assert untold(table, "all others", "better in project-7", "better in project-9") == []


def test_rollback_and_promote_are_of_a_line(store: VersionStore, redis_server: Redis) -> None:
    seven, nine = learn(store, "project-7"), learn(store, "project-9")
    refused = run("rollback")
    assert refused.exit_code != 0
    assert untold(refused.output, "project-7", "project-9", "--project") == []
    with redis_server.pubsub(ignore_subscribe_messages=True) as news:
        news.subscribe(VERSIONS_CHANNEL)
        news.get_message(timeout=1)
        assert "ssp-sam-test-base serves project-9 from now on" in run("rollback", "--project", "9").output
        message = news.get_message(timeout=1)
    assert message is not None
    assert json.loads(message["data"]) == {"line": "project-9", "version": "ssp-sam-test-base"}
    assert [store.current(f"project-{project}") for project in (7, 9)] == [seven, store.base_version]
    run("promote", nine)
    assert store.current("project-9") == nine
    assert isinstance(run("promote", nine, "--project", "7").exception, VersionStateError)
    run("promote", store.base_version, "--project", "7")
    assert [store.current(f"project-{project}") for project in (7, 9)] == [store.base_version, nine]


def test_with_one_line_it_need_not_be_named(store: VersionStore) -> None:
    learn(store, "project-7")
    assert "serves project-7" in run("rollback").output
    assert store.current("project-7") == store.base_version


def test_a_project_adopts_and_projects_share(store: VersionStore, tmp_path: Path) -> None:
    seven = learn(store, "project-7")
    save_split(tmp_path, "project-7", {"a": "train", "b": "held-out"})
    save_split(tmp_path, "project-9", {"a": "held-out", "c": "held-out"})
    output = run("adopt", "--project", "9", "--from", "7").output
    assert untold(output, f"ssp-sam-test-0003 is a copy of {seven}", "serves project-9") == []
    assert store.get(store.current("project-9")).parent == seven
    assert load_split(tmp_path, "project-9") == {"a": "train", "b": "held-out", "c": "held-out"}
    output = run("share", "--projects", "3,7").output
    assert "projects 3, 7 share the line projects-3-7" in output
    assert store.get(store.current(store.line_of(3))).parent == seven
    assert load_split(tmp_path, "projects-3-7") == {"a": "train", "b": "held-out"}
    assert run("share", "--projects", "3,x").exit_code != 0
    shared = store.current("projects-3-7")
    run("unshare", "--projects", "3")
    assert store.get(store.current("project-3")).parent == shared
    assert load_split(tmp_path, "project-3") == {"a": "train", "b": "held-out"}


def test_a_shared_line_holds_out_nothing_that_its_weights_were_trained_on(
    store: VersionStore, tmp_path: Path
) -> None:
    nine = learn(store, "project-9")
    save_split(tmp_path, "project-9", {"a": "train"})
    save_split(tmp_path, "project-3", {"a": "held-out"})
    run("share", "--projects", "3,5", "--from", "9")
    assert store.get(store.current(store.line_of(5))).parent == nine
    assert load_split(tmp_path, "projects-3-5") == {"a": "train"}


def test_a_version_of_a_line_that_serves_nobody_is_not_promoted(store: VersionStore) -> None:
    three = learn(store, "project-3")
    run("share", "--projects", "3,5")
    refused = run("promote", three)
    assert refused.exit_code != 0
    assert untold(refused.output, "projects-3-5", "serves project 3", "unshare --projects 3") == []


def test_adopting_from_a_project_without_a_version_says_so(store: VersionStore) -> None:
    learn(store, "project-9")
    output = run("adopt", "--project", "9", "--from", "777").output
    assert untold(output, "project 777 has no version of its own", "ssp-sam-test-base serves project-9") == []


@pytest.mark.parametrize("projects", ["0,-4", "3,", "3,x", "3,1.5", "3," + "9" * 30])
def test_only_numbers_of_projects_share_a_line(store: VersionStore, projects: str) -> None:
    refused = run("share", "--projects", projects)
    assert refused.exit_code != 0
    assert "numbers of projects such as 3,7" in refused.output


def test_many_projects_choose_the_name_of_their_line(store: VersionStore) -> None:
    many = ",".join(str(number) for number in range(100, 120))
    refused = run("share", "--projects", many)
    assert refused.exit_code != 0
    assert "--name" in str(refused.exception)
    assert "share the line birds" in run("share", "--projects", many, "--name", "birds").output


def test_show_prints_card_and_report(store: VersionStore) -> None:
    output = run("show", "ssp-sam-test-0001").output
    assert "parent: ssp-sam-test-base" in output
    assert "# Better on cups" in output
    assert f"report: {store.path('ssp-sam-test-0001') / 'report.html'}" in output
    assert "/reports/ssp-sam-test-0001/report.html" in output
    assert json.loads(run("show", "ssp-sam-test-0001", "--json").stdout)["data"] == {"project": 3}
    assert run("show", "ssp-sam-test-base").exit_code == 0


def test_promote_and_rollback_are_announced(store: VersionStore, redis_server: Redis) -> None:
    with redis_server.pubsub(ignore_subscribe_messages=True) as news:
        news.subscribe(VERSIONS_CHANNEL)
        news.get_message(timeout=1)
        run("promote", "ssp-sam-test-0001")
        assert store.current() == "ssp-sam-test-0001"
        run("rollback", "--reason", "worse on cups")
        messages = [news.get_message(timeout=1) for _ in range(2)]
    assert [json.loads(message["data"]) for message in messages if message] == [
        {"line": "", "version": "ssp-sam-test-0001"},
        {"line": "", "version": "ssp-sam-test-base"},
    ]
    assert store.get("ssp-sam-test-0001").reason == "worse on cups"


def test_without_redis_a_promotion_still_happens(
    store: VersionStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", "redis://127.0.0.1:9")
    done = run("promote", "ssp-sam-test-0001")
    assert done.exit_code == 0
    assert store.current() == "ssp-sam-test-0001"
    assert "within a few seconds" in done.output


def test_what_is_not_possible_is_said(store: VersionStore) -> None:
    assert isinstance(run("promote", "ssp-sam-test-0009").exception, UnknownVersionError)
    assert isinstance(run("rollback").exception, VersionStateError)
    assert "ssp-sam-demo" in run("list", "--preset", "nonsense").output


def test_prune_says_what_would_go_and_goes_only_when_told(store: VersionStore) -> None:
    store.reject("ssp-sam-test-0001", "no better on cups")
    for _ in range(2):
        card = store.publish({"w": torch.ones(2)}, VersionCard(data={"project": 3}), {})
        store.promote(card.version_id)
    said = run("prune", "--keep", "1").output
    assert "ssp-sam-test-base stays: can be rolled back to" in said
    assert "ssp-sam-test-0002 stays: can be rolled back to" in said
    assert "ssp-sam-test-0003 stays: serves" in said
    assert "ssp-sam-test-0001 would go: 0.0 MB, no better on cups" in said
    assert "0.0 MB would be freed; --yes does it" in said
    assert len(store.list()) == 4
    assert "ssp-sam-test-0001 goes" in run("prune", "--keep", "1", "--yes").output
    assert [card.version_id for card in store.list()[1:]] == ["ssp-sam-test-0002", "ssp-sam-test-0003"]
    assert "0.0 MB freed" in run("prune", "--yes").output


def test_versions_may_lie_elsewhere(
    store: VersionStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = (tmp_path / "elsewhere").as_uri()
    card = VersionStore(tmp_path, PRESET, url=url).publish({"w": torch.ones(2)}, VersionCard(), {})
    VersionStore(tmp_path, PRESET, url=url).promote(card.version_id, "better elsewhere")
    monkeypatch.setenv("VERSIONS_URL", url)
    assert "better elsewhere" in run("list").output
    assert "reason: better elsewhere" in run("show", card.version_id).output
    monkeypatch.setenv("VERSIONS_URL", "models")
    refused = run("list")
    assert refused.exit_code == 2
    assert "s3://bucket/folder" in " ".join(refused.output.replace("│", "").split())
