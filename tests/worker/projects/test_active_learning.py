"""Active learning with the tiny model, a real Redis, a real worker and a fake Label Studio over HTTP."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from redis import Redis
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from backend.labelstudio.annotations import region_texts
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from sspsam import Predictor
from sspsam.version_store.store import VersionCard
from tests.worker.decisive import decisive_state
from tests.worker.label_studio_server import LabelStudioServer, region
from worker import jobs
from worker.cli.commands import app
from worker.projects.active_learning import SAMPLING, Scores, own_phrases
from worker.projects.chunks import TaskClaims
from worker.projects.prelabel import PhraseSource
from worker.queueing.queues import prelabel_queue
from worker.services import Services

pytestmark = pytest.mark.slow

PROJECT, SERVING = 5, "ssp-sam-test-0001"
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
CAT = PhraseSource("phrases", ("a cat",))
COPY = 4
"""Task with the picture of task 1."""


@pytest.fixture(autouse=True)
def tasks(label_studio: LabelStudioServer) -> list[int]:
    label_studio.add_project(PROJECT)
    for task in (1, 2, 3, COPY):
        rng = np.random.default_rng(1 if task == COPY else task)
        image = rng.integers(0, 60 * task if task != COPY else 60, (48, 64, 3), dtype=np.uint8)
        label_studio.add_task(task, PROJECT, image)
    return [1, 2, 3, COPY]


@pytest.fixture(autouse=True)
def version(services: Services) -> None:
    """Whose answers are of different certainty."""
    state = decisive_state()
    services.store.promote(services.store.publish(state, VersionCard(), {}).version_id)


def run(tasks: list[int], source: PhraseSource = CAT) -> dict[str, Any]:
    return jobs.rank_chunk(PROJECT, "run", "chunk", source.to_dict(), tasks)


def served(label_studio: LabelStudioServer) -> list[int]:
    """Tasks in the order in which Label Studio serves them."""
    ours = [one for one in label_studio.predictions if one["model_version"] == SERVING]
    return [int(one["task"]) for one in sorted(ours, key=lambda one: float(one["score"]))]


def test_tasks_get_predictions_in_the_order_of_certainty_with_duplicates_last(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    report = run(tasks)
    assert (report["tasks"], report["posted"], report["problems"]) == (4, 4, {})
    found = Scores(services.redis, "run").all()
    for prediction in label_studio.predictions:
        assert prediction["score"] == pytest.approx(found[prediction["task"]].certainty, abs=1e-4)
    same = pytest.approx(found[COPY].certainty, abs=1e-5)
    assert found[1].certainty == same, "the same picture, perhaps in another batch"

    assert jobs.order_project(PROJECT, "run") == {"ordered": 4}

    first, *others = served(label_studio)
    assert found[first].certainty == pytest.approx(min(one.certainty for one in found.values()), abs=1e-5)
    assert others[-1] in (1, COPY), "the one of the two that was not chosen is last"
    project = label_studio.projects[PROJECT]
    assert (project["sampling"], project["model_version"]) == (SAMPLING, SERVING)


def test_doing_it_again_posts_nothing_and_keeps_the_order(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    run(tasks)
    jobs.order_project(PROJECT, "run")
    before, order = [float(one["score"]) for one in label_studio.predictions], served(label_studio)

    assert run(tasks)["posted"] == 0
    jobs.order_project(PROJECT, "run")
    assert [one["score"] for one in label_studio.predictions] == pytest.approx(before, abs=1e-3)
    assert served(label_studio) == order


def test_of_equal_pictures_the_first_task_leads_however_their_batches_rounded(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    run(tasks)
    scores = Scores(services.redis, "run")
    for first, copy in ((0.3051471, 0.3051470), (0.3051470, 0.3051471)):
        for task, certainty in ((COPY, copy), (1, first)):
            scores.note(task, replace(scores.all()[task], certainty=certainty))
        jobs.order_project(PROJECT, "run")
        order = served(label_studio)
        assert order.index(1) < order.index(COPY) == 3


def test_annotated_and_deleted_tasks_are_left_alone(
    services: Services, label_studio: LabelStudioServer, mask: npt.NDArray[np.bool_], tasks: list[int]
) -> None:
    label_studio.save(7, 2, region("a", "a cat", mask))
    report = run([1, 2, 77])
    assert (report["posted"], report["skipped"]) == (1, 2)

    run([3])
    label_studio.predictions = [one for one in label_studio.predictions if one["task"] != 3]
    assert jobs.order_project(PROJECT, "run") == {"ordered": 1}


def test_a_task_that_another_job_of_the_run_has_is_left_to_it(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    """As after the run was started again with more tasks: both jobs would post a prediction."""
    prelabel_queue(services.redis).enqueue_call("worker.jobs.rank_chunk", job_id="run-other")
    assert TaskClaims(services.redis, "run", "other").take(2)
    report = run(tasks)
    assert (report["posted"], report["skipped"]) == (3, 1)
    assert 2 not in {one["task"] for one in label_studio.predictions}


def test_a_picture_that_cannot_be_had_does_not_stop_it(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.tasks[2]["data"]["image"] = "/data/upload/nothing.png"
    report = run(tasks)
    assert report["problems"].keys() == {"2"}
    assert jobs.order_project(PROJECT, "run") == {"ordered": 3}


def test_answers_of_another_version_are_not_compared(services: Services, tasks: list[int]) -> None:
    run(tasks)
    state = Predictor.from_preset("ssp-sam-test", "cpu").trainable_state()
    services.store.promote(services.store.publish(state, VersionCard(), {}).version_id)

    assert jobs.order_project(PROJECT, "run") == {"ordered": 0}
    run([1])
    assert jobs.order_project(PROJECT, "run") == {"ordered": 1}


def test_phrases_are_the_tasks_own_then_those_of_the_annotators_then_the_labels(
    services: Services, label_studio: LabelStudioServer, mask: npt.NDArray[np.bool_]
) -> None:
    assert own_phrases([], CONFIG) == PhraseSource("own", ("object",))
    for number, phrase in enumerate(["The cat", "a dog", "the cat"], start=1):
        label_studio.save(number, number, region(f"r{number}", phrase, mask))
        jobs.collect_annotation(PROJECT, number)
    source = own_phrases(services.collection(PROJECT).records(), CONFIG)
    assert source.phrases == ("the cat", "a dog")
    assert source.phrases_of({"image": "x"}, CONFIG) == ["the cat", "a dog"]
    assert source.phrases_of({"phrase": "a cup"}, CONFIG) == ["a cup"]
    assert PhraseSource.from_dict(source.to_dict()) == source


def test_phrases_of_other_images_only_score_a_task(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    """What a form begins with is saved by one Submit."""
    label_studio.tasks[2]["data"]["phrase"] = "a cat"
    run(tasks, PhraseSource("own", ("a cat", "a dog")))

    predicted = {one["task"]: one["result"] for one in label_studio.predictions}
    assert [task for task, result in predicted.items() if result] == [2]
    assert {result["from_name"].partition("-")[0] for result in predicted[2]} == {"mask", "phrase"}
    assert services.redis_store.nothing_found(str(PROJECT), "1") == {}
    assert len(Scores(services.redis, "run").all()) == len(tasks)
    assert run(tasks, PhraseSource("own", ("a cat", "a dog")))["posted"] == 0


def test_a_prelabelled_task_keeps_its_masks_in_one_prediction(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    jobs.prelabel_chunk(PROJECT, "run", "chunk", PhraseSource("phrases", ("a dog",)).to_dict(), [1])
    (before,) = label_studio.predictions
    report = run([1])
    assert report["posted"] == 1
    (after,) = label_studio.predictions
    assert after["id"] == before["id"]
    assert {phrase for phrase, _ in region_texts(after, CONFIG).values()} == {"a dog", "a cat"}
    assert jobs.order_project(PROJECT, "run") == {"ordered": 1}


def test_a_column_that_no_task_has_is_refused(services: Services, tasks: list[int]) -> None:
    done = CliRunner().invoke(app, ["rank", "--project", str(PROJECT), "--from-column", "captoin"])
    assert done.exit_code != 0
    assert "no task has the column 'captoin'; there are: image" in str(done.exception)


@pytest.mark.slow
def test_the_command_has_workers_do_it(
    services: Services, label_studio: LabelStudioServer, environment: dict[str, str], redis_server: Redis
) -> None:
    command = [sys.executable, "-m", "worker", "rank", "--project", str(PROJECT), "--phrase", "a cat"]
    for _ in range(2):
        subprocess.run([*command, "--detach"], env=environment, check=True)
    (number,) = prelabel_queue(services.redis).get_job_ids()
    job = Job.fetch(number, connection=services.redis, serializer=JSONSerializer)
    assert job.func_name == "worker.jobs.rank_chunk", "the order waits for it"
    worker = [sys.executable, "-m", "worker", "worker", "--burst", "--queues", "prelabel"]
    subprocess.run(worker, env=environment, check=True)

    assert len(served(label_studio)) == 4
    assert label_studio.projects[PROJECT]["sampling"] == SAMPLING


def test_one_source_of_phrases_is_enough(services: Services) -> None:
    command = ["rank", "--project", str(PROJECT), "--phrase", "a", "--from-column", "b"]
    assert CliRunner().invoke(app, command).exit_code == 2
