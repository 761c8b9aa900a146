"""What the data of a fine-tune consist of, and how many absences they may contain."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from finetune.data.records import RefRecord, read_records
from tests.worker.finetuning.test_runs import LINE, PROJECT, record
from worker.finetuning.composition import (
    MAX_ABSENT_SHARE,
    bound_absences,
    count_kinds,
    count_kinds_by_label,
    in_words,
)
from worker.finetuning.decisions import maybe_start_finetune
from worker.finetuning.policy import Side
from worker.finetuning.runs import TRAIN_FILE, prepare_run, run_folder
from worker.services import Services


@pytest.fixture
def images(tmp_path: Path) -> Path:
    return tmp_path / "images"


def absent(number: int, images: Path, proposed: bool = False) -> RefRecord:
    made = record(number, images)
    served = made.mask_rle if proposed else None
    return replace(made, mask_rle=None, region=None, served_rle=served, phrase=f"nothing {number}")


def test_records_are_counted_by_what_annotators_did(images: Path) -> None:
    added = record(1, images, label="cup")
    assert added.mask_rle is not None
    accepted = replace(added, served_rle=added.mask_rle, region="s", label="cup")
    other = {**added.mask_rle, "counts": "0"}
    records = [added, accepted, replace(accepted, served_rle=other, label="jug"), absent(2, images)]

    assert count_kinds(records) == {"corrected": 1, "accepted": 1, "added": 1, "confirmed absent": 1}
    by_label = count_kinds_by_label(records)
    assert list(by_label) == ["cup", "jug", "(no label)"]
    told = in_words({"composition": count_kinds(records), "composition_by_label": by_label})
    assert told["composition"] == "1 corrected, 1 accepted, 1 added, 1 confirmed absent"
    assert told["composition_by_label"].startswith("cup: 0 corrected, 1 accepted, 1 added")
    assert by_label["cup"] == {"corrected": 0, "accepted": 1, "added": 1, "confirmed absent": 0}


@pytest.mark.parametrize(
    ("masks", "absences", "kept"), [(9, 2, 2), (9, 3, 3), (9, 20, 3), (2, 5, 0), (0, 4, 0), (3, 0, 0)]
)
def test_absences_are_at_most_a_share_of_the_data(images: Path, masks: int, absences: int, kept: int) -> None:
    records = [record(number, images) for number in range(masks)]
    records += [absent(100 + number, images) for number in range(absences)]

    bounded = bound_absences(records)

    assert count_kinds(bounded)["confirmed absent"] == kept
    assert count_kinds(bounded)["added"] == masks
    assert kept <= MAX_ABSENT_SHARE * len(bounded)
    assert bound_absences(records[::-1]) == bounded[::-1], "whatever the order"


def test_absences_of_what_the_model_proposed_stay_first(images: Path) -> None:
    masks = [record(number, images) for number in range(6)]
    proposed = [absent(50 + number, images, proposed=True) for number in range(2)]

    bounded = bound_absences([*masks, *(absent(60 + number, images) for number in range(9)), *proposed])

    assert [it for it in bounded if it.kind == "absent"] == proposed


def test_absences_to_compare_versions_on_are_chosen_without_regard_to_the_proposal(images: Path) -> None:
    masks = [record(number, images) for number in range(30)]
    absences = [absent(50 + number, images, proposed=number < 10) for number in range(40)]
    accepted = [replace(it, served_rle=None) for it in absences]

    kept, same = (bound_absences([*masks, *some], corrections_first=False) for some in (absences, accepted))

    assert [it.phrase for it in kept] == [it.phrase for it in same]
    assert count_kinds(kept)["confirmed absent"] == 10


def test_a_run_is_bounded(services: Services) -> None:
    folder = services.settings.images_dir
    records = [record(number, folder) for number in range(4)]
    records += [absent(10 + number, folder) for number in range(8)]
    sides: dict[str, Side] = {it.image_sha256: "held-out" if it.task == 0 else "train" for it in records}

    run = prepare_run(services.settings.model_dir, services.store, LINE, records, sides)

    train = read_records(run_folder(services.settings.model_dir, run.run_id) / TRAIN_FILE)
    assert count_kinds(train) == {"corrected": 0, "accepted": 0, "added": 3, "confirmed absent": 1}


def test_absences_start_no_fine_tune(services: Services) -> None:
    folder = services.settings.images_dir
    records = [absent(number, folder, proposed=True) for number in range(20)]
    for number, made in enumerate(records, start=1):
        services.collection(PROJECT).replace(number, [replace(made, annotation=number)])

    for trigger in ("annotation", "start-training", "now"):
        decision = maybe_start_finetune(services, PROJECT, trigger)
        assert not decision.start
        assert decision.reason.startswith("0 corrected masks on 0 images")
