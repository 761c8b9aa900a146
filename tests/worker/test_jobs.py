"""Collecting and deciding: jobs against a real Redis and a simulated Label Studio."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from rq.job import JobStatus, Retry

from backend.errors import LabelStudioUnauthorized
from backend.shared_redis import DECISION_KEY
from backend.state.known_projects import KnownProject
from backend.worker_requests import EXPORTS
from finetune.data.records import read_records
from sspsam.version_store.pruning import plan_pruning
from sspsam.version_store.store import VersionCard
from tests.facts import untold
from tests.worker.collecting import (
    ANNOTATION,
    PROJECT,
    TASK,
    Mask,
    collect,
    one_task,
)
from tests.worker.label_studio_server import LabelStudioServer, region
from tests.worker.reconciling import reconcile_all
from worker import jobs
from worker.finetuning.runs import HELD_OUT_FILE, TRAIN_FILE, Run, run_folder
from worker.queueing.queues import TRAINING_TIMEOUT_S, events_queue, training_queue
from worker.queueing.schedule import SCHEDULE
from worker.services import Services

__all__ = ["one_task"]


def test_an_annotation_that_is_gone_is_forgotten(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    collect(services)
    del label_studio.annotations[ANNOTATION]
    result = jobs.collect_annotation(PROJECT, ANNOTATION, TASK)
    assert isinstance(result, dict)
    assert result["forgotten"]
    assert services.collection(PROJECT).records() == []


def test_forget_believes_label_studio_rather_than_the_event(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    for number in (1, 2):
        label_studio.save(number, TASK, region("a", "the ring", mask))
        collect(services, number)
    del label_studio.annotations[2]
    assert jobs.forget_annotations(PROJECT, [1, 2, 99]) == {"project": PROJECT, "forgotten": 1}
    assert services.collection(PROJECT).annotations() == [1]


def test_the_project_is_the_one_that_label_studio_says(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    jobs.collect_annotation(999, ANNOTATION, 888)
    assert services.collection(999).records() == []
    assert len(services.collection(PROJECT).records()) == 1


def test_an_annotation_nobody_has_changes_nothing(services: Services) -> None:
    jobs.collect_annotation(PROJECT, 12345, TASK)
    jobs.forget_annotations(PROJECT, [12345])
    assert services.known_projects() == []


def test_a_label_studio_that_is_down_is_asked_again_later(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    answer = jobs.collect_annotation(PROJECT, ANNOTATION, TASK)
    assert isinstance(answer, Retry)


def test_a_wrong_key_is_an_error_with_advice(services: Services, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LABEL_STUDIO_API_KEY", "wrong")
    with pytest.raises(LabelStudioUnauthorized, match="LABEL_STUDIO_API_KEY"):
        jobs.collect_annotation(PROJECT, ANNOTATION, TASK)


@pytest.mark.parametrize("data", [{}, {"image": "file:///etc/passwd"}, {"image": ""}])
def test_a_task_without_an_image_says_so(
    services: Services, label_studio: LabelStudioServer, mask: Mask, data: dict[str, str]
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    label_studio.tasks[TASK]["data"] = data
    result = jobs.collect_annotation(PROJECT, ANNOTATION, TASK)
    assert isinstance(result, dict)
    assert "image" in result["problem"]


def test_reconcile_finds_what_events_did_not_tell(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    for number in (1, 2, 3):
        label_studio.save(number, TASK, region("a", f"ring {number}", mask))
    collect(services, 1)
    collect(services, 2)
    del label_studio.annotations[1]
    label_studio.save(2, TASK, region("a", "another ring", mask))
    result = reconcile_all(services)
    assert result == {
        "3": {
            "project": 3, "collected": 2, "forgotten": 1, "problems": 0, "complete": True, "busy": False,
        }
    }  # fmt: skip
    phrases = [record.phrase for record in services.collection(PROJECT).records()]
    assert phrases == ["another ring", "ring 3"]
    assert reconcile_all(services)["3"]["collected"] == 0


def test_reconcile_goes_on_after_a_project_that_is_gone(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    services.redis_store.projects.note(KnownProject("1"))
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    services.redis_store.projects.note(KnownProject(str(PROJECT)))
    result = reconcile_all(services)
    assert result["1"] == {"project": 1, "deleted": True, "forgotten": 0}
    assert result["3"]["collected"] == 1


def test_a_deleted_project_leaves_no_records_and_gives_its_versions_to_prune(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    store, line = services.store, f"project-{PROJECT}"
    version = store.publish({"w": torch.ones(1)}, VersionCard(line=line), {}).version_id
    store.promote(version)
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    services.redis_store.projects.note(KnownProject(str(PROJECT)))
    assert reconcile_all(services)["3"]["collected"] == 1
    assert plan_pruning(store).removed == {}
    exports = services.settings.model_dir / EXPORTS / str(PROJECT)
    exports.mkdir(parents=True)
    (exports / "labels.json").touch()
    kept = label_studio.projects.pop(PROJECT)

    assert reconcile_all(services) == {"3": {"project": 3, "deleted": True, "forgotten": 1}}

    assert services.known_projects() == []
    assert services.collection(PROJECT).annotations() == []
    assert not exports.exists()
    assert services.corrections.sums() == []
    assert list(plan_pruning(store).removed) == [version]
    label_studio.projects[PROJECT] = kept
    jobs.reconcile_project(PROJECT)
    assert plan_pruning(store).removed == {}, "it is there after all, as after a restored backup"
    assert len(services.collection(PROJECT).records()) == 1


def test_a_project_that_only_its_page_lacks_was_not_deleted(
    services: Services, label_studio: LabelStudioServer, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A proxy that answers 404 to all of /api/projects."""
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    collect(services)
    answer = label_studio.answer
    monkeypatch.setattr(
        label_studio,
        "answer",
        lambda path, query: None if path.startswith("/api/projects") else answer(path, query),
    )
    assert "nothing there" in reconcile_all(services)["3"]["problem"]
    assert len(services.collection(PROJECT).records()) == 1


def test_a_deleted_annotation_or_task_is_not_in_the_data_of_the_next_version(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    correct(label_studio, mask, images=8)

    def digest() -> str:
        assert jobs.maybe_finetune(PROJECT, "now")["start"]
        [job] = training_queue(services.redis).jobs
        run = Run.read(run_folder(services.settings.model_dir, job.id))
        training_queue(services.redis).empty()
        return run.digest

    before = digest()
    label_studio.delete(101)
    without_annotation = digest()
    label_studio.delete_task(102)
    without_task = digest()
    assert len({before, without_annotation, without_task}) == 3
    assert {record.task for record in services.collection(PROJECT).records()} == {100, *range(103, 108)}


def test_a_correction_asks_for_a_decision_once(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    for number in (1, 2):
        label_studio.save(number, TASK, region("a", "the ring", mask))
        collect(services, number)
    assert [job.kwargs for job in events_queue(services.redis).jobs] == [
        {"project_id": PROJECT, "trigger": "annotation"}
    ]


def correct(label_studio: LabelStudioServer, mask: Mask, images: int, masks_each: int = 1) -> None:
    """Submits hand-drawn masks on new images."""
    for number in range(images):
        picture = np.full((*mask.shape, 3), number, dtype=np.uint8)
        label_studio.add_task(100 + number, PROJECT, picture)
        regions = [result for k in range(masks_each) for result in region(f"r{k}", f"ring {k}", mask)]
        label_studio.save(100 + number, 100 + number, regions)


def test_the_threshold_starts_one_fine_tune(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    services.redis_store.projects.note(KnownProject(str(PROJECT)))
    correct(label_studio, mask, images=3)
    reconcile_all(services)
    assert jobs.maybe_finetune(PROJECT, "annotation") == {
        "start": False, "reason": "3 of 4 new corrected masks", "deferred": False,
    }  # fmt: skip
    correct(label_studio, mask, images=4)
    reconcile_all(services)
    decisions = [jobs.maybe_finetune(PROJECT, "annotation")] + [jobs.check_projects()["3"] for _ in range(3)]
    assert [decision["start"] for decision in decisions] == [True, False, False, False]
    [job] = training_queue(services.redis).jobs
    assert job.timeout == TRAINING_TIMEOUT_S
    assert (job.retries_left, job.retry_intervals) == (3, [10, 60, 300])
    assert job.kwargs == {"project_id": PROJECT, "run_id": job.id}
    folder = run_folder(services.settings.model_dir, job.id)
    train = {record.image_sha256 for record in read_records(folder / TRAIN_FILE)}
    held_out = {record.image_sha256 for record in read_records(folder / HELD_OUT_FILE)}
    assert (len(train), len(held_out), train & held_out) == (2, 2, set())


def test_a_person_need_not_wait_for_the_threshold(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    correct(label_studio, mask, images=2)
    decision = jobs.maybe_finetune(PROJECT, "start-training")
    assert decision == {"start": True, "reason": "requested, with 2 new corrected masks", "deferred": False}
    kept = json.loads(services.redis.get(DECISION_KEY.format(line=PROJECT)) or b"{}")
    assert kept | {"at": ""} == {"at": "", "trigger": "start-training", **decision}


def test_too_little_to_measure_on_is_said(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    correct(label_studio, mask, images=1, masks_each=9)
    decision = jobs.maybe_finetune(PROJECT, "start-training")
    assert not decision["start"]
    assert untold(decision["reason"], "9 corrected masks", "1 image", "2 images") == []
    assert training_queue(services.redis).count == 0


def test_starting_with_label_studio_down_decides_on_what_is_here(
    services: Services, label_studio: LabelStudioServer, mask: Mask, monkeypatch: pytest.MonkeyPatch
) -> None:
    correct(label_studio, mask, images=2)
    jobs.maybe_finetune(PROJECT, "annotation")
    services.redis_store.projects.note(KnownProject(str(PROJECT)))
    reconcile_all(services)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    assert jobs.maybe_finetune(PROJECT, "start-training")["start"]


def test_what_failed_is_only_tried_again_by_a_person(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    correct(label_studio, mask, images=4)
    jobs.maybe_finetune(PROJECT, "start-training")
    queue = training_queue(services.redis)
    [job] = queue.jobs
    queue.remove(job)
    job.set_status(JobStatus.FAILED)
    decision = jobs.maybe_finetune(PROJECT, "annotation")
    assert not decision["start"]
    assert "has failed" in decision["reason"]
    assert jobs.maybe_finetune(PROJECT, "now")["start"]
    assert queue.get_job_ids() == [job.id]


def test_a_damaged_file_of_records_is_collected_again(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    [record] = collect(services)
    path = services.collection(PROJECT).folder / f"{ANNOTATION}.jsonl"
    path.write_text(path.read_text()[:40])
    assert services.collection(PROJECT).records() == []
    reconcile_all(services)
    assert services.collection(PROJECT).records() == [record]


def test_the_schedule_names_jobs_that_exist() -> None:
    for name in SCHEDULE:
        module, _, function = name.rpartition(".")
        assert module == "worker.jobs"
        assert callable(getattr(jobs, function))
