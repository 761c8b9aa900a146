"""The promotion gate favours neither the version whose masks were repaired nor a candidate: a simulation."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import numpy as np
import pytest

from benchmarks.common.simulated import RULES, Compared, SimulatedModel, compare_models, repaired
from finetune.data.sample import Sample
from worker.finetuning.policy import MARGIN

# A simulation; the module's fixtures are made once.
pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("gate-bias")]

HW = (120, 160)
SHOWN = SimulatedModel(seed=1, edge_px=0.8)
TOLERANCE_PX, REFINED_PX = 2.5, 0.0
GATE = RULES[-1].name


@cache
def ellipses(seed: int = 0, images: int = 40) -> Sequence[Sample]:
    """Three objects in each image."""
    rng = np.random.default_rng(seed)
    rows, columns = np.ogrid[: HW[0], : HW[1]]
    blank = np.zeros((1, 1, 3), np.uint8)
    return [
        Sample(f"{seed}/{image}/{number}", f"{seed}/{image}", blank, f"object {number}", mask)
        for image in range(images)
        for number in range(3)
        for (y, x), (height, width) in [(rng.uniform((30, 30), (90, 130)), rng.uniform(12, 28, 2))]
        for mask in [((rows - y) / height) ** 2 + ((columns - x) / width) ** 2 < 1]
    ]


def bias(compared: Sequence[Compared]) -> float:
    return float(np.mean([one.bias for one in compared]))


def equal(seed: int) -> dict[str, Compared]:
    """Two equally good models, by each rule."""
    shown, other = replace(SHOWN, seed=2 * seed), replace(SHOWN, seed=2 * seed + 1)
    return compare_models(ellipses(seed), shown, other, TOLERANCE_PX)


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


@pytest.mark.parametrize(
    ("changes", "tolerance_px", "promote"),
    [
        pytest.param(
            {"nothing": 0.03, "elsewhere": 0.03, "part": 0.1}, TOLERANCE_PX, True, id="fewer errors"
        ),
        pytest.param({"nothing": 0.2, "elsewhere": 0.2, "part": 0.5}, TOLERANCE_PX, False, id="more errors"),
        pytest.param({"edge_px": 4.0}, TOLERANCE_PX, False, id="ragged edges"),
        pytest.param({"edge_px": 1.0}, REFINED_PX, True, id="better edges, where annotators draw them"),
        pytest.param({"edge_px": 4.0}, REFINED_PX, False, id="worse edges, where annotators draw them"),
    ],
)
def test_a_better_model_wins_and_a_worse_one_loses(
    changes: dict[str, float], tolerance_px: float, promote: bool
) -> None:
    shown = replace(SHOWN, edge_px=1.2)
    if tolerance_px == REFINED_PX:
        shown = replace(shown, nothing=0, elsewhere=0, part=0, edge_px=2.5)
    verdict = compare_models(ellipses(), shown, replace(shown, seed=2, **changes), tolerance_px)[GATE].verdict
    assert verdict.promote is promote, verdict.reason


def test_the_same_answers_always_give_the_same_verdict() -> None:
    assert equal(0) == equal(0)


def test_an_annotator_repairs_gross_errors_alone() -> None:
    truth, model = ellipses()[0].mask, replace(SHOWN, seed=7, nothing=0, elsewhere=0, part=1)
    rough = model.answer(ellipses()[0])
    label = repaired(rough, truth, TOLERANCE_PX)
    assert 0 < np.count_nonzero(label != truth) < np.count_nonzero(rough != truth), "edges are left"
    assert (repaired(np.zeros_like(truth), truth, TOLERANCE_PX) == truth).all()
