"""One bad value of a project, task or annotation stops only itself, and the start page names it."""

from __future__ import annotations

import errno
import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flask import Flask
from redis import Redis

from backend.serving.engine import Engine
from backend.shared_redis import (
    CORRECTION_SUMS_KEY,
    PROBLEMS_KEY,
    PROJECTS_KEY,
    RECONCILED_KEY,
    SKIPPED_COUNTS_KEY,
    SKIPPED_KEY,
)
from backend.state.known_projects import KnownProject
from backend.state.redis_store import RedisStore
from backend.state.skipped_items import ITEMS_KEPT, SkippedItems, reason_of
from tests.worker.label_studio_server import LabelStudioServer, region
from tests.worker.reconciling import reconcile_all
from worker import jobs
from worker.export.png import INDEX, PngWriter
from worker.export.reader import ProjectReader, export
from worker.projects.prefetch import Prefetched
from worker.queueing.queues import prelabel_queue
from worker.services import Services

Mask = npt.NDArray[np.bool_]
Json = dict[str, Any]
PROJECT, OTHER = 3, 4
BAD, GOOD = 1, 2

pytestmark = pytest.mark.usefixtures("two_tasks")


@pytest.fixture
def two_tasks(label_studio: LabelStudioServer, services: Services, mask: Mask) -> None:
    """Two projects with two annotated tasks each."""
    for project in (PROJECT, OTHER):
        label_studio.add_project(project)
        services.redis_store.projects.note(KnownProject(str(project)))
        for task in (BAD, GOOD):
            number = 10 * project + task
            picture = np.full((*mask.shape, 3), number, dtype=np.uint8)
            label_studio.add_task(number, project, picture)
            label_studio.save(number, number, region("a", "the ring", mask))


def collected(services: Services) -> list[int]:
    return [number for project in (PROJECT, OTHER) for number in services.collection(project).annotations()]


def change(label_studio: LabelStudioServer, **fields: Any) -> None:
    """Gives the bad annotation these fields; `data` goes to its task."""
    number = 10 * PROJECT + BAD
    data = fields.pop("data", None)
    if data is not None:
        label_studio.tasks[number]["data"] = data
    label_studio.annotations[number] |= fields


def brush(mask: Mask, **fields: Any) -> list[Json]:
    return [{**result, **fields} for result in region("a", "the ring", mask)]


BAD_VALUES: dict[str, Json] = {
    "image": {"data": {"image": "http://["}},
    "image of another kind": {"data": {"image": {"a": []}}},
    "no image": {"data": {"image": "/data/upload/3/gone.png"}},
    "no data": {"data": [1]},
    "lead time": {"lead_time": 10**400},
    "created": {"created_at": "yesterday"},
    "id": {"id": "x"},
    "result": {"result": {"a": 1}},
    "results": {"result": [{"id": "a", "from_name": "mask", "value": {"rle": "x"}}]},
}


@pytest.mark.parametrize("name", BAD_VALUES)
def test_reconciliation_goes_on(services: Services, label_studio: LabelStudioServer, name: str) -> None:
    change(label_studio, **BAD_VALUES[name])
    results = reconcile_all(services)
    assert set(collected(services)) >= {32, 41, 42}
    assert all("problem" not in result for result in results.values())
    if 31 not in collected(services):
        [item] = [item for item in services.skipped.of(PROJECT) if "31" in item.item or name == "id"]
        assert item.reason
        assert services.skipped.counts()["collect"] >= 1


def test_a_score_without_bounds_is_none(
    services: Services,
    label_studio: LabelStudioServer,
    mask: Mask,
) -> None:
    change(label_studio, result=brush(mask, score=10**400))
    reconcile_all(services)
    assert collected(services) == [31, 32, 41, 42]


def test_a_bad_annotation_is_collected_once_it_is_mended(
    services: Services,
    label_studio: LabelStudioServer,
) -> None:
    """The change of a picture is no change of its task's annotations."""
    path = label_studio.tasks[31]["data"]["image"]
    picture = label_studio.files.pop(path)
    assert reconcile_all(services)[str(PROJECT)]["problems"] == 1
    assert "annotation 31" in {item.item for item in services.skipped.of(PROJECT)}
    label_studio.files[path] = picture
    assert reconcile_all(services)[str(PROJECT)]["collected"] == 1
    assert services.skipped.of(PROJECT) == []


def test_a_project_without_a_form_stops_no_decision_and_no_other_project(
    services: Services,
    label_studio: LabelStudioServer,
) -> None:
    label_studio.projects[PROJECT]["label_config"] = "<View"
    for results in (reconcile_all(services), jobs.prefetch_projects()):
        assert results.keys() == {str(PROJECT), str(OTHER)}
    assert collected(services) == [41, 42]
    assert {item.work for item in services.skipped.of(PROJECT)} == {"reconcile", "prefetch"}
    assert services.skipped.of(OTHER) == []
    assert jobs.check_projects().keys() == {str(PROJECT), str(OTHER)}


def test_bad_values_in_redis_stop_nothing(services: Services, redis_server: Redis) -> None:
    digits = "7" * 5000
    known = {digits: json.dumps({"project_id": digits}), "x": "[", "5": "7", "6": '{"project_id": 6}'}
    redis_server.hset(PROJECTS_KEY, mapping=known)
    redis_server.lpush(PROBLEMS_KEY.format(project=PROJECT), "[]", "{", b"\xff")
    redis_server.hset(
        CORRECTION_SUMS_KEY, mapping={"[": 1, "[1, 2]": 2, '["x", "v", "l", "edited"]': "1e999"}
    )
    redis_server.hset(SKIPPED_KEY.format(project=PROJECT), "x", "[")
    assert services.known_projects() == [PROJECT, OTHER]
    assert jobs.check_projects().keys() == {str(PROJECT), str(OTHER)}
    assert services.redis_store.problems(str(PROJECT)) == []
    assert services.corrections.sums() == []


POSITIONS = {
    "the beginning of time": {"since": "0001-01-01T00:00:00+00:00", "began_at": "0001-01-01T00:00:00+23:00"},
    "the end of time": {"since": "9999-12-31T23:59:59-23:00", "began_at": "9999-12-31T23:59:59-23:00"},
    "without a zone": {"since": "2026-01-01T00:00:00", "began_at": "2026-01-01T00:00:00", "full": False},
    "of other kinds": {"since": 7, "began_at": [], "counted": 7},
    "unknown": {"else": 1},
}


@pytest.mark.parametrize("name", POSITIONS)
def test_an_odd_position_is_the_beginning(services: Services, redis_server: Redis, name: str) -> None:
    """Each of these would end every reconciliation of the project."""
    for project in (PROJECT, OTHER):
        redis_server.set(RECONCILED_KEY.format(project=project), json.dumps(POSITIONS[name]))
    results = reconcile_all(services)
    assert all("problem" not in result for result in results.values())
    assert services.skipped.of(PROJECT) == []
    assert collected(services) == [31, 32, 41, 42]


def test_counts_without_bounds_stop_no_page(app: Flask, redis_server: Redis) -> None:
    redis_server.hset(SKIPPED_COUNTS_KEY, mapping={"collect": "9" * 5000, "read": "7", b"\xff": "1"})
    metrics = app.test_client().get("/metrics")
    assert 'sspsam_skipped_items{work="read"} 7.0' in metrics.text


def test_a_project_id_without_bounds_is_not_stored(redis_server: Redis) -> None:
    store = RedisStore(redis_server)
    for number in ("7" * 5000, "", "-1", "٣", "x"):
        store.projects.note(KnownProject(number))
    assert {project.project_id for project in store.projects.all()} == {str(OTHER), str(PROJECT)}
    assert redis_server.hlen(PROJECTS_KEY) == 2


def test_the_page_names_what_was_left_out_and_the_metrics_count_it(app: Flask, redis_server: Redis) -> None:
    skipped = SkippedItems(redis_server)
    skipped.note(PROJECT, "collect", "annotation 12", ValueError("<b>bad</b>\x1b[2J\nvalue"))
    for number in range(2 * ITEMS_KEPT):
        skipped.note(PROJECT, "prefetch", f"task {number}", "unreadable")
    page = app.test_client().get("/", headers={"Accept": "text/html"}).text
    assert "annotation 12" in page
    assert "<b>bad" not in page
    assert len(skipped.of(PROJECT)) == ITEMS_KEPT
    metrics = app.test_client().get("/metrics").text
    assert f'sspsam_skipped_items{{work="prefetch"}} {2 * ITEMS_KEPT}.0' in metrics


def test_no_model_is_loaded_for_pictures_that_cannot_be_read(
    services: Services,
    label_studio: LabelStudioServer,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def load(self: Engine) -> None:
        raise AssertionError("a model was loaded")

    monkeypatch.setattr(Engine, "start", load)
    for path in label_studio.files:
        label_studio.files[path] = b"no picture"
    label_studio.annotations.clear()
    assert jobs.prefetch_projects() == {"3": [31, 32], "4": [41, 42]}
    report = jobs.prefetch_chunk(PROJECT, "run", "chunk", [31, 32])
    assert report["problems"].keys() == {"31", "32"}

    for number in prelabel_queue(services.redis).get_job_ids():
        prelabel_queue(services.redis).remove(number)
        services.redis.delete(f"rq:job:{number}")
    assert jobs.prefetch_projects() == {"3": [], "4": [41, 42]}, "not again within two minutes"


def test_attempts_at_a_picture_back_off(services: Services) -> None:
    prefetched, now_s, tried = Prefetched(services.redis, services.settings, PROJECT), 0.0, 0
    while now_s < 24 * 3600:
        if prefetched.due([31], now_s):
            prefetched.note_failure(31, now_s)
            tried += 1
        now_s += 60
    assert 5 <= tried <= 12, "a day of minutes"
    assert prefetched.due([31], now_s - 7 * 24 * 3600) == [31], "a clock that is set back"


@pytest.mark.parametrize("name", BAD_VALUES)
def test_an_export_goes_on(
    services: Services, label_studio: LabelStudioServer, name: str, tmp_path: Path
) -> None:
    change(label_studio, **BAD_VALUES[name])
    reader = ProjectReader(services.label_studio, PROJECT, services.image_hw)
    summary = export(reader, PngWriter(tmp_path / "masks"))
    exported = [json.loads(line) for line in (tmp_path / "masks" / INDEX).read_text().splitlines()]
    assert {line["label_studio_task"] for line in exported} >= {32}
    if len(exported) < 2 and name not in ("result", "results"):
        assert summary.problem_count == 1


def test_a_long_region_id_can_be_exported(
    services: Services, label_studio: LabelStudioServer, mask: Mask, tmp_path: Path
) -> None:
    name = "é/" * 150
    label_studio.save(31, 31, region(name, "the ring", mask) + region(name + "x", "a ring", mask))
    export(ProjectReader(services.label_studio, PROJECT, services.image_hw), PngWriter(tmp_path / "masks"))
    lines = [json.loads(line) for line in (tmp_path / "masks" / INDEX).read_text().splitlines()]
    assert {line["region"] for line in lines} == {name, name + "x", "a"}
    assert len({line["file"] for line in lines}) == 3


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, "No space left on device", "/models/x"), "the disk is full: /models/x"),
        (OSError(errno.EROFS, "Read-only file system", "/models"), "the file system is read-only: /models"),
        (RuntimeError("[enforce fail at inline_container.cc:677] . unexpected pos 64 vs 0"), "disk"),
        (ValueError("a\n\tb"), "ValueError: a b"),
    ],
)
def test_reasons_are_in_plain_words(error: Exception, words: str) -> None:
    assert words in reason_of(error)
    assert "inline_container" not in reason_of(error)
