"""What callers name stays bounded, in memory, metrics and Redis: projects, lines, labels, phrases."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest
from redis import Redis

from backend import events
from backend.corrections import CorrectionLog, Tally
from backend.errors import QueueUnavailableError
from backend.events import EventQueue
from backend.labelstudio.form_xml import MAX_CHARACTERS
from backend.labelstudio.predictions import ProposedRegion
from backend.metrics import MOST_SERIES, OTHERS, Metrics
from backend.serving import served_lines
from backend.serving.loaded_versions import LoadedVersions
from backend.serving.served_lines import ServedLines
from backend.serving.shared_model import ANONYMOUS
from backend.shared_redis import (
    CORRECTION_SUMS_KEY,
    EVENTS,
    LAST_WEBHOOK_KEY,
    NOTHING_FOUND_KEY,
    PROBLEMS_KEY,
    PROJECTS_KEY,
    PROMPT_BOX_KEY,
    RECONCILE,
    SHOWN_KEY,
    ServiceQueue,
)
from backend.state import known_projects, redis_store
from backend.state.displayed_masks import DisplayedMask
from backend.state.known_projects import KnownProject
from backend.state.redis_store import MOST_NOT_FOUND, MOST_SHOWN, RedisStore, WrittenBox
from sspsam import VersionStore
from tests.worker.label_studio_server import LabelStudioServer
from worker import jobs
from worker.services import Services

PROJECT, TASK = "5", "7"
MOST = 10
"""In place of the bounds."""
MANY = 3 * MOST


@pytest.fixture
def store(redis_server: Redis, monkeypatch: pytest.MonkeyPatch) -> RedisStore:
    assert known_projects.MOST_PROJECTS <= 10_000
    monkeypatch.setattr(known_projects, "MOST_PROJECTS", MOST)
    return RedisStore(redis_server)


def test_projects_that_callers_name_are_bounded_and_known_ones_stay(
    store: RedisStore, redis_server: Redis
) -> None:
    store.projects.note(KnownProject(PROJECT, title="ours"))
    for number in range(100, 100 + MANY):
        store.projects.note(KnownProject(str(number)))
        store.projects.set_last_webhook_time(str(number))
    assert redis_server.hlen(PROJECTS_KEY) == redis_server.hlen(LAST_WEBHOOK_KEY) == MOST
    store.projects.note(KnownProject(PROJECT, label_config="<View/>"))
    known = store.projects.get(PROJECT)
    assert known is not None
    assert (known.title, known.label_config) == ("ours", "<View/>")


def test_a_form_is_stored_up_to_the_length_that_is_read(store: RedisStore, redis_server: Redis) -> None:
    store.projects.note(KnownProject(PROJECT, label_config="x" * 5 * MAX_CHARACTERS))
    assert redis_server.memory_usage(PROJECTS_KEY) < 3 * MAX_CHARACTERS
    known = store.projects.get(PROJECT)
    assert known is not None
    assert len(known.label_config) == MAX_CHARACTERS + 1, "it is still too long"


def test_the_phrases_and_masks_of_a_task_are_bounded(store: RedisStore, redis_server: Redis) -> None:
    newest = [f"phrase {number}" for number in range(2 * MOST_NOT_FOUND)]
    for first in range(0, len(newest), 100):
        store.note_nothing_found(PROJECT, TASK, newest[first : first + 100], [], "v")
    stored = redis_server.hkeys(NOTHING_FOUND_KEY.format(project=PROJECT, task=TASK))
    assert len(stored) == MOST_NOT_FOUND
    assert newest[-1].encode() in stored
    store.note_nothing_found(PROJECT, TASK, newest, [], "v")
    assert len(store.nothing_found(PROJECT, TASK)) <= MOST_NOT_FOUND

    rle = {"size": [1, 1], "counts": "01"}
    for number in range(4 * MOST_SHOWN):
        store.note_shown(PROJECT, TASK, [DisplayedMask(f"r{number}", "", rle, shown_s=float(number))])
    assert redis_server.hlen(SHOWN_KEY.format(project=PROJECT, task=TASK)) <= 2 * MOST_SHOWN
    assert [mask.region_id for mask in store.shown(PROJECT, TASK)][-1] == f"r{4 * MOST_SHOWN - 1}"


def test_the_proposals_of_a_task_are_bounded(
    store: RedisStore, redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An annotator can ask any number of phrases, and each mask is kept for 30 days."""
    assert redis_store.MOST_SERVED <= 10_000
    monkeypatch.setattr(redis_store, "MOST_SERVED", MOST)
    mask = np.ones((1, 1), np.bool_)
    for number in range(MANY):
        region = ProposedRegion(f"r{number}", f"phrase {number}", mask, 1.0)
        store.note_served([(region, {"size": [1, 1], "counts": "01"})], "v", PROJECT, TASK)
    assert len(redis_server.keys("sspsam:served:*")) == MOST
    assert store.served(f"r{MANY - 1}") is not None
    assert store.served("r0") is None, "counts as corrected"


def test_long_texts_are_not_stored(store: RedisStore, redis_server: Redis) -> None:
    store.note_box(PROJECT, TASK, WrittenBox("box", ["a phrase"]))
    store.note_box(PROJECT, TASK, WrittenBox("box", ["x" * 10**7]))
    assert store.box(PROJECT, TASK) is None, "nor the content of before"
    for _ in range(20):
        store.note_problem(PROJECT, TASK, "x" * 10**6)
    assert redis_server.memory_usage(PROBLEMS_KEY.format(project=PROJECT)) < 20_000
    assert not redis_server.exists(PROMPT_BOX_KEY.format(project=PROJECT, task=TASK))


def test_labels_leave_no_sums_behind(redis_server: Redis) -> None:
    """An annotator can save an annotation again and again, each time with another label."""
    log = CorrectionLog(redis_server)
    for number in range(MANY):
        log.note(5, 1, [Tally("v", f"label {number} {'x' * 10_000}", accepted=1, iou=0.1)])
    assert redis_server.hlen(CORRECTION_SUMS_KEY) == 2
    assert redis_server.memory_usage(CORRECTION_SUMS_KEY) < 2000
    log.note(5, 2, [Tally("v", "b", accepted=1, iou=0.3), Tally("v", "b", edited=1, iou=0.1)])
    log.forget(5, [1])
    assert [one.tally for one in log.sums()] == [Tally("v", "b", accepted=1, edited=1, iou=0.4)]


@pytest.mark.parametrize(
    "stored",
    [
        "{",
        "[[]]",
        "[" * 100_000,
        '[{"version": 7, "label": []}]',
        '[{"version": "v", "label": "l", "accepted": "x"}]',
        '[{"version": "v", "label": "l", "accepted": 1e999}]',
    ],
)
def test_counts_that_are_none_stop_no_annotation(redis_server: Redis, stored: str) -> None:
    redis_server.hset("sspsam:corrections:5", "1", stored)
    redis_server.hset("sspsam:submitted:5", "1", stored)
    log = CorrectionLog(redis_server)
    assert all(isinstance(region, str) for region in log.submitted(5, 1))
    log.note(5, 1, [Tally("v", "l", accepted=1)])
    assert [one.tally for one in log.sums()] == [Tally("v", "l", accepted=1)]


def test_metrics_name_the_lines_and_labels_with_the_most_masks() -> None:
    metrics, count = Metrics(), 4 * MOST_SERIES
    tallies = [(f"project-{n}", Tally("v", f"label {n}", accepted=n + 1, iou=n + 1)) for n in range(count)]
    metrics.set_corrections(tallies)
    text = metrics.render("v", "ready", 0, 0).decode()
    for name in ("sspsam_line_corrections{", "sspsam_corrections{"):
        assert text.count(name) == 5 * (MOST_SERIES + 1)
    assert f'sspsam_corrections{{label="label {count - 1}",outcome="accepted",version="v"}} {count}.0' in text
    rest = sum(range(1, count - MOST_SERIES + 1))
    others = {"line": OTHERS, "outcome": "accepted"}
    assert metrics.registry.get_sample_value("sspsam_line_corrections", others) == rest
    metrics.set_corrections(tallies[:1])
    assert metrics.render("v", "ready", 0, 0).decode().count("sspsam_line_corrections{") == 5


def test_lines_that_callers_name_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert served_lines.MOST_LINES <= 10_000
    monkeypatch.setattr(served_lines, "MOST_LINES", MOST)
    versions = VersionStore(tmp_path, "ssp-sam-test")
    lines = ServedLines(versions, LoadedVersions(10**6, Path, NotImplemented), Metrics())
    lines.read()
    for number in range(1, MANY + 1):
        lines.use(str(number), ANONYMOUS).release()
        lines.use("1", ANONYMOUS).release()
    assert len(lines.in_use()) == MOST
    assert {"project-1", f"project-{MANY}"} <= lines.in_use().keys(), "those asked last"
    since_s = time.thread_time()
    lines.refresh()
    assert time.thread_time() - since_s < 1


def test_a_full_queue_takes_one_reconciliation_of_all(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert events.MAX_WAITING <= 10_000
    monkeypatch.setattr(events, "MAX_WAITING", MOST)
    queue = EventQueue(redis_server)
    for number in range(1, MANY):
        project = {"project": {"id": number}}
        queue.handle({"action": "ANNOTATION_CREATED", "annotation": {"id": number}, **project})
        queue.handle({"action": "TASKS_DELETED", **project})
    jobs_of = {name: ServiceQueue(name, redis_server).get_job_ids() for name in (EVENTS, RECONCILE)}
    assert len(jobs_of[EVENTS]) == MOST + 1
    assert jobs_of[EVENTS][-1] == "reconcile-projects", "reads what has no job"
    assert len(jobs_of[RECONCILE]) == MOST
    with pytest.raises(QueueUnavailableError):
        queue.handle({"action": "START_TRAINING", "project": {"id": 99}})


def test_projects_that_do_not_exist_leave_no_trace(
    services: Services, label_studio: LabelStudioServer, redis_server: Redis
) -> None:
    """Each is asked for once in Label Studio, and then forgotten."""
    label_studio.add_project(3)
    before = services.store.state()
    for number in range(100, 100 + MANY):
        services.redis_store.projects.note(KnownProject(str(number)))
        services.redis_store.projects.set_last_webhook_time(str(number))
        services.redis_store.note_problem(str(number), TASK, "x")
        services.skipped.note(number, "collect", "task 1", "x")
        redis_server.hset(f"sspsam:collected:{number}", "1", "x")
        redis_server.hset(f"sspsam:corrections:days:{number}", "1", "1")
        redis_server.hset(f"sspsam:prefetch-failed:{number}", "1", "x")
        result = jobs.reconcile_project(number)
        assert isinstance(result, dict)
        assert result.get("deleted")
    assert services.store.state() == before
    left = [key for key in redis_server.keys("sspsam:*") if key != b"sspsam:skipped-counts"]
    assert left == []
