"""Collecting and deciding: jobs against a real Redis and a fake Label Studio over HTTP."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta
from itertools import islice
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from rq.job import JobStatus, Retry

from backend.corrections import Tally
from backend.errors import LabelStudioUnauthorized
from backend.labelstudio import prompt_text
from backend.labelstudio.predictions import ProposedRegion, region_id_for, unused_region_ids
from backend.shared_redis import DECISION_KEY, SERVED_KEY
from backend.state.redis_store import KnownProject
from finetune.data.records import RefRecord, read_records
from sspsam.images.masks import coco_rle_to_mask, mask_to_coco_rle
from sspsam.version_store.pruning import plan_pruning
from sspsam.version_store.store import VersionCard
from tests.facts import untold
from tests.worker.label_studio_server import LabelStudioServer, absent, prompt, region
from tests.worker.reconciling import reconcile_all
from worker import jobs
from worker.finetuning.runs import HELD_OUT_FILE, TRAIN_FILE, Run, run_folder
from worker.queueing.queues import TRAINING_TIMEOUT_S, events_queue, training_queue
from worker.queueing.schedule import SCHEDULE
from worker.services import Services

Mask = npt.NDArray[np.bool_]
UInt8Image = npt.NDArray[np.uint8]

PROJECT, TASK, ANNOTATION = 3, 7, 11
BASE = "ssp-sam-test-base"
NOW = datetime.now(UTC).isoformat()
LATER = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
"""Masks are served before this, so that they were seen for a while."""


@pytest.fixture(autouse=True)
def one_task(label_studio: LabelStudioServer, image: UInt8Image) -> None:
    label_studio.add_project(PROJECT)
    label_studio.add_task(TASK, PROJECT, image)


def collect(services: Services, annotation: int = ANNOTATION) -> list[RefRecord]:
    jobs.collect_annotation(PROJECT, annotation, TASK)
    return services.collection(PROJECT).of_annotation(annotation)


def serve(services: Services, phrase: str, mask: Mask) -> str:
    """Lets the backend's log say that it served a mask; returns the region's id."""
    region_id = region_id_for(str(PROJECT), str(TASK), phrase)
    proposed = [(ProposedRegion(region_id, phrase, mask, 0.9), mask_to_coco_rle(mask))]
    services.redis_store.note_served(proposed, "ssp-sam-test-base")
    return region_id


def test_a_hand_drawn_mask_becomes_a_corrected_record(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, region("WR_laGtqWv", "the ring", mask))
    result = jobs.collect_annotation(PROJECT, ANNOTATION, TASK)
    assert result == {
        "project": PROJECT, "annotation": ANNOTATION, "records": 1, "corrected": 1, "forgotten": False,
        "problem": "",
    }  # fmt: skip
    [record] = services.collection(PROJECT).records()
    assert record.mask_rle is not None
    np.testing.assert_array_equal(coco_rle_to_mask(record.mask_rle), mask)
    assert (record.phrase, record.region, record.corrected) == ("the ring", "WR_laGtqWv", True)
    assert (record.project, record.task, record.annotation) == (PROJECT, TASK, ANNOTATION)
    assert services.images.path(record.image_sha256).is_file()


def test_a_mask_that_was_accepted_is_no_correction(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = serve(services, "the ring", mask)
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", mask))
    [record] = collect(services)
    assert not record.corrected
    assert record.served_version == "ssp-sam-test-base"


def test_one_changed_pixel_is_a_correction(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = serve(services, "the ring", mask)
    mask[0, 0] = True
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", mask))
    assert [record.corrected for record in collect(services)] == [True]


def test_a_mask_whose_proposal_is_unknown_is_not_accepted(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = region_id_for(str(PROJECT), str(TASK), "the ring")
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", mask))
    assert [record.kind for record in collect(services)] == ["added"]


def test_what_was_served_is_remembered_when_the_log_has_expired(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = serve(services, "the ring", mask)
    changed = mask.copy()
    changed[0] = True
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", changed))
    assert [record.corrected for record in collect(services)] == [True]
    services.redis.delete(SERVED_KEY.format(region=region_id))
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", changed))
    assert [record.corrected for record in collect(services)] == [True]


DOTS = "all dots"


def dots() -> list[Mask]:
    masks = [np.zeros((48, 64), dtype=np.bool_) for _ in range(3)]
    for place, mask in enumerate(masks):
        mask[5:15, 20 * place + 2 : 20 * place + 12] = True
    return masks


def serve_objects(services: Services, masks: list[Mask]) -> list[str]:
    """Lets the backend's log say that it served a region for each object; returns their ids."""
    ids = list(islice(unused_region_ids(str(PROJECT), str(TASK), DOTS, {}), len(masks)))
    proposed = [
        (ProposedRegion(region_id, DOTS, mask, 0.9), mask_to_coco_rle(mask))
        for region_id, mask in zip(ids, masks, strict=True)
    ]
    services.redis_store.note_served(proposed, BASE)
    return ids


def save_objects(label_studio: LabelStudioServer, ids: list[str], masks: list[Mask]) -> None:
    regions = [region(region_id, DOTS, mask) for region_id, mask in zip(ids, masks, strict=True)]
    label_studio.save(ANNOTATION, TASK, [result for results in regions for result in results])


def test_the_objects_of_a_phrase_are_one_accepted_record(
    services: Services, label_studio: LabelStudioServer
) -> None:
    masks = dots()
    ids = serve_objects(services, masks)
    save_objects(label_studio, ids, masks)

    [record] = collect(services)

    assert (record.phrase, record.kind, record.served_version) == (DOTS, "accepted", BASE)
    assert record.mask_rle == mask_to_coco_rle(np.any(masks, axis=0))
    assert [entry.region for entry in record.objects] == ids
    assert [entry.box_xyxy for entry in record.objects] == [(2, 5, 12, 15), (22, 5, 32, 15), (42, 5, 52, 15)]


def test_two_accepted_objects_and_one_edited_are_one_corrected_record(
    services: Services, label_studio: LabelStudioServer
) -> None:
    """And they are counted by region: two accepted, one edited; also once the log has expired."""
    served = dots()
    ids = serve_objects(services, served)
    edited = dots()
    edited[1][15:20, 22:32] = True
    for _ in range(2):
        save_objects(label_studio, ids, edited)

        [record] = collect(services)

        assert (record.kind, record.corrected) == ("corrected", True)
        assert record.mask_rle == mask_to_coco_rle(np.any(edited, axis=0))
        assert record.served_rle == mask_to_coco_rle(np.any(served, axis=0))
        [counted] = services.corrections.sums()
        tally = counted.tally
        assert (tally.accepted, tally.edited, tally.added) == (2, 1, 0)
        for region_id in ids:
            services.redis.delete(SERVED_KEY.format(region=region_id))


@pytest.mark.parametrize("left", [[0], [0, 2], [2]])
def test_a_deleted_object_makes_the_record_a_correction(
    services: Services, label_studio: LabelStudioServer, left: list[int]
) -> None:
    """The label of the phrase is what is left, its proposal the whole answer, also without the log."""
    masks = dots()
    ids = serve_objects(services, masks)
    for _ in range(2):
        save_objects(label_studio, [ids[place] for place in left], [masks[place] for place in left])

        [record] = collect(services)

        assert record.kind == "corrected"
        assert record.mask_rle == mask_to_coco_rle(np.any([masks[place] for place in left], axis=0))
        assert record.served_rle == mask_to_coco_rle(np.any(masks, axis=0))
        for region_id in ids:
            services.redis.delete(SERVED_KEY.format(region=region_id))


def test_an_object_that_was_added_belongs_to_the_phrase(
    services: Services, label_studio: LabelStudioServer
) -> None:
    masks = dots()
    ids = serve_objects(services, masks[:2])
    save_objects(label_studio, [*ids, "by hand"], masks)

    [record] = collect(services)

    assert record.kind == "corrected"
    assert record.mask_rle == mask_to_coco_rle(np.any(masks, axis=0))
    assert [entry.served_rle is None for entry in record.objects] == [False, False, True]


def test_an_object_with_another_phrase_is_a_label_of_that_phrase(
    services: Services, label_studio: LabelStudioServer
) -> None:
    masks = dots()
    ids = serve_objects(services, masks)
    renamed = region(ids[2], "the last dot", masks[2])
    kept = [result for place in (0, 1) for result in region(ids[place], DOTS, masks[place])]
    label_studio.save(ANNOTATION, TASK, kept + renamed)

    records = {record.phrase: record for record in collect(services)}

    assert records[DOTS].kind == "corrected"
    assert records["the last dot"].kind == "accepted"
    assert records["the last dot"].objects == ()


def test_an_edit_replaces_and_several_annotators_are_kept_apart(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask) + region("b", "the dot", ~mask))
    label_studio.save(ANNOTATION + 1, TASK, region("c", "a ring", mask))
    collect(services)
    collect(services, ANNOTATION + 1)
    label_studio.save(ANNOTATION, TASK, region("b", "the small dot", ~mask))
    collect(services)
    records = services.collection(PROJECT).records()
    assert [(record.annotation, record.phrase) for record in records] == [
        (ANNOTATION, "the small dot"),
        (ANNOTATION + 1, "a ring"),
    ]


def test_twice_changes_nothing(services: Services, label_studio: LabelStudioServer, mask: Mask) -> None:
    label_studio.save(ANNOTATION, TASK, [*region("a", "the ring", mask), prompt("a giraffe")])
    assert collect(services) == collect(services)


def test_events_out_of_order_leave_what_label_studio_has(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    """A deletion that is told before the changes that went before it; a change before the one before."""
    label_studio.save(ANNOTATION, TASK, region("a", "the last ring", mask))
    label_studio.save(ANNOTATION + 1, TASK, region("b", "the dot", mask))
    collect(services, ANNOTATION + 1)
    del label_studio.annotations[ANNOTATION + 1]
    jobs.forget_annotations(PROJECT, [ANNOTATION + 1])
    for annotation in (ANNOTATION, ANNOTATION + 1, ANNOTATION):  # what was told late
        jobs.collect_annotation(PROJECT, annotation, TASK)
    jobs.forget_annotations(PROJECT, [ANNOTATION])  # of an annotation that was made anew under its id
    assert [record.phrase for record in services.collection(PROJECT).records()] == ["the last ring"]


@pytest.mark.parametrize("fields", [{"was_cancelled": True}, {"result": []}], ids=["skipped", "empty"])
def test_a_label_that_is_taken_back_leaves_no_record(
    services: Services, label_studio: LabelStudioServer, mask: Mask, fields: dict[str, Any]
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    assert len(collect(services)) == 1
    label_studio.annotations[ANNOTATION] |= fields
    assert collect(services) == []


def test_a_phrase_that_was_confirmed_to_be_absent_is_a_sample(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, [*region("a", "the ring", mask), absent("a giraffe", "The ring")])
    records = collect(services)
    assert [(record.phrase, record.mask_rle is None) for record in records] == [
        ("the ring", False),
        ("a giraffe", True),
    ]
    assert not records[1].corrected


def test_a_confirmed_absence_of_what_the_model_proposed_is_a_correction(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    serve(services, "a giraffe", mask)
    label_studio.save(ANNOTATION, TASK, [absent("a giraffe")])
    [record] = collect(services)
    assert (record.kind, record.corrected) == ("absent", True)


@pytest.mark.parametrize(
    "entry",
    ["a giraffe", prompt_text.with_no_match("a giraffe"), "a giraffe  ∅ nothing here fits"],
    ids=["not asked, or saved in the old way", "found nothing", "found nothing, in the old way"],
)
def test_phrases_left_in_the_prompt_box_are_no_samples(
    services: Services, label_studio: LabelStudioServer, entry: str
) -> None:
    label_studio.save(ANNOTATION, TASK, [prompt(entry)])
    assert collect(services) == []


def test_absences_collected_before_they_were_confirmed_are_no_samples(
    services: Services, label_studio: LabelStudioServer
) -> None:
    label_studio.save(ANNOTATION, TASK, [absent("a giraffe")])
    collect(services)
    path = services.collection(PROJECT).folder / f"{ANNOTATION}.jsonl"
    old = {name: value for name, value in json.loads(path.read_text()).items() if name != "confirmed"}
    path.write_text(json.dumps(old) + "\n")

    assert services.collection(PROJECT).records() == []


def test_phrases_that_were_never_answered_are_no_samples(
    services: Services, label_studio: LabelStudioServer
) -> None:
    label_studio.save(ANNOTATION, TASK, [prompt(prompt_text.with_failure("the ring", "the image is gone"))])
    assert collect(services) == []


def test_regions_without_a_phrase_are_left_out(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    label_studio.save(ANNOTATION, TASK, region("a", None, mask))
    assert collect(services) == []


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
    services.redis_store.note_project(KnownProject("1"))
    label_studio.save(ANNOTATION, TASK, region("a", "the ring", mask))
    services.redis_store.note_project(KnownProject(str(PROJECT)))
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
    services.redis_store.note_project(KnownProject(str(PROJECT)))
    assert reconcile_all(services)["3"]["collected"] == 1
    assert plan_pruning(store).removed == {}
    kept = label_studio.projects.pop(PROJECT)

    assert reconcile_all(services) == {"3": {"project": 3, "deleted": True, "forgotten": 1}}

    assert services.known_projects() == []
    assert services.collection(PROJECT).annotations() == []
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
    services.redis_store.note_project(KnownProject(str(PROJECT)))
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
    services.redis_store.note_project(KnownProject(str(PROJECT)))
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


# What becomes of proposals


def tallies(services: Services) -> dict[str, Tally]:
    return {one.tally.label: one.tally for one in services.corrections.sums()}


def test_accepted_edited_and_added_masks_are_counted(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    taken, changed = serve(services, "the ring", mask), serve(services, "the dot", mask)
    half = mask.copy()
    half[:, :20] = False
    drawn = region("WR_laGtqWv", "by hand", mask, "thing")
    label_studio.save(
        ANNOTATION, TASK, region(taken, "the ring", mask) + region(changed, "the dot", half) + drawn
    )

    for _ in range(2):
        collect(services)

    assert tallies(services) == {
        "object": Tally(BASE, "object", accepted=1, edited=1, iou=pytest.approx(1 + half.sum() / mask.sum())),
        "thing": Tally(BASE, "thing", added=1),
    }


def test_a_mask_counts_as_deleted_only_if_it_was_submitted_before(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    kept, dropped = serve(services, "the ring", mask), serve(services, "the dot", mask)
    serve(services, "the bar", mask)  # proposed, perhaps to somebody else, and never submitted
    ring = region(kept, "the ring", mask)
    label_studio.save(ANNOTATION, TASK, ring + region(dropped, "the dot", mask))
    collect(services)
    assert tallies(services)["object"] == Tally(BASE, "object", accepted=2, iou=2)

    label_studio.save(ANNOTATION, TASK, ring)
    for _ in range(2):
        collect(services)

    assert tallies(services)["object"] == Tally(BASE, "object", accepted=1, iou=1, deleted=1)


def test_a_mask_made_by_hand_for_a_phrase_that_found_nothing_was_missed(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    services.redis_store.note_nothing_found(str(PROJECT), str(TASK), ["the ring"], [], BASE)
    drawn = region("WR_laGtqWv", "The ring", mask) + region("WR_laGtqWw", "the dot", mask)
    label_studio.save(ANNOTATION, TASK, drawn)

    collect(services)

    assert tallies(services)["object"] == Tally(BASE, "object", added=1, missed=1)


def test_counts_follow_the_annotation(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = serve(services, "the ring", mask)
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", mask))
    collect(services)
    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", ~mask))
    collect(services)
    assert tallies(services) == {"object": Tally(BASE, "object", edited=1)}

    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", mask), was_cancelled=True)
    collect(services)
    assert tallies(services) == {}

    label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", mask))
    collect(services)
    del label_studio.annotations[ANNOTATION]
    jobs.forget_annotations(PROJECT, [ANNOTATION])
    assert tallies(services) == {}
