"""Pre-labeling with the tiny model, a real Redis and a fake Label Studio over HTTP."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from rq.job import Job
from rq.serializers import JSONSerializer
from typer.testing import CliRunner

from backend.errors import LabelingConfigError, LabelStudioError, PrelabelError
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from tests.worker.label_studio_server import LabelStudioServer
from worker import jobs
from worker.cli.commands import app
from worker.projects.chunks import ChunkProgress, ChunkReport, chunk_name, chunks_of
from worker.projects.prelabel import POST_BATCH, PhraseSource, check_source, run_name
from worker.queueing.queues import prelabel_queue
from worker.services import Services

pytestmark = pytest.mark.slow

UInt8Image = npt.NDArray[np.uint8]
PROJECT, BASE = 5, "ssp-sam-test-base"
CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
LABELS = RECOMMENDED_CONFIG.replace(
    '<Label value="object"', '<Label value="dog"/><Label value="c" alias="cat"'
)
BOTH = PhraseSource("phrases", ("the dog; a cat",))


@pytest.fixture(autouse=True)
def tasks(label_studio: LabelStudioServer, image: UInt8Image) -> list[int]:
    label_studio.add_project(PROJECT)
    for task in range(1, 4):
        label_studio.add_task(task, PROJECT, image)
    return [1, 2, 3]


def run(source: PhraseSource, tasks: list[int]) -> dict[str, Any]:
    return jobs.prelabel_chunk(PROJECT, "run", "chunk", source.to_dict(), tasks)


def phrases_of(services: Services, prediction: dict[str, Any]) -> set[str]:
    """With a mask, or without one, which only Redis says: one Submit saves what is in a prediction."""
    content = read_annotation(prediction, CONFIG)
    assert content.problems == ()
    assert {result["from_name"].partition("-")[0] for result in prediction["result"]} <= {"mask", "phrase"}
    nothing = services.redis_store.nothing_found(str(PROJECT), str(prediction["task"]))
    return {str(region.phrase) for region in content.regions} | set(nothing)


def test_every_task_gets_a_prediction(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    report = run(BOTH, tasks)

    assert [one["task"] for one in label_studio.predictions] == tasks
    assert {one["model_version"] for one in label_studio.predictions} == {BASE}
    assert all(phrases_of(services, one) == {"the dog", "a cat"} for one in label_studio.predictions)
    assert report["posted"] == report["tasks"] == 3
    assert report["masks"] > 0
    assert ChunkProgress(services.redis, "run").report(["chunk", "none"]) == ChunkReport(**report)
    for prediction in label_studio.predictions:
        for region in read_annotation(prediction, CONFIG).regions:
            assert services.served(region.region_id) is not None, "corrections can be told"


def test_doing_it_again_does_nothing(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    run(BOTH, tasks[:2])
    report = run(BOTH, tasks)

    assert [one["task"] for one in label_studio.predictions] == tasks
    assert (report["posted"], report["skipped"]) == (1, 2)
    assert run(PhraseSource("phrases", ("A Cat",)), tasks)["skipped"] == 3, "answered along with the dog"
    assert len(label_studio.predictions) == 3
    label_studio.predictions = [one | {"model_version": "older"} for one in label_studio.predictions]
    assert run(BOTH, tasks)["posted"] == 3, "a new version answers again"


def test_further_phrases_are_added_to_what_is_there(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    """Annotators begin with one prediction: with all phrases, also of a task that was opened before."""
    label_studio.post("/api/predictions/", {"task": 2, "model_version": BASE, "result": [], "score": None})
    label_studio.post("/api/predictions/", {"task": 3, "model_version": "older", "result": []})
    run(BOTH, tasks)
    ranked = label_studio.predictions[-1]
    ranked["score"] = 0.25

    report = run(PhraseSource("phrases", ("a bird; THE DOG",)), tasks)

    assert report["posted"] == 3
    found = {one["task"]: one for one in label_studio.predictions if one["model_version"] == BASE}
    assert len(label_studio.predictions) == len(found) + 1, "one for each task, and the older one"
    assert all(phrases_of(services, one) == {"the dog", "a cat", "a bird"} for one in found.values())
    assert found[2]["score"] is not None
    assert ranked["score"] == 0.25
    assert run(PhraseSource("phrases", ("a bird", "a cat")), tasks)["skipped"] == 3


def test_annotators_begin_with_what_was_predicted(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    project = label_studio.projects[PROJECT]
    run(PhraseSource("column", column="what"), tasks)
    assert "show_collab_predictions" not in project, "nothing is predicted"

    for _ in range(2):  # the second time everything is there
        run(BOTH, tasks)
        shown = {name: project.pop(name) for name in ("show_collab_predictions", "model_version")}
        assert shown == {"show_collab_predictions": True, "model_version": BASE}


def test_one_bad_image_does_not_stop_it(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.files[label_studio.tasks[2]["data"]["image"]] = b"no picture"
    label_studio.tasks[3]["data"]["image"] = "/data/upload/nothing.png"
    label_studio.tasks[9] = {"id": 9, "project": PROJECT, "data": {}}

    report = run(BOTH, [*tasks, 9, 77])

    assert [one["task"] for one in label_studio.predictions] == [1]
    assert sorted(report["problems"]) == ["2", "3", "9"]
    assert "not an image" in report["problems"]["2"]
    assert "404" in report["problems"]["3"]
    assert "has no image" in report["problems"]["9"]
    assert (report["tasks"], report["skipped"]) == (5, 1), "task 77 was deleted meanwhile"


def test_phrases_come_from_a_column(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.tasks[1]["data"]["what"] = "the dog; a cat;the dog"
    label_studio.tasks[2]["data"]["what"] = ["a bird", " "]
    report = run(PhraseSource("column", column="what"), tasks)

    assert [phrases_of(services, one) for one in label_studio.predictions] == [
        {"the dog", "a cat"},
        {"a bird"},
    ]
    assert report["skipped"] == 1


def test_a_phrase_that_cannot_be_read_does_not_lose_the_others(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.tasks[1]["data"]["what"] = ["the dog", "very " * 90]
    report = run(PhraseSource("column", column="what"), [1])

    assert [phrases_of(services, one) for one in label_studio.predictions] == [{"the dog"}]
    assert "too long" in report["problems"]["1"]


def test_labels_are_phrases(services: Services, label_studio: LabelStudioServer, tasks: list[int]) -> None:
    label_studio.add_project(PROJECT, LABELS)

    run(PhraseSource("labels"), [1])

    (prediction,) = label_studio.predictions
    assert phrases_of(services, prediction) == {"dog", "cat"}
    regions = {region.phrase: region.label for region in read_annotation(prediction, CONFIG).regions}
    assert regions.items() <= {"dog": "dog", "cat": "cat"}.items()


def test_predictions_are_posted_in_small_batches(
    services: Services, label_studio: LabelStudioServer, image: UInt8Image
) -> None:
    for task in range(10, 10 + 2 * POST_BATCH + 3):
        label_studio.add_task(task, PROJECT, image)
    run(BOTH, list(range(10, 10 + 2 * POST_BATCH + 3)))

    assert label_studio.posts == [POST_BATCH, POST_BATCH, 3]


def test_what_was_posted_before_label_studio_went_away_stays(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.refuse_posts = True
    with pytest.raises(LabelStudioError, match="502"):
        run(BOTH, tasks)
    label_studio.refuse_posts = False

    assert run(BOTH, tasks)["posted"] == 3


def test_a_form_without_a_brush_is_refused(
    services: Services, label_studio: LabelStudioServer, tasks: list[int]
) -> None:
    label_studio.add_project(PROJECT, '<View><Image name="image" value="$image"/></View>')

    with pytest.raises(LabelingConfigError, match="<BrushLabels>"):
        run(BOTH, tasks)
    done = CliRunner().invoke(app, ["prelabel", "--project", str(PROJECT), "--phrase", "a cat"])
    assert isinstance(done.exception, LabelingConfigError)


def test_runs_and_chunks_are_named_by_what_they_are() -> None:
    assert run_name("prelabel", 1, BOTH) == run_name("prelabel", 1, PhraseSource.from_dict(BOTH.to_dict()))
    names = {
        run_name("prelabel", 1, BOTH),
        run_name("rank", 1, BOTH),
        run_name("prelabel", 2, BOTH),
        run_name("prelabel", 1, PhraseSource("labels")),
    }
    assert len(names) == 4
    assert list(chunks_of(range(1, 8), 3)) == [[1, 2, 3], [4, 5, 6], [7]]
    assert list(chunks_of([])) == []
    assert chunk_name([1, 2, 3]) != chunk_name([1, 3])


@pytest.mark.parametrize(
    ("source", "reason"),
    [
        (PhraseSource("phrases", ("very " * 90,)), "too long"),
        (PhraseSource("phrases", (" ; ",)), "empty phrase"),
        (PhraseSource("labels"), "no label"),
    ],
)
def test_phrases_are_checked_before_anything_is_queued(source: PhraseSource, reason: str) -> None:
    bare = LabelingConfig.parse('<View><BrushLabels name="m" toName="i"/></View>')

    with pytest.raises(PrelabelError, match=reason):
        check_source(source, bare)


def test_the_command_queues_and_does_not_queue_twice(services: Services) -> None:
    command = ["prelabel", "--project", str(PROJECT), "--phrase", "the dog", "--detach"]
    for _ in range(2):
        done = CliRunner().invoke(app, command)
        assert done.exit_code == 0, done.output
        assert "3 tasks are queued, in 1 jobs" in done.output

    (number,) = prelabel_queue(services.redis).get_job_ids()
    job = Job.fetch(number, connection=services.redis, serializer=JSONSerializer)
    assert job.kwargs["task_ids"] == [1, 2, 3]
    assert job.kwargs["source"]["phrases"] == ["the dog"]
    assert job.retries_left == 3


@pytest.mark.parametrize(
    "options", [[], ["--phrase", "a", "--from-labels"], ["--from-column", "a", "--phrase", "b"]]
)
def test_one_source_of_phrases_is_needed(services: Services, options: list[str]) -> None:
    done = CliRunner().invoke(app, ["prelabel", "--project", str(PROJECT), *options])

    assert done.exit_code == 2
    assert "--from-column" in done.output
