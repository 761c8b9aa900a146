"""Which records the regions and confirmed absences of an annotation become."""

from __future__ import annotations

import json
from itertools import islice
from typing import Any

import numpy as np
import pytest

from backend.labelstudio import prompt_text
from backend.labelstudio.predictions import ProposedRegion, region_id_for, unused_region_ids
from backend.shared_redis import SERVED_KEY
from sspsam.images.masks import coco_rle_to_mask, mask_to_coco_rle
from tests.worker.collecting import (
    ANNOTATION,
    BASE,
    PROJECT,
    TASK,
    Mask,
    collect,
    one_task,
    serve,
)
from tests.worker.label_studio_server import LabelStudioServer, absent, prompt, region
from worker import jobs
from worker.services import Services

__all__ = ["one_task"]


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


def test_an_absence_that_was_confirmed_against_a_mask_stays_a_correction(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = serve(services, "the ring", mask)
    for _ in range(2):
        label_studio.save(ANNOTATION, TASK, [absent("the ring")])
        (record,) = collect(services)
        assert (record.corrected, record.served_version) == (True, BASE)
        services.redis.delete(SERVED_KEY.format(region=region_id))


def test_phrases_without_an_answer_are_kept_without_a_label(
    services: Services, label_studio: LabelStudioServer
) -> None:
    label_studio.save(ANNOTATION, TASK, [prompt(prompt_text.with_no_match("a zebra"))])
    assert collect(services) == []
    assert [record.phrase for record in services.collection(PROJECT).unanswered()] == ["a zebra"]


def test_a_mask_that_was_served_to_one_annotator_is_not_measured_by_that_of_another(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    region_id = serve(services, "the ring", mask)
    assert serve(services, "the ring", ~mask) == region_id
    kinds = []
    for submitted in (mask, ~mask, np.ones_like(mask)):
        label_studio.save(ANNOTATION, TASK, region(region_id, "the ring", submitted))
        kinds += [record.kind for record in collect(services)]
    assert kinds == ["accepted", "accepted", "corrected"]


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
    jobs.forget_annotations(PROJECT, [ANNOTATION])  # of an annotation that was made again under its ID
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


def test_phrases_that_found_nothing_are_kept_beside_the_labels(
    services: Services, label_studio: LabelStudioServer
) -> None:
    """The gate asks them again; a label is only what a person drew or confirmed."""
    left = prompt(prompt_text.with_no_match("a giraffe"), "never asked")
    label_studio.save(ANNOTATION, TASK, [left, absent("a zebra")])
    assert [it.phrase for it in collect(services)] == ["a zebra"]
    collection = services.collection(PROJECT)
    assert [it.phrase for it in collection.records()] == ["a zebra"]
    [unanswered] = collection.unanswered()
    assert (unanswered.phrase, unanswered.is_unanswered) == ("a giraffe", True)
    label_studio.save(ANNOTATION, TASK, [absent("a zebra", "a giraffe")])
    assert len(collect(services)) == 2
    assert collection.unanswered() == []


NEWER = ("confirmed", "digest")
"""Fields that files of earlier releases lack."""


def test_absences_collected_before_they_were_confirmed_are_no_samples(
    services: Services, label_studio: LabelStudioServer
) -> None:
    label_studio.save(ANNOTATION, TASK, [absent("a giraffe")])
    collect(services)
    path = services.collection(PROJECT).folder / f"{ANNOTATION}.jsonl"
    old = {name: value for name, value in json.loads(path.read_text()).items() if name not in NEWER}
    path.write_text(json.dumps(old) + "\n")

    assert services.collection(PROJECT).records() == []
    assert [it.phrase for it in services.collection(PROJECT).unanswered()] == ["a giraffe"]


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
