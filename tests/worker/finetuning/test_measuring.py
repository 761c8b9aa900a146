"""Evaluation of both versions on both data sets: input of the gate, content of card and page."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from finetune.data.dataset import open_dataset
from finetune.evaluation.evaluate import evaluate
from finetune.evaluation.report import compare
from sspsam import Predictor
from tests.facts import untold
from tests.worker.finetuning.test_runs import prepare, record
from worker.finetuning.measuring import (
    BASE_TITLE,
    HELD_OUT_TITLE,
    Measured,
    State,
    drawn_edges,
    measure,
    to_metrics,
    verdict_of,
)
from worker.finetuning.runs import Run, run_folder
from worker.finetuning.training import perform
from worker.services import Services

pytestmark = [
    pytest.mark.slow,
    pytest.mark.xdist_group("measuring"),  # the module's fixtures are made once
]

HELD_OUT = "stickers/train?count=3&phrases=2"
BASE = "stickers/val?count=2&phrases=3"


def changed(state: State) -> State:
    """Tensors that answer otherwise."""
    generator = torch.Generator().manual_seed(0)
    return {
        name: tensor + torch.randn(tensor.shape, generator=generator)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in state.items()
    }


@pytest.fixture(scope="module")
def states() -> tuple[State, State]:
    incumbent = {
        k: v.clone() for k, v in Predictor.from_preset("ssp-sam-test", "cpu").trainable_state().items()
    }
    return incumbent, changed(incumbent)


@pytest.fixture(scope="module")
def measured(states: tuple[State, State]) -> Measured:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    return measure(predictor, *states, open_dataset(HELD_OUT), open_dataset(BASE))


@pytest.mark.slow
def test_each_version_is_asked_about_both_data_sets(measured: Measured, states: tuple[State, State]) -> None:
    assert [section.title for section in measured.sections] == [HELD_OUT_TITLE, BASE_TITLE]
    for section, data in zip(measured.sections, (HELD_OUT, BASE), strict=True):
        for state, result in zip(states, (section.incumbent, section.candidate), strict=True):
            predictor = Predictor.from_preset("ssp-sam-test", "cpu")
            predictor.load_trainable(state)
            alone = evaluate(predictor, open_dataset(data))
            assert result.overall == alone.overall
            assert result.per_sample == alone.per_sample
        assert section.incumbent.overall != section.candidate.overall, "or the test shows nothing"


def test_the_card_holds_what_the_gate_needs_to_know(measured: Measured) -> None:
    metrics = to_metrics(measured, BASE, tolerance=0.5)
    assert metrics["held_out_samples"] == 6
    assert metrics["held_out_images"] == 3
    known = metrics["base_validation"]
    assert (known["data"], known["tolerance"]) == (BASE, 0.5)
    assert (known["samples"], known["images"]) == (6, 2)
    assert measured.base is not None
    assert known["interval"] == compare(measured.base.incumbent, measured.base.candidate).interval
    assert known["candidate"]["gIoU"] == measured.base.candidate.overall["gIoU"]


def test_the_gate_judges_by_the_base_figures_of_the_card(measured: Measured) -> None:
    metrics = to_metrics(measured, BASE, tolerance=0.02)
    better = {"incumbent": {"gIoU": 0.1}, "candidate": {"gIoU": 0.9}}
    for before, after, promote in [(0.5, 0.5, True), (0.5, 0.47, False), (None, 0.5, False)]:
        known = {"incumbent": {"gIoU": before}, "candidate": {"gIoU": after}}
        verdict = verdict_of(metrics | better | {"base_validation": metrics["base_validation"] | known})
        assert verdict.promote is promote, verdict.reason
        assert "6 phrases" in verdict.reason


def test_edges_that_annotators_left_are_not_compared(states: tuple[State, State], measured: Measured) -> None:
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    left = measure(predictor, *states, open_dataset(HELD_OUT), open_dataset(BASE), drawn_edges=0.4)
    assert (left.held_out.incumbent.edges, left.held_out.candidate.edges) == (False, False)
    assert left.held_out.incumbent.overall != measured.held_out.incumbent.overall
    assert left.base is not None
    assert measured.base is not None
    assert left.base.candidate.overall == measured.base.candidate.overall, "its edges are true ones"
    metrics = to_metrics(left, BASE, tolerance=0.5)
    assert untold(verdict_of(metrics).reason, "40%", "edges") == []
    assert untold(verdict_of(to_metrics(measured, BASE, tolerance=0.5)).reason, "edges") == ["edges"]


def test_the_gate_judges_all_phrases_asked(states: tuple[State, State]) -> None:
    """Labels are weighted by the phrases asked in the project, and unanswered phrases are asked again."""
    held_out = open_dataset("stickers/train?count=5&phrases=4")
    samples = [held_out[number] for number in range(len(held_out))]
    kinds = {sample.sample_id: "accepted" if sample.has_target else "absent" for sample in samples}
    assert set(kinds.values()) == {"accepted", "absent"}
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    measured = measure(predictor, *states, held_out, None, kinds=kinds, unanswered=open_dataset(HELD_OUT))
    project = samples[0].sample_id.partition("/")[0]
    assert measured.unanswered is not None
    assert measured.sections == [measured.held_out], "scores of unanswered phrases mean nothing"
    run = Run("run", "line", (1,), "preset", "base", "base", "digest", (), asked={project: {"absent": 70}})
    metrics = to_metrics(measured, None, tolerance=0.02, run=run)
    assert (metrics["asked"], metrics["unanswered"]) == (70, 6)
    assert metrics["held_out_samples"] == len(samples)
    assert "the 70 phrases asked" in verdict_of(json.loads(json.dumps(metrics))).reason
    plain = to_metrics(measured, None, tolerance=0.02, run=replace(run, asked={}))
    assert plain["candidate"] == measured.held_out.candidate.overall, "a run of an earlier release"
    assert metrics["candidate"]["gIoU"] == measured.held_out.candidate.overall["N-acc"]
    assert plain["candidate"]["gIoU"] != metrics["candidate"]["gIoU"]


def test_edges_of_hand_drawn_refined_and_accepted_masks(tmp_path: Path) -> None:
    accepted = record(1, tmp_path)
    accepted = replace(accepted, served_rle=accepted.mask_rle)
    drawn, absent = record(2, tmp_path), replace(record(3, tmp_path), mask_rle=None, region=None)
    assert drawn_edges([drawn, absent]) == 1
    assert drawn_edges([absent]) == 1
    assert drawn_edges([accepted]) == 0
    assert drawn_edges([accepted, drawn, drawn, absent]) == pytest.approx(2 / 3)
    for served in ({"size": [9, 9], "counts": "a"}, {"size": [6, 8], "counts": "not a mask"}):
        assert drawn_edges([replace(accepted, served_rle=served)]) == 1, "the proposal is unknown"


def test_without_a_base_set_that_is_said(measured: Measured) -> None:
    alone = replace(measured, base=None)
    assert alone.sections == [measured.held_out]
    metrics = to_metrics(alone, None, tolerance=0.02)
    assert "base_validation" not in metrics
    assert "Forgetting was not measured: set VALIDATION_DATA" in verdict_of(metrics).reason


@pytest.mark.slow
def test_a_fine_tune_in_two_processes_measures_and_reports_what_was_known_before(services: Services) -> None:
    update = {"validation_data": BASE, "replay_data": "stickers/train?count=4", "validation_tolerance": 0.0}
    settings = services.settings.model_copy(update={**update, "finetune_processes": 2})
    run = prepare(services, count=33)
    card = perform(run, services.store, settings)
    known = card.metrics["base_validation"]
    assert (known["data"], known["tolerance"], known["samples"]) == (BASE, 0.0, 6)
    assert card.config["replay"] == "stickers/train?count=4"
    assert (card.data["trained_on"], card.data["stopped_by"], card.data["held_out"]) == (28, 4, 1)
    assert 0 <= card.data["best_step"] <= card.data["steps"] <= card.config["steps"]
    page = (services.store.path(card.version_id) / "report.html").read_text()
    assert "validation total" in page
    assert page.index(HELD_OUT_TITLE) < page.index(BASE_TITLE)
    verdict = verdict_of(services.store.get(card.version_id).metrics)
    assert untold(verdict.reason, "6 phrases", "-0.000") == []
    assert run_folder(settings.model_dir, run.run_id).is_dir(), "until it is judged"
