"""The simulated annotator of the benchmark."""

from __future__ import annotations

from collections import Counter

import numpy as np
import numpy.typing as npt

from benchmarks.common.annotator import RATES, Answer, annotate, choose_phrases
from finetune.data.sample import Sample

Mask = npt.NDArray[np.bool_]
NOTHING: Mask = np.zeros((60, 80), np.bool_)


def box(left: int, right: int) -> Mask:
    mask = NOTHING.copy()
    mask[10:50, left:right] = True
    return mask


TRUTH = box(20, 60)
ANSWERS = {
    ("right", True): box(20, 62),
    ("wrong", True): box(20, 40),
    ("false nothing", True): NOTHING,
    ("true nothing", False): NOTHING,
    ("wrong", False): TRUTH,
}
"""Kind, whether the phrase has a target -> mask."""


def answer(number: int, kind: str, present: bool = True) -> Answer:
    mask = ANSWERS[kind, present]
    image = np.zeros((60, 80, 3), np.uint8)
    truth = TRUTH if present else NOTHING
    sample = Sample(f"{kind}/{number}", "scene", image, f"phrase {number} {kind}", truth)
    return Answer(sample, f"r{number}" if mask.any() else "", mask)


def test_answers_are_told_apart() -> None:
    assert all(answer(0, kind, present).kind == kind for kind, present in ANSWERS)


def test_phrases_are_chosen_by_rate_as_far_as_there_are_some() -> None:
    scenes = [[answer(12 * scene + turn, kind, kind != "true nothing") for turn in range(6) for kind in RATES]
              for scene in range(20)]  # fmt: skip
    ids, kinds = choose_phrases(scenes, 8)
    assert (len(ids), kinds.total()) == (160, 160)
    for kind, rate in RATES.items():
        assert abs(kinds[kind] - 160 * rate / sum(RATES.values())) <= 2, kinds
    few, kinds = choose_phrases([[answer(0, "right"), answer(1, "wrong")]], 8)
    assert (len(few), dict(kinds)) == (2, {"right": 1, "wrong": 1})


def test_the_same_phrase_is_chosen_once() -> None:
    assert len(choose_phrases([[answer(0, "right"), answer(0, "right")]], 8)[0]) == 1


def test_what_becomes_a_label_is_what_the_annotator_did() -> None:
    regions, absent, left = annotate([answer(0, "right"), answer(1, "wrong")])
    accepted, repaired = regions
    assert (accepted.region_id, repaired.region_id) == ("r0", "r1")
    np.testing.assert_array_equal(accepted.mask, ANSWERS["right", True])
    assert np.count_nonzero(repaired.mask != TRUTH) < np.count_nonzero(ANSWERS["wrong", True] != TRUTH)
    assert (absent, left) == ([], [])


def test_some_false_nothings_are_drawn_and_the_others_are_left_in_the_prompt_box() -> None:
    made = [annotate([answer(number, "false nothing")]) for number in range(200)]
    drawn = [region for regions, _, _ in made for region in regions]
    left = [phrase for _, _, phrases in made for phrase in phrases]
    assert len(drawn) + len(left) == 200
    assert 60 < len(drawn) < 110
    assert all((region.mask == TRUTH).all() for region in drawn)
    assert not any(absent for _, absent, _ in made)


def test_rightly_found_nothing_is_confirmed_or_left() -> None:
    made = [annotate([answer(number, "true nothing", False)]) for number in range(100)]
    kinds = Counter((len(regions), len(absent), len(left)) for regions, absent, left in made)
    assert set(kinds) == {(0, 1, 0), (0, 0, 1)}
    deleted = [annotate([answer(number, "wrong", False)]) for number in range(50)]
    assert not any(regions or left for regions, _, left in deleted), "a mask of something absent is deleted"


def test_the_annotator_does_the_same_each_time() -> None:
    answers = [answer(number, "false nothing") for number in range(20)]
    assert [region.region_id for region in annotate(answers)[0]] == [
        region.region_id for region in annotate(answers)[0]
    ]
