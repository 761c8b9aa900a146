"""Predictions ahead of annotation in a real Label Studio: whole projects, and opened or selected tasks."""

from typing import Any

import numpy as np
import pytest
import requests

from backend.errors import LabelStudioError
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.config_patch import completed_config
from backend.labelstudio.predictions import ProposedRegion, as_held, emptied, region_results
from tests.integration.conftest import RunningLabelStudio
from tests.integration.project import (
    CONFIG,
    PICTURES,
    WAIT_S,
    Project,
    run_sspsam,
    sspsam,
)


def test_the_next_tasks_are_those_that_nobody_has_annotated(project: Project) -> None:
    first, *rest = project.tasks
    assert [task["id"] for task in project.client.next_tasks(project.number, PICTURES)] == project.tasks

    project.client.create_annotation(first, [])

    assert [task["id"] for task in project.client.next_tasks(project.number, PICTURES)] == rest
    assert [task["id"] for task in project.client.next_tasks(project.number, 1)] == rest[:1]
    done = sspsam(project, "prefetch", "--project", str(project.number), "--limit", str(PICTURES))
    assert "images embedded:" in done


def test_a_whole_project_is_prelabelled_once(project: Project) -> None:
    broken = int(
        project.client.import_tasks(project.number, [{"image": "/data/upload/1/nothing.png"}])["task_count"]
    )
    assert broken == 1
    (bad,) = {task["id"] for task in project.client.tasks(project.number)} - set(project.tasks)
    command = ["prelabel", "--project", str(project.number), "--phrase", "the crab; the fish"]
    serving = project.client.ml_backends(project.number)[0]["model_version"]

    first = run_sspsam(project, *command)

    assert first.returncode == 1, "one image is bad"
    assert f"task {bad}: " in first.stderr
    assert f"predictions: {PICTURES} with" in first.stdout
    fields = project.client.project(project.number)
    assert (fields["show_collab_predictions"], fields["model_version"]) == (True, serving), "to begin with"
    predictions = {task: project.client.predictions(task) for task in project.tasks}
    assert {len(found) for found in predictions.values()} == {1}
    for (prediction,) in predictions.values():
        assert prediction["model_version"] == serving
        assert phrases_of(prediction) <= {"the crab", "the fish"}

    project.client.delete_task(bad)
    again = run_sspsam(project, *command)
    assert again.returncode == 0, again.stderr
    assert f"predictions: 0 with 0 masks, tasks skipped: {PICTURES}" in again.stdout


def test_phrases_of_a_whole_project_come_from_a_column_or_from_the_labels(project: Project) -> None:
    first, second, *rest = project.tasks
    for task, caption in ((first, "the crab"), (second, "the fish; a phone")):
        project.client.update_task(task, {**project.client.task(task)["data"], "caption": caption})
    more = '<Label value="object"/><Label value="S" alias="shirt"'
    labels = RECOMMENDED_CONFIG.replace('<Label value="object"', more)
    command = ["prelabel", "--project", str(project.number)]

    by_column = sspsam(project, *command, "--from-column", "caption")
    project.client.update_project(project.number, label_config=labels)
    by_label = sspsam(project, *command, "--from-labels")

    assert f"tasks skipped: {len(rest)}" in by_column, "those without a caption"
    assert "tasks skipped: 0" in by_label
    (prediction,) = project.client.predictions(second)
    assert phrases_of(prediction) <= {"the fish", "a phone", "object", "shirt"}
    assert {len(project.client.predictions(task)) for task in rest} == {1}


def phrases_of(prediction: dict[str, Any]) -> set[str | None]:
    """Of its masks, which are all that it has."""
    assert {result["from_name"].partition("-")[0] for result in prediction["result"]} <= {"mask", "phrase"}
    return {region.phrase for region in read_annotation(prediction, CONFIG).regions}


def test_retrieve_predictions_answers_each_task_by_its_own_data(project: Project) -> None:
    """What the Data Manager sends for the tasks that are selected."""
    one, several, none, broken = project.tasks
    for task, data in (
        (one, {"phrase": "the crab"}),
        (several, {"phrases": ["the crab", "the fish"]}),
        (broken, {"phrase": "the crab", "image": "/data/upload/1/nothing.png"}),
    ):
        project.client.update_task(task, {**project.client.task(task)["data"], **data})

    for _ in range(2):
        answer = requests.post(
            f"{project.client.url}/api/dm/actions",
            params={"id": "retrieve_tasks_predictions", "project": str(project.number)},
            json={"selectedItems": {"all": True, "excluded": []}},
            headers={"Authorization": project.client.authorization()},
            timeout=WAIT_S,
        )
        assert answer.ok, answer.text

    found = {task: [phrases_of(each) for each in project.client.predictions(task)] for task in project.tasks}
    assert {task: len(predictions) for task, predictions in found.items()} == {
        one: 1,
        several: 1,
        none: 1,  # so that it is not asked for again
        broken: 0,  # so that it is
    }
    assert found[one][0] <= {"the crab"}
    assert found[several][0] <= {"the crab", "the fish"}
    assert found[none] == [set()]


def test_opening_a_task_predicts_by_its_data_once(project: Project) -> None:
    with_phrase, without, *_ = project.tasks
    fields = project.client.task(with_phrase)["data"]
    project.client.update_task(with_phrase, {**fields, "phrase": "the crab"})
    project.client.update_project(project.number, show_collab_predictions=True)

    for _ in range(2):
        for task in (with_phrase, without):
            project.client.task(task)  # as the editor does when it opens one

    (prediction,) = project.client.predictions(with_phrase)
    assert phrases_of(prediction) <= {"the crab"}
    assert [one["result"] for one in project.client.predictions(without)] == [[]]


CONTROLS = {
    "brush": '<BrushLabels name="shape" toName="image">{labels}</BrushLabels>',
    "bitmask": '<BitmaskLabels name="shape" toName="image">{labels}</BitmaskLabels>',
    "polygon": '<PolygonLabels name="shape" toName="image">{labels}</PolygonLabels>',
    "rectangle": '<RectangleLabels name="shape" toName="image">{labels}</RectangleLabels>',
    "brush and labels": '<Brush name="shape" toName="image"/>'
    '<Labels name="what" toName="image">{labels}</Labels>',
    "bitmask and labels": '<Bitmask name="shape" toName="image"/>'
    '<Labels name="what" toName="image">{labels}</Labels>',
    "polygon and labels": '<Polygon name="shape" toName="image"/>'
    '<Labels name="what" toName="image">{labels}</Labels>',
    "rectangle and labels": '<Rectangle name="shape" toName="image"/>'
    '<Labels name="what" toName="image">{labels}</Labels>',
    "polygon without labels": '<Polygon name="shape" toName="image"/>',
}


@pytest.mark.parametrize("kind", CONTROLS)
def test_label_studio_accepts_forms_and_predictions_of_every_kind(
    label_studio: RunningLabelStudio, kind: str
) -> None:
    """It validates both: the form that `connect` completes, and the predictions that are imported, with an
    object in two parts and a region without pixels.
    """
    client = label_studio.client
    labels = '<Label value="cat"/><Label value="dog" alias="hound"/>'
    own = f'<View><Image name="image" value="$image"/>{CONTROLS[kind].format(labels=labels)}</View>'
    number = int(client.create_project(kind, own)["id"])
    completed = completed_config(own)
    client.validate_config(number, completed)
    client.update_project(number, label_config=completed)
    client.import_tasks(number, [{"image": "/data/upload/1/a.png"}])
    (task,) = client.tasks(number)
    mask = np.zeros((60, 80), np.bool_)
    mask[10:40, 20:50] = True
    mask[45:55, 60:75] = kind.startswith("polygon")
    config = LabelingConfig.parse(completed)
    held = as_held(ProposedRegion("0123456789ab", "the dogs", mask, 0.9), config)
    (nothing,) = emptied(held, ["ba9876543210"])
    results = [*region_results(held, config), *region_results(nothing, config)]

    client.import_predictions(number, [{"task": task["id"], "result": results, "model_version": "v"}])

    (prediction,) = client.predictions(int(task["id"]))
    content = read_annotation(prediction, config)
    (region,) = content.regions or content.boxes
    assert content.problems == ()
    assert (region.phrase, region.label) == ("the dogs", None if kind.endswith("without labels") else "hound")
    np.testing.assert_array_equal(region.mask, mask)


def test_label_studio_refuses_a_form_before_it_is_saved(label_studio: RunningLabelStudio) -> None:
    client = label_studio.client
    number = int(client.create_project("refused", "<View></View>")["id"])
    twice = '<View><Image name="a" value="$image"/><Image name="a" value="$image"/></View>'

    with pytest.raises(LabelStudioError, match="non-unique names"):
        client.validate_config(number, twice)
