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
from worker.cli.commands import app

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
    for text in ("gIoU 61.2 -> 74.5 % (5 masks, 2 images)", "promoted", "clearly better", "│ yes"):
        assert text in row
    assert "base weights of the preset" in lines["ssp-sam-test-base"]
    assert "yes" not in lines["ssp-sam-test-base"]


def test_list_as_json(store: VersionStore) -> None:
    cards = json.loads(run("list", "--json").stdout)
    assert [(card["version_id"], card["serves"]) for card in cards] == [
        ("ssp-sam-test-base", True),
        ("ssp-sam-test-0001", False),
    ]


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
