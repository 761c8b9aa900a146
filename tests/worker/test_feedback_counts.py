"""Counts of accepted, edited, added, deleted and missed masks."""

from __future__ import annotations

import pytest

from backend.corrections import Tally
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
from tests.worker.label_studio_server import LabelStudioServer, region
from worker import jobs
from worker.services import Services

__all__ = ["one_task"]


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
