"""What the labels of the held-out images stand for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from tests.worker.finetuning.test_runs import record
from worker.finetuning.population import Asked, Phrase, agreement, count_asked, estimate, kind_of

ASKED: Asked = {"1": {"accepted": 40, "corrected": 20, "added": 20, "absent": 5, "unanswered": 15}}
LOST, FOUND = (True, False), (False, True)
NEITHER, BOTH = (False, False), (True, True)


def labels(images: int = 6) -> list[Phrase]:
    """On each image, the candidate is worse on three accepted masks and finds a missed object."""
    one = [
        *[Phrase("1", "accepted", "", 1.0, 0.9)] * 3,
        Phrase("1", "corrected", "", 0.5, 0.6),
        Phrase("1", "added", "", 0.0, 0.8, FOUND),
        Phrase("1", "absent", "", 1.0, 1.0, NEITHER),
    ]
    return [replace(phrase, image_id=str(image)) for image in range(images) for phrase in one]


def unanswered(found: tuple[bool, bool], count: int = 1) -> list[Phrase]:
    return [Phrase("1", "unanswered", str(number % 6), found=found) for number in range(count)]


def change(phrases: Sequence[Phrase], asked: Asked = ASKED) -> float:
    found = estimate(phrases, asked)
    return found.after - found.before


def test_each_stratum_counts_by_its_share_of_the_phrases_asked() -> None:
    found = estimate(labels(), ASKED)
    nothing_found = (0.0 + 1.0) / 2, (0.8 + 1.0) / 2
    assert found.before == pytest.approx(0.4 * 1.0 + 0.2 * 0.5 + 0.4 * nothing_found[0])
    assert found.after == pytest.approx(0.4 * 0.9 + 0.2 * 0.6 + 0.4 * nothing_found[1])
    assert (found.asked, found.unanswered) == (100, 0)
    assert found.interval == pytest.approx((found.after - found.before,) * 2), "all images are equal"


def test_more_labels_of_a_stratum_do_not_give_it_more_weight() -> None:
    again = [replace(phrase, image_id=f"{phrase.image_id} again") for phrase in labels()]
    more = [phrase for phrase in again if phrase.kind == "accepted"]
    assert change(labels() + more) == pytest.approx(change(labels()))


def test_unanswered_phrases_count_like_labels_that_were_answered_alike() -> None:
    plain = change(labels())
    assert change(labels() + unanswered(FOUND, 12)) > plain + 0.05
    assert change(labels() + unanswered(NEITHER, 12)) < plain - 0.02
    of_found = [phrase for phrase in labels() if phrase.kind != "added"]
    added = [phrase for phrase in labels() if phrase.kind == "added"]
    wrong = [replace(phrase, kind="absent", before=1.0, after=0.0) for phrase in added]
    assert change(of_found + wrong + unanswered(FOUND, 12)) < change(of_found + wrong), "invented objects"


def test_where_no_label_was_answered_alike_nothing_changes() -> None:
    nothing = change(labels() + unanswered(NEITHER, 12))
    assert change(labels() + unanswered(LOST, 12)) == pytest.approx(nothing)
    never = [phrase for phrase in labels() if phrase.kind != "added"]
    assert change([*never, *unanswered(FOUND)]) == pytest.approx(change([*never, *unanswered(NEITHER)]))


def test_without_a_confirmed_absence_unanswered_phrases_are_left_out() -> None:
    confirmed_none = [phrase for phrase in labels() if phrase.kind != "absent"]
    found = estimate(confirmed_none + unanswered(FOUND, 12), ASKED)
    assert found == estimate(confirmed_none, ASKED)
    assert (found.asked, found.unanswered) == (85, 0)


def test_projects_have_strata_of_their_own() -> None:
    other = [replace(phrase, project="2", after=phrase.before) for phrase in labels()]
    both: Asked = {**ASKED, "2": {kind: 3 * count for kind, count in ASKED["1"].items()}}
    assert change(labels() + other, both) == pytest.approx(change(labels()) / 4)


def test_the_interval_is_that_of_images_not_of_phrases() -> None:
    better = [replace(phrase, after=1.0) if phrase.image_id == "0" else phrase for phrase in labels()]
    found = estimate(better, ASKED)
    assert found.interval is not None
    low, high = found.interval
    assert low < found.after - found.before < high
    assert found == estimate(better, ASKED)
    assert estimate(labels(1), ASKED).interval is None


def test_a_stratum_without_labels_is_left_out() -> None:
    accepted = [phrase for phrase in labels() if phrase.kind == "accepted"]
    assert change(accepted) == pytest.approx(-0.1)


@pytest.mark.parametrize(
    ("iou", "edges", "score"), [(0.95, False, 1.0), (0.9, False, 1.0), (0.45, False, 0.5), (0.95, True, 0.95)]
)
def test_answers_that_annotators_would_accept_agree(iou: float, edges: bool, score: float) -> None:
    assert agreement(iou, edges) == pytest.approx(score)


def test_phrases_are_counted_by_what_the_model_had_answered(tmp_path: Path) -> None:
    added = record(1, tmp_path)
    accepted = replace(added, served_rle=added.mask_rle)
    absent = replace(added, mask_rle=None, region=None)
    deleted, left = replace(absent, served_rle=added.mask_rle), replace(absent, confirmed=False)
    kinds = [kind_of(it) for it in (added, accepted, absent, deleted, left)]
    assert kinds == ["added", "accepted", "absent", "corrected", "unanswered"]
    other = replace(added, project=99)
    assert count_asked([added, accepted, deleted, left, left, other]) == {
        str(added.project): {"accepted": 1, "added": 1, "corrected": 1, "unanswered": 2},
        "99": {"added": 1},
    }
