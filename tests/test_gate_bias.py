"""The promotion gate favours neither the version whose masks were repaired nor a candidate: a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.common.simulated import RULES, Annotators, Compared, SimulatedModel, compare_models, repaired
from finetune.data.sample import Sample
from worker.finetuning.policy import MARGIN

# A simulation; the module's fixtures are made once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gate-bias")]

HW = (120, 160)
ABSENT = 0.2
"""Share of the phrases without a target."""
SHOWN = SimulatedModel(seed=1, edge_px=0.8)
UNFINDING = replace(SHOWN, nothing=0.37, part=0.2)
DILIGENT, REFINING = Annotators(tolerance_px=2.5), Annotators(tolerance_px=0.0)
HURRIED = replace(DILIGENT, drawn=0.42, confirmed=0.5)
"""Who leave more than half of the false nothings unanswered, as in a trial."""
LABELS_ALONE, GATE = (rule.name for rule in RULES[-2:])


@cache
def ellipses(seed: int = 0, images: int = 40) -> Sequence[Sample]:
    """Three phrases for each image."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: HW[0], : HW[1]]
    blank = np.zeros((1, 1, 3), np.uint8)
    return [
        Sample(f"{seed}/{image}/{number}", f"{seed}/{image}", blank, f"object {number}", mask)
        for image in range(images)
        for number in range(3)
        for (y, x), (height, width) in [(rng.uniform((30, 30), (90, 130)), rng.uniform(12, 28, 2))]
        for size in [((rows - y) / height) ** 2 + ((columns - x) / width) ** 2]
        for mask in [(size < 1) & bool(rng.random() >= ABSENT)]
    ]


def bias(compared: Sequence[Compared]) -> float:
    return float(np.mean([one.bias for one in compared]))


def equal(seed: int) -> dict[str, Compared]:
    """Two equally good models, by each rule."""
    shown, other = replace(SHOWN, seed=2 * seed), replace(SHOWN, seed=2 * seed + 1)
    return compare_models(ellipses(seed), shown, other, DILIGENT)


@cache
def hurried(**changes: float) -> dict[str, list[Compared]]:
    """The same of models that find nothing for many phrases. With changes, the second model is another one,
    else each model is shown in turn.
    """
    found: dict[str, list[Compared]] = {rule.name: [] for rule in RULES}
    for seed in range(4):
        one, other = (replace(UNFINDING, seed=2 * seed + number) for number in (0, 1))
        for pair in [(one, replace(other, **changes)), *([] if changes else [(other, one)])]:
            for rule, compared in compare_models(ellipses(seed, 60), *pair, HURRIED).items():
                found[rule].append(compared)
    return found


@pytest.fixture(scope="module")
def pairs() -> dict[str, list[Compared]]:
    """Rule -> several pairs of equally good models."""
    found = [equal(seed) for seed in range(5)]
    return {rule.name: [one[rule.name] for one in found] for rule in RULES}


def test_equally_good_models_are_within_the_noise(pairs: dict[str, list[Compared]]) -> None:
    assert abs(bias(pairs[GATE])) < MARGIN / 2
    assert not any(one.verdict.promote for one in pairs[GATE] if one.true < MARGIN)


def test_each_half_of_the_rule_removes_a_bias(pairs: dict[str, list[Compared]]) -> None:
    assert bias(pairs[RULES[1].name]) < -MARGIN, "the shown model's edges are in the labels"
    assert bias(pairs[RULES[2].name]) > 0.1, "only masks on which the shown model failed"


def test_phrases_without_an_answer_favour_neither_model() -> None:
    assert bias(hurried()[LABELS_ALONE]) < -0.05, "the shown model's failures are missing"
    assert abs(bias(hurried()[GATE])) < 0.03
    assert not any(one.verdict.promote for one in hurried()[GATE] if one.true < MARGIN)


def test_where_phrases_stay_unanswered_a_better_model_wins_and_a_worse_one_loses() -> None:
    better, worse = hurried(nothing=0.12, elsewhere=0.03), hurried(nothing=0.55, elsewhere=0.2)
    assert all(one.verdict.promote for one in better[GATE])
    assert not any(one.verdict.promote for one in worse[GATE])


def test_a_model_that_invents_objects_loses() -> None:
    assert not any(one.verdict.promote for one in hurried(invented=0.7)[GATE])
    unconfirmed = compare_models(
        ellipses(0), UNFINDING, replace(UNFINDING, seed=2, invented=0.7), replace(HURRIED, confirmed=0)
    )
    assert unconfirmed[GATE].measured == pytest.approx(unconfirmed[LABELS_ALONE].measured, abs=0.03)


@pytest.mark.parametrize(
    ("changes", "annotators", "promote"),
    [
        pytest.param({"nothing": 0.03, "elsewhere": 0.03, "part": 0.1}, DILIGENT, True, id="fewer errors"),
        pytest.param({"nothing": 0.2, "elsewhere": 0.2, "part": 0.5}, DILIGENT, False, id="more errors"),
        pytest.param({"edge_px": 4.0}, DILIGENT, False, id="ragged edges"),
        pytest.param({"edge_px": 1.0}, REFINING, True, id="better edges, where annotators draw them"),
        pytest.param({"edge_px": 4.0}, REFINING, False, id="worse edges, where annotators draw them"),
    ],
)
def test_a_better_model_wins_and_a_worse_one_loses(
    changes: dict[str, float], annotators: Annotators, promote: bool
) -> None:
    shown = replace(SHOWN, edge_px=1.2)
    if annotators == REFINING:
        shown = replace(shown, nothing=0, elsewhere=0, part=0, edge_px=2.5)
    verdict = compare_models(ellipses(), shown, replace(shown, seed=2, **changes), annotators)[GATE].verdict
    assert verdict.promote is promote, verdict.reason


def test_the_same_answers_always_give_the_same_verdict() -> None:
    assert equal(0) == equal(0)


def test_an_annotator_repairs_gross_errors_alone() -> None:
    sample = next(sample for sample in ellipses() if sample.has_target)
    truth, model = sample.mask, replace(SHOWN, seed=7, nothing=0, elsewhere=0, part=1)
    rough = model.answer(sample)
    label = repaired(rough, truth, DILIGENT.tolerance_px)
    assert 0 < np.count_nonzero(label != truth) < np.count_nonzero(rough != truth), "edges are left"
    assert (repaired(np.zeros_like(truth), truth, DILIGENT.tolerance_px) == truth).all()
