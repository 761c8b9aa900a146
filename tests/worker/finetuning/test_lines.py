"""Fine-tunes of projects with lines of their own, and of projects that share one."""

from __future__ import annotations

import json
import os
from dataclasses import replace
from statistics import mean

import pytest
import torch

from backend.shared_redis import WANTED_KEY
from backend.state.known_projects import KnownProject
from finetune.data.records import read_records
from finetune.evaluation.evaluate import EvaluationResult, SampleResult
from finetune.evaluation.html_report import MeasuredOn
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.sharing import share
from sspsam.version_store.store import VersionCard
from tests.facts import untold
from tests.worker.finetuning.test_runs import record
from worker import jobs
from worker.finetuning.decisions import Request, maybe_start_finetune
from worker.finetuning.measuring import Measured, to_metrics, verdict_of
from worker.finetuning.policy import FEW_IMAGES, Measurement, Verdict, judge
from worker.finetuning.runs import HELD_OUT_FILE, TRAIN_FILE, Run, run_folder
from worker.queueing.queues import training_queue
from worker.services import Services

KOALAS, GUITARS = 3, 7
"""Projects. In the second, guitars are called koalas."""
IMAGES = 8


@pytest.fixture(autouse=True)
def two_projects(services: Services) -> None:
    for project in (KOALAS, GUITARS):
        correct(services, project, range(IMAGES))
        services.redis_store.projects.note(KnownProject(str(project)))


def correct(services: Services, project: int, images: range, **changes: object) -> None:
    """Corrections of the same images in each project."""
    for number in images:
        annotation = 1000 * project + number
        made = record(number, services.settings.images_dir, project=project, annotation=annotation, **changes)
        services.collection(project).replace(annotation, [made])


def queued_run(services: Services) -> Run:
    [job] = training_queue(services.redis).jobs
    return Run.read(run_folder(services.settings.model_dir, job.id))


def projects_in(services: Services, run: Run, name: str) -> set[int]:
    folder = run_folder(services.settings.model_dir, run.run_id)
    return {record.project for record in read_records(folder / name)}


def promote(services: Services, line: str, **card: object) -> str:
    made = VersionCard(line=line, **card)  # type: ignore[arg-type]
    version = services.store.publish({"w": torch.ones(1)}, made, {}).version_id
    services.store.promote(version)
    return version


def test_a_project_learns_from_its_own_records_and_its_own_version(services: Services) -> None:
    mine, other = (promote(services, line_of_project(project)) for project in (KOALAS, GUITARS))
    assert maybe_start_finetune(services, KOALAS, "now").start
    run = queued_run(services)
    assert (run.line, run.projects, run.base_version) == ("project-3", (KOALAS,), mine)
    assert projects_in(services, run, TRAIN_FILE) == projects_in(services, run, HELD_OUT_FILE) == {KOALAS}
    training_queue(services.redis).empty()
    assert maybe_start_finetune(services, GUITARS, "now").start
    assert queued_run(services).base_version == other


def test_both_may_be_queued_at_once(services: Services) -> None:
    decisions = jobs.check_projects()
    assert [decisions[str(project)]["start"] for project in (KOALAS, GUITARS)] == [True, True]
    assert len(training_queue(services.redis).jobs) == 2


def test_what_a_project_accepted_does_not_keep_another_from_holding_out(services: Services) -> None:
    """Masks accepted in one project are for training there; the other one corrects the same images."""
    for annotation in range(3000, 3000 + IMAGES):
        [made] = services.collection(KOALAS).of_annotation(annotation)
        services.collection(KOALAS).replace(annotation, [replace(made, served_rle=made.mask_rle)])
    assert not maybe_start_finetune(services, KOALAS, "now").start
    assert maybe_start_finetune(services, GUITARS, "now").start


def test_a_version_promoted_in_one_line_leaves_the_run_of_another_in_force(services: Services) -> None:
    maybe_start_finetune(services, KOALAS, "now")
    run = queued_run(services)
    metrics = {
        "incumbent": {"gIoU": 0.5}, "candidate": {"gIoU": 0.6}, "held_out_samples": 2, "held_out_images": 2,
    }  # fmt: skip
    promote(services, line_of_project(GUITARS))
    card = VersionCard(line=run.line, metrics=metrics, data={"run": run.run_id, "project": KOALAS})
    services.store.publish({"w": torch.ones(1)}, card, {})
    result = jobs.finetune(KOALAS, run.run_id)
    assert isinstance(result, dict)
    assert result["status"] == "promoted"
    lines = [line_of_project(project) for project in (KOALAS, GUITARS)]
    assert [services.store.current(line) for line in lines] == ["ssp-sam-test-0002", "ssp-sam-test-0001"]


def test_projects_that_share_a_line_learn_together_and_hold_out_each(services: Services) -> None:
    correct(services, 9, range(IMAGES))
    share(services.store, [KOALAS, GUITARS], "animals")
    assert maybe_start_finetune(services, GUITARS, "now").start
    run = queued_run(services)
    assert (run.line, run.projects) == ("animals", (KOALAS, GUITARS))
    assert run.run_id.startswith(f"finetune-animals-{run.digest[:16]}-")
    for name in (TRAIN_FILE, HELD_OUT_FILE):
        assert projects_in(services, run, name) == {KOALAS, GUITARS}
    again = maybe_start_finetune(services, KOALAS, "now")
    assert run.run_id in again.reason
    for project in (KOALAS, GUITARS):
        line = services.line(project).name
        assert services.redis_store.worker.decision(line)["reason"] == again.reason


def test_where_all_share_one_line_one_decision_is_made(services: Services) -> None:
    shared = Services(services.settings.model_copy(update={"model_lines": "shared"}))
    decision = maybe_start_finetune(shared, KOALAS, "now")
    assert decision.start
    assert (queued_run(services).line, queued_run(services).projects) == ("shared", (KOALAS, GUITARS))


def test_the_schedule_decides_once_for_a_shared_line(services: Services) -> None:
    share(services.store, [KOALAS, GUITARS])
    assert [decision["start"] for decision in jobs.check_projects().values()] == [True, True]
    assert len(training_queue(services.redis).jobs) == 1


def test_a_run_of_a_line_that_projects_have_left_is_dropped(services: Services) -> None:
    maybe_start_finetune(services, KOALAS, "now")
    run = queued_run(services)
    share(services.store, [KOALAS, GUITARS], "animals")
    result = jobs.finetune(KOALAS, run.run_id)
    assert isinstance(result, dict)
    assert (result["status"], "animals" in result["reason"]) == ("outdated", True)


def test_what_runs_without_a_job_have_left_goes_after_a_day(services: Services) -> None:
    """Those of jobs that failed are kept as long as the job, which may be started again."""
    maybe_start_finetune(services, KOALAS, "now")
    run = queued_run(services)
    share(services.store, [KOALAS, GUITARS], "animals")
    training_queue(services.redis).enqueue_call("worker.jobs.finetune", job_id="failed")
    left, recent, failed = (
        run_folder(services.settings.model_dir, name) for name in ("left", "recent", "failed")
    )
    for folder in (left, recent, failed):
        (folder / "training").mkdir(parents=True)
    for folder in (left, failed):
        for path in (folder / "training", folder):
            os.utime(path, (0, 0))
    jobs.finetune(KOALAS, run.run_id)
    assert [folder.exists() for folder in (left, recent, failed)] == [False, True, True]


def test_a_fine_tune_from_the_base_weights_on_request(services: Services) -> None:
    mine = promote(services, line_of_project(KOALAS))
    other = promote(services, line_of_project(GUITARS))
    assert jobs.maybe_finetune(KOALAS, "now", "base")["start"]
    run = queued_run(services)
    assert (run.base_version, run.start_version) == (mine, services.store.base_version)
    for version in (other, "ssp-sam-test-0009"):
        refused = jobs.maybe_finetune(KOALAS, "now", version)
        assert (refused["start"], version in refused["reason"]) == (False, True)


def test_a_deferred_request_keeps_the_version_to_start_from(services: Services) -> None:
    base = promote(services, "")
    promote(services, line_of_project(KOALAS))
    maybe_start_finetune(services, KOALAS, "now")
    first = queued_run(services)
    correct(services, KOALAS, range(IMAGES, IMAGES + 1))
    assert maybe_start_finetune(services, KOALAS, "now", start_version=base).deferred
    assert Request.parse(services.redis.get(WANTED_KEY.format(line=KOALAS))) == Request("now", base)
    training_queue(services.redis).empty()
    assert maybe_start_finetune(services, KOALAS, "schedule").start
    assert (queued_run(services).start_version, first.start_version) == (base, first.base_version)


# The gate


def measured(before: float, after: float, images: int = FEW_IMAGES) -> Measurement:
    return Measurement(before, after, samples=2 * images, images=images, interval=(0.01, 0.2))


@pytest.mark.parametrize(
    ("projects", "promoted", "told"),
    [
        ({"3": measured(0.5, 0.7), "7": measured(0.5, 0.7)}, True, ["2 projects, 2 with"]),
        ({"3": measured(0.5, 0.9), "7": measured(0.5, 0.485)}, True, ["2 projects, 2 with"]),
        (
            {"3": measured(0.5, 0.9), "7": measured(0.743, 0.0)},
            False,
            ["Project 7", "0.743 -> 0.000", "-0.020"],
        ),
        ({"3": measured(0.5, 0.9), "7": measured(0.7, 0.0, FEW_IMAGES - 1)}, True, ["2 projects, 1 with"]),
    ],
    ids=["both gain", "within the tolerance", "one loses", "too few images to tell"],
)
def test_no_project_of_a_shared_line_may_lose(
    projects: dict[str, Measurement], promoted: bool, told: list[str]
) -> None:
    verdict = judge(measured(0.5, 0.6), measured(0.8, 0.8), tolerance=0.02, projects=projects)
    assert verdict.promote is promoted
    assert untold(verdict.reason, *told) == []


def evaluated(by_project: dict[str, float]) -> EvaluationResult:
    """IoU of each of five images, by project."""
    samples = [
        SampleResult(f"{project}/{image}/1/r", f"image {image}", iou)
        for project, iou in by_project.items()
        for image in range(FEW_IMAGES)
    ]
    return EvaluationResult({"gIoU": mean(sample.iou for sample in samples)}, per_sample=samples)


@pytest.mark.parametrize(("bats", "promoted"), [(0.8, True), (0.1, False)])
def test_each_project_of_a_shared_line_is_judged_by_the_phrases_asked_in_it(
    services: Services, bats: float, promoted: bool
) -> None:
    """Project 3 was asked a hundred times as much, so the mean of all phrases is its own."""
    share(services.store, [KOALAS, GUITARS], "animals")
    maybe_start_finetune(services, KOALAS, "now")
    before, after = evaluated({"3": 0.2, "7": 0.7}), evaluated({"3": 0.9, "7": bats})
    kinds = {sample.sample_id: "added" for sample in before.per_sample}
    run = replace(queued_run(services), asked={"3": {"added": 500}, "7": {"added": 5}})
    metrics = to_metrics(Measured(MeasuredOn("", before, after), None, {}, kinds=kinds), None, 0.02, run)
    assert metrics["candidate"]["gIoU"] == pytest.approx((500 * 0.9 + 5 * bats) / 505)
    assert metrics["projects"]["7"]["candidate"]["gIoU"] == pytest.approx(bats)
    assert (metrics["asked"], metrics["projects"]["7"]["asked"]) == (505, 5)
    verdict = verdict_of(json.loads(json.dumps(metrics)))
    assert verdict.promote is promoted
    assert ("Project 7 loses" in verdict.reason) is not promoted


def test_boxes_are_judged_by_their_hits() -> None:
    def answers(hits: int, masks: int = 0) -> EvaluationResult:
        samples = [SampleResult(f"7/{n}/1/r", f"image {n}", float(n < hits), is_box=True) for n in range(8)]
        samples += [SampleResult(f"7/{n}/2/r", f"image {n}", 0.5) for n in range(masks)]
        return EvaluationResult({"gIoU": mean(sample.iou for sample in samples)}, per_sample=samples)

    def judged(masks: int) -> tuple[Verdict, str]:
        measured = Measured(MeasuredOn("", answers(2, masks), answers(7, masks)), None, {})
        metrics = json.loads(json.dumps(to_metrics(measured, None, 0.02)))
        return verdict_of(metrics), metrics["metric"]

    boxes, metric = judged(masks=0)
    assert (boxes.promote, metric) == (True, "Acc@0.5")
    assert boxes.reason.startswith("Acc@0.5 0.250 -> 0.875 (+0.625"), boxes.reason
    mixed, metric = judged(masks=4)
    assert (mixed.promote, metric) == (True, "gIoU")
    assert untold(mixed.reason, "gIoU 0.333 -> 0.750", "12 labels", "8 of them boxes, by Acc@0.5") == []


@pytest.mark.parametrize(("bats", "promoted"), [(0.8, True), (0.1, False)])
def test_the_card_of_a_shared_line_has_the_figures_of_each_project(
    services: Services, bats: float, promoted: bool
) -> None:
    share(services.store, [KOALAS, GUITARS], "animals")
    maybe_start_finetune(services, KOALAS, "now")
    held_out = MeasuredOn("", evaluated({"3": 0.2, "7": 0.7}), evaluated({"3": 0.9, "7": bats}))
    metrics = to_metrics(Measured(held_out, None, {}), None, 0.02, queued_run(services))
    assert metrics["projects"]["7"] == {
        "incumbent": {"gIoU": pytest.approx(0.7)}, "candidate": {"gIoU": pytest.approx(bats)},
        "samples": FEW_IMAGES, "images": FEW_IMAGES,
    }  # fmt: skip
    verdict = verdict_of(json.loads(json.dumps(metrics)))
    assert ("Project 7 loses" in verdict.reason) is not promoted
    assert verdict.promote is promoted


@pytest.mark.parametrize(("after", "promoted"), [(0.6, True), (0.485, True), (0.47, False)])
def test_a_fine_tune_from_another_version_must_not_be_worse(after: float, promoted: bool) -> None:
    verdict = judge(measured(0.5, after), measured(0.8, 0.8), tolerance=0.02, restarts=True)
    assert verdict.promote is promoted
    assert untold(verdict.reason, f"0.500 -> {after:.3f}", "-0.020 is allowed") == []
    assert not judge(measured(0.5, after), measured(0.8, 0.7), tolerance=0.02, restarts=True).promote
