"""Concurrent, early and repeated triggers: one fine-tune, and no lost request."""

from __future__ import annotations

import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import numpy as np
import pytest
import torch
from rq.job import JobStatus
from rq.registry import StartedJobRegistry

from backend.console.jobs import dismiss_failed
from backend.shared_redis import WANTED_KEY
from backend.state.known_projects import KnownProject
from finetune.data.records import read_records
from sspsam import mask_to_coco_rle
from sspsam.version_store.store import VersionCard
from tests.facts import untold
from tests.worker.finetuning.test_runs import PROJECT, record
from worker import jobs
from worker.finetuning.decisions import maybe_start_finetune
from worker.finetuning.policy import Trigger
from worker.finetuning.runs import HELD_OUT_FILE, TRAIN_FILE, run_folder
from worker.queueing.queues import events_queue, redis_lock, training_queue
from worker.queueing.schedule import Schedule
from worker.services import Services

AUTOMATIC: tuple[Trigger, ...] = ("schedule", "annotation", "after-finetune")
IN_QUIET_HOURS = datetime(2026, 3, 2, 9, 0, tzinfo=UTC)
IN_THE_EVENING = datetime(2026, 3, 2, 19, 0, tzinfo=UTC)


def label(services: Services, images: int) -> None:
    """Corrected masks on this number of images, as they are stored once collected."""
    for number in range(images):
        made = record(number, services.settings.images_dir, annotation=number + 1)
        services.collection(PROJECT).replace(number + 1, [made])
    services.redis_store.projects.note(KnownProject(str(PROJECT)))


@pytest.fixture
def with_quiet_hours(services: Services) -> Services:
    settings = services.settings.model_copy(update={"quiet_hours": ("08:00-18:00",)})
    label(services, images=2)  # fewer corrections than FINETUNE_AFTER
    return Services(settings)


def wanted(services: Services) -> bytes | None:
    kept = services.redis.get(WANTED_KEY.format(line=PROJECT))
    assert kept is None or isinstance(kept, bytes)
    return kept


def finetunes(services: Services) -> list[str]:
    return list(training_queue(services.redis).get_job_ids())


def test_ten_triggers_at_once_start_one_fine_tune(services: Services) -> None:
    label(services, images=8)
    triggers = ["annotation", "schedule", "start-training", "now", "after-finetune"] * 2
    with ThreadPoolExecutor(len(triggers)) as pool:
        decisions = list(
            pool.map(lambda it: maybe_start_finetune(Services(services.settings), PROJECT, it), triggers)
        )
    assert sum(decision.start for decision in decisions) == 1
    [run_id] = finetunes(services)
    assert all(run_id in decision.reason for decision in decisions if not decision.start)
    assert wanted(services) is None, "those who asked have what they asked for"


DECIDE_OFTEN = """
import sys
from concurrent.futures import ThreadPoolExecutor
from backend.settings import Settings
from worker.finetuning.decisions import maybe_start_finetune
from worker.services import Services
print("ready", flush=True)
sys.stdin.readline()
with ThreadPoolExecutor(5) as pool:
    asked = (maybe_start_finetune, Services(Settings()), int(sys.argv[1]), sys.argv[2])
    futures = [pool.submit(*asked) for _ in range(5)]
[future.result() for future in futures]
"""


@pytest.mark.integration
def test_processes_that_decide_at_once_start_one_fine_tune(
    services: Services, environment: dict[str, str]
) -> None:
    label(services, images=8)
    root = str(Path(__file__).parents[3])
    others = [
        subprocess.Popen(
            [sys.executable, "-c", DECIDE_OFTEN, str(PROJECT), trigger],
            env={**environment, "PYTHONPATH": root},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for trigger in ("start-training", "schedule")
    ]
    for other in others:
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
    for other in others:
        assert other.stdin is not None
        other.stdin.write("go\n")
        other.stdin.flush()
    assert [other.wait(timeout=120) for other in others] == [0, 0]
    for other in others:
        other.communicate()
    assert len(finetunes(services)) == 1


def test_corrected_boxes_start_a_fine_tune_and_a_quarter_is_held_out(services: Services) -> None:
    whole = mask_to_coco_rle(np.ones((6, 8), dtype=np.bool_))
    for number in range(8):
        made = record(number, services.settings.images_dir, annotation=number + 1)
        services.collection(PROJECT).replace(number + 1, [replace(made, is_box=True, served_rle=whole)])

    decision = maybe_start_finetune(services, PROJECT, "annotation")

    assert decision.start, decision.reason
    assert f"8 of {services.settings.finetune_after} new" in decision.reason
    [run_id] = finetunes(services)
    folder = run_folder(services.settings.model_dir, run_id)
    held_out = read_records(folder / HELD_OUT_FILE)
    assert [(label.is_box, label.kind) for label in held_out] == [(True, "corrected")] * 2
    assert len(read_records(folder / TRAIN_FILE)) == 6


def test_two_schedules_start_one_fine_tune(services: Services) -> None:
    label(services, images=8)
    for _ in range(2):
        Schedule(services.redis, {"worker.jobs.check_projects": 60}).enqueue_jobs()
    assert [job.func_name for job in events_queue(services.redis).jobs] == ["worker.jobs.check_projects"] * 2
    with ThreadPoolExecutor(2) as pool:
        checks = list(pool.map(lambda _: jobs.check_projects(), range(2)))
    assert sorted(check[str(PROJECT)]["start"] for check in checks) == [False, True]
    assert len(finetunes(services)) == 1


def test_a_fine_tune_that_a_worker_is_just_taking_is_not_started_again(services: Services) -> None:
    """Between the queue and the registry of what runs, a job is in neither."""
    label(services, images=8)
    assert maybe_start_finetune(services, PROJECT, "now").start
    queue = training_queue(services.redis)
    [job] = queue.jobs
    queue.remove(job)
    assert job.get_status() == JobStatus.QUEUED
    assert StartedJobRegistry(queue=queue).get_job_ids() == []
    decision = maybe_start_finetune(services, PROJECT, "start-training")
    assert not decision.start
    assert job.id in decision.reason
    assert finetunes(services) == []


@pytest.mark.parametrize("status", [JobStatus.FAILED, JobStatus.STOPPED])
def test_a_fine_tune_that_was_removed_starts_only_when_a_person_asks(
    services: Services, status: JobStatus
) -> None:
    label(services, images=8)
    assert maybe_start_finetune(services, PROJECT, "annotation").start
    queue = training_queue(services.redis)
    [job] = queue.jobs
    queue.remove(job)
    job.set_status(status)

    assert "removed" in dismiss_failed(services.redis, job.id)

    for trigger in AUTOMATIC:
        decision = maybe_start_finetune(services, PROJECT, trigger)
        assert (decision.start, finetunes(services)) == (False, [])
        assert "was removed; Start Training" in decision.reason
    assert maybe_start_finetune(services, PROJECT, "start-training").start
    assert finetunes(services) == [job.id]


def test_what_was_asked_for_in_quiet_hours_is_done_when_they_are_over(with_quiet_hours: Services) -> None:
    services = with_quiet_hours
    decision = maybe_start_finetune(services, PROJECT, "start-training", IN_QUIET_HOURS)
    assert decision.deferred
    assert "2026-03-02 18:00 UTC" in decision.reason
    assert wanted(services) == b"start-training"
    assert maybe_start_finetune(services, PROJECT, "schedule", IN_QUIET_HOURS).deferred
    assert finetunes(services) == []
    kept = services.redis_store.worker.decision(f"project-{PROJECT}")
    assert (kept["trigger"], kept["deferred"]) == ("start-training", True)
    assert maybe_start_finetune(services, PROJECT, "schedule", IN_THE_EVENING).start, (
        "though no threshold is reached"
    )
    assert len(finetunes(services)) == 1
    assert wanted(services) is None


def test_without_a_wish_the_schedule_waits_for_the_threshold(with_quiet_hours: Services) -> None:
    decision = maybe_start_finetune(with_quiet_hours, PROJECT, "schedule", IN_THE_EVENING)
    assert (decision.start, decision.reason) == (False, "2 of 4 new corrected masks")


def test_now_is_now_and_outranks_an_earlier_wish(with_quiet_hours: Services) -> None:
    assert maybe_start_finetune(with_quiet_hours, PROJECT, "start-training", IN_QUIET_HOURS).deferred
    assert maybe_start_finetune(with_quiet_hours, PROJECT, "now", IN_QUIET_HOURS).start
    assert wanted(with_quiet_hours) is None


def test_what_was_asked_for_while_another_decision_was_made_is_not_lost(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    label(services, images=2)
    monkeypatch.setattr("worker.finetuning.decisions.LOCK_WAIT_S", 0.0)
    with redis_lock(services.redis, "sspsam:lock:decision", wait_s=0):
        decision = maybe_start_finetune(services, PROJECT, "start-training")
    assert (decision.start, decision.deferred) == (False, True)
    assert maybe_start_finetune(services, PROJECT, "schedule").start


def test_what_was_asked_for_while_a_fine_tune_runs_is_done_after_it_with_the_new_labels(
    services: Services,
) -> None:
    label(services, images=2)
    assert maybe_start_finetune(services, PROJECT, "start-training").start
    [first] = training_queue(services.redis).jobs
    again = maybe_start_finetune(services, PROJECT, "start-training")
    assert (again.start, again.deferred) == (False, False), "it learns just these labels"
    label(services, images=3)
    later = maybe_start_finetune(services, PROJECT, "start-training")
    assert (later.start, later.deferred) == (False, True)
    publish(services, first.id, datetime.now(UTC))
    first.delete()
    assert maybe_start_finetune(services, PROJECT, "after-finetune").start
    assert finetunes(services) != [first.id]


def publish(services: Services, run_id: str, at: datetime) -> VersionCard:
    """What a fine-tune leaves behind."""
    folder = run_folder(services.settings.model_dir, run_id)
    card = VersionCard(data={"run": run_id, "project": PROJECT})
    card = services.store.publish({"w": torch.ones(1)}, card, {"run.json": folder / "run.json"})
    return replace(card, created_at=at.isoformat())


def test_two_fine_tunes_lie_apart_and_the_wish_for_the_second_is_kept(services: Services) -> None:
    label(services, images=2)
    maybe_start_finetune(services, PROJECT, "now")
    [first] = training_queue(services.redis).jobs
    card = publish(services, first.id, datetime.now(UTC))
    first.delete()
    label(services, images=3)
    apart = Services(services.settings.model_copy(update={"finetune_interval_min": 30.0}))
    ended = datetime.fromisoformat(services.store.get(card.version_id).created_at)
    early = maybe_start_finetune(apart, PROJECT, "start-training", ended + timedelta(minutes=29))
    assert early.deferred
    assert untold(early.reason, "30 minutes", "FINETUNE_INTERVAL_MIN") == []
    assert maybe_start_finetune(apart, PROJECT, "schedule", ended + timedelta(minutes=30)).start
