"""The loop through the API of a real Label Studio: phrase, correction, training, export."""

import json
import subprocess
import sysconfig
import time
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import requests
from PIL import Image
from pycocotools.coco import COCO

from backend.connect import check_project, connect_project, probe_webhook
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, region_results
from finetune.records import RefRecord
from sspsam.masks import BoolMask, brush_rle_to_mask, coco_rle_to_mask
from sspsam.versions import VersionCard, VersionStore
from tests.integration.conftest import RunningLabelStudio, RunningService
from tests.worker.decisive import decisive_state
from worker.collection import Collection
from worker.demo_pictures import demo_pictures

CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
PICTURES = 4
WAIT_S = 60.0
TRAINING_WAIT_S = 240.0
POLL_S = 0.2
BROWSER = {"Accept": "text/html"}


@dataclass(frozen=True)
class Project:
    """A connected project with its own tasks."""

    client: LabelStudioClient
    service: RunningService
    number: int
    tasks: list[int]

    @property
    def backend(self) -> dict[str, Any]:
        """Label Studio's record of our backend, just asked for its health."""
        return self.client.ml_backends(self.number)[0]

    @property
    def records(self) -> list[RefRecord]:
        """What the worker has collected."""
        return Collection(self.service.model_dir, self.number).records()

    def ask(self, task: int, *phrases: str) -> list[dict[str, Any]]:
        """Enters phrases in the prompt box, as the editor sends them, and returns the results to draw."""
        prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
        return self.send(task, {**prompt, "value": {"text": list(phrases)}})

    def click(self, task: int, x: float, y: float, name: str, positive: bool = True) -> dict[str, Any]:
        """A click of the smart tool, x and y in percent, as the editor describes it."""
        height, width = size_of(self, task)
        return {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"x": x, "y": y, "width": 0.2, "labels": ["refine"], "keypointlabels": ["refine"]},
            "is_positive": positive,
            "id": name,
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
            "origin": "manual",
        }

    def send(self, task: int, *results: dict[str, Any]) -> list[dict[str, Any]]:
        """Sends what is on the form, as the editor does, and returns the results to draw."""
        context = {"result": list(results)}
        answer = self.client.interactive_predict(int(self.backend["id"]), task, context)
        drawn: list[dict[str, Any]] = answer["data"]["result"]
        return drawn

    def save(self, task: int, phrase: str, mask: BoolMask, region: str = "drawn") -> int:
        """Saves an annotation of one region; returns its id."""
        results = region_results(ProposedRegion(region, phrase, mask, score=0.5), CONFIG)
        return int(self.client.create_annotation(task, results)["id"])


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("pictures")
    return [picture.path for picture in demo_pictures(folder, PICTURES)]


@pytest.fixture
def project(label_studio: RunningLabelStudio, service: RunningService, pictures: list[Path]) -> Project:
    client = label_studio.client
    number = int(client.create_project("Loop", RECOMMENDED_CONFIG)["id"])
    client.upload_images(number, pictures)
    connect_project(client, number, service.url, webhook_secret=service.webhook_secret)
    return Project(client, service, number, [task["id"] for task in client.tasks(number)])


def wait_until(what: str, condition: Callable[[], bool], within_s: float = WAIT_S) -> None:
    deadline = time.monotonic() + within_s
    while not condition():
        assert time.monotonic() < deadline, f"not within {within_s:.0f} s: {what}"
        time.sleep(POLL_S)


def run_sspsam(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an `sspsam` command on the service's data."""
    command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), *arguments]
    environment = project.service.environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TRAINING_WAIT_S)


def sspsam(project: Project, *arguments: str) -> str:
    """Runs a command that must succeed, and returns what it printed."""
    done = run_sspsam(project, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ring(height: int, width: int) -> BoolMask:
    """A mask with a hole, and a separate part that touches the border."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    mask: BoolMask = (distance < height / 4) & (distance > height / 8)
    mask[-5:, -9:] = True
    return mask


def mask_of(result: dict[str, Any]) -> BoolMask:
    """The mask of a brush result."""
    return brush_rle_to_mask(result["value"]["rle"], result["original_height"], result["original_width"])


def size_of(project: Project, task: int) -> tuple[int, int]:
    """(H, W) of a task's picture."""
    url = project.client.url + project.client.task(task)["data"]["image"]
    answer = requests.get(url, headers={"Authorization": project.client.authorization()}, timeout=WAIT_S)
    with Image.open(BytesIO(answer.content)) as picture:
        return picture.height, picture.width


def test_a_connected_project_has_all_that_it_needs(project: Project) -> None:
    assert check_project(project.client, project.number, project.service.url) == []
    assert project.backend["readable_state"] == "Connected"
    assert project.backend["is_interactive"] is True
    assert project.backend["model_version"] == "ssp-sam-test-base"
    (webhook,) = project.client.webhooks(project.number)
    assert webhook["headers"] == {"X-ML-Secret": project.service.webhook_secret}


def test_connecting_again_changes_nothing(project: Project) -> None:
    secret = project.service.webhook_secret
    connect_project(project.client, project.number, project.service.url, webhook_secret=secret)
    assert len(project.client.ml_backends(project.number)) == 1
    assert len(project.client.webhooks(project.number)) == 1


def test_a_webhook_event_arrives(project: Project) -> None:
    secret = project.service.webhook_secret
    found = probe_webhook(project.client, project.number, project.service.url, secret)
    assert found == "a webhook event has arrived"


def test_a_form_of_ones_own_is_added_to(label_studio: RunningLabelStudio, service: RunningService) -> None:
    own = (
        '<View><Image name="picture" value="$image"/><Choices name="weather" toName="picture" smart="false">'
        '<Choice value="sun"/><Choice value="rain"/></Choices></View>'
    )
    client = label_studio.client
    number = int(client.create_project("Own form", own)["id"])
    connect_project(client, number, service.url, service.webhook_secret, may_change_config=lambda: True)
    assert check_project(client, number, service.url) == []
    assert '<Choices name="weather"' in client.project(number)["label_config"]


def test_every_phrase_gets_a_mask_or_stays_in_the_box(project: Project) -> None:
    phrases = {"the crab", "phone on the left", "second shirt from the top"}
    results = project.ask(project.tasks[0], *phrases)
    masks = {result["id"]: result for result in results if result["from_name"] == "mask"}
    under_regions = {
        result["id"]: result["value"]["text"][0] for result in results if result["from_name"] == "phrase"
    }
    in_the_box = {
        text for result in results if result["from_name"] == "prompt" for text in result["value"]["text"]
    }
    assert masks.keys() == under_regions.keys()
    assert set(under_regions.values()) | in_the_box == phrases
    assert not set(under_regions.values()) & in_the_box
    size = size_of(project, project.tasks[0])
    for result in masks.values():
        assert (result["original_height"], result["original_width"]) == size
        assert brush_rle_to_mask(result["value"]["rle"], *size).any()


def test_what_the_editor_asks_after_a_save_is_answered_with_nothing(project: Project) -> None:
    answer = project.client.interactive_predict(project.backend["id"], project.tasks[0], {"result": []})
    assert answer["data"]["result"] == []


def test_clicks_correct_a_phrases_mask_in_place(project: Project) -> None:
    task = project.tasks[3]
    mask, phrase = (one for one in project.ask(task, "the crab") if one["from_name"] in ("mask", "phrase"))
    rows, columns = np.nonzero(mask_of(mask))
    height, width = size_of(project, task)
    x, y = 100 * (columns[0] + 0.5) / width, 100 * (rows[0] + 0.5) / height
    clicks = [
        project.click(task, x, y, "one"),
        project.click(task, 100 - x, 100 - y, "two", positive=False),
    ]

    alone = project.send(task, clicks[0])
    with_auto_accept_off = project.send(task, *clicks)
    with_auto_accept_on = project.send(task, project.click(task, x, y, "three", positive=True))

    for results in (alone, with_auto_accept_off, with_auto_accept_on):
        assert [(one["id"], one["from_name"]) for one in results[:2]] == [
            (mask["id"], "mask"),
            (mask["id"], "phrase"),
        ]
        assert results[1]["value"] == phrase["value"]
    assert (mask_of(alone[0]) != mask_of(mask)).any()


def test_leftover_clicks_are_neither_records_nor_exported(project: Project, tmp_path: Path) -> None:
    task = project.tasks[3]
    mask = ring(*size_of(project, task))
    results = region_results(ProposedRegion("drawn", "the ring", mask, score=0.5), CONFIG)
    click = project.click(task, 10, 10, "left over")
    part = {
        **project.click(task, 0, 0, "drawn"),
        "value": {**results[0]["value"], "keypointlabels": ["refine"]},
    }
    project.client.create_annotation(task, [click, *results, part])
    wait_until("the record", lambda: len(project.records) == 1)

    sspsam(project, "export", "--project", str(project.number), "--out", str(tmp_path / "labels.json"))

    (annotation,) = json.loads((tmp_path / "labels.json").read_text())["annotations"]
    assert annotation["phrase"] == "the ring"
    assert np.array_equal(coco_rle_to_mask(annotation["segmentation"]), mask)


def test_a_phrase_that_is_too_long_is_answered_on_the_form(project: Project) -> None:
    results = project.ask(project.tasks[0], "very " * 80 + "long")
    texts = " ".join(text for result in results for text in result["value"].get("text", []))
    assert "77" in texts
    assert not [result for result in results if result["from_name"] == "mask"]


def test_a_saved_annotation_becomes_a_record_follows_its_changes_and_goes(project: Project) -> None:
    task = project.tasks[1]
    mask = ring(*size_of(project, task))
    number = project.save(task, "the ring", mask)
    wait_until("the record", lambda: len(project.records) == 1)
    (record,) = project.records
    assert (record.phrase, record.task, record.annotation) == ("the ring", task, number)
    assert record.mask_rle is not None
    assert np.array_equal(coco_rle_to_mask(record.mask_rle), mask)
    assert (project.service.model_dir / "images" / record.image_sha256).exists()

    changed = ~mask
    results = region_results(ProposedRegion("drawn", "all but the ring", changed, score=0.5), CONFIG)
    project.client.update_annotation(number, results)
    wait_until("the change", lambda: [one.phrase for one in project.records] == ["all but the ring"])
    (record,) = project.records
    assert record.mask_rle is not None
    assert np.array_equal(coco_rle_to_mask(record.mask_rle), changed)

    project.client.delete_annotation(number)
    wait_until("that it is forgotten", lambda: project.records == [])


def test_a_mask_that_was_taken_as_it_came_is_no_correction(project: Project) -> None:
    task = project.tasks[2]
    results = [
        result for result in project.ask(task, "the fish") if result["from_name"] in ("mask", "phrase")
    ]
    assert results, "the tiny model finds a mask for anything"
    number = int(project.client.create_annotation(task, results)["id"])
    wait_until("the record", lambda: len(project.records) == 1)
    assert not project.records[0].corrected
    assert project.records[0].served_version == "ssp-sam-test-base"

    region = next(result for result in results if result["from_name"] == "mask")
    mask = brush_rle_to_mask(region["value"]["rle"], region["original_height"], region["original_width"])
    mask[: mask.shape[0] // 2] ^= True
    corrected = region_results(ProposedRegion(region["id"], "the fish", mask, score=0.5), CONFIG)
    project.client.update_annotation(number, corrected)
    wait_until("the correction", lambda: [one.corrected for one in project.records] == [True])


def test_an_event_without_the_secret_is_refused(project: Project) -> None:
    event = {"action": "ANNOTATION_CREATED", "annotation": {"id": 1}, "project": {"id": project.number}}
    answer = requests.post(f"{project.service.url}/webhook", json=event, timeout=WAIT_S)
    assert answer.status_code == 401
    assert "X-ML-Secret" in answer.json()["error"]


def test_labels_leave_as_coco_pixel_for_pixel(project: Project, tmp_path: Path) -> None:
    masks = {}
    for task in project.tasks:
        masks[task] = ring(*size_of(project, task))
        project.save(task, f"the ring of {task}", masks[task])
    out = tmp_path / "labels.json"
    sspsam(project, "export", "--project", str(project.number), "--format", "coco", "--out", str(out))
    exported = COCO(str(out))
    tasks = {image["id"]: image["label_studio_task"] for image in exported.imgs.values()}
    assert len(exported.anns) == len(masks)
    for annotation in exported.anns.values():
        task = tasks[annotation["image_id"]]
        assert np.array_equal(exported.annToMask(annotation), masks[task])
        assert annotation["phrase"] == f"the ring of {task}"


def test_start_training_makes_a_version_that_serves_only_if_it_is_better(project: Project) -> None:
    for task in project.tasks:
        height, width = size_of(project, task)
        mask = np.zeros((height, width), bool)
        mask[:, : width // 2] = True
        project.save(task, "the left half", mask)
    wait_until("the records", lambda: len(project.records) == len(project.tasks))
    store = VersionStore(project.service.model_dir, "ssp-sam-test")
    before = len(store.list())
    project.client.start_training(int(project.backend["id"]))

    def judged() -> bool:
        return len(store.list()) > before and store.list()[-1].status != "candidate"

    wait_until("a judged version", judged, TRAINING_WAIT_S)
    card = store.list()[-1]
    assert card.metrics["candidate"] is not None
    assert "gIoU" in card.reason
    serving = card.version_id if card.status == "promoted" else "ssp-sam-test-base"
    wait_until("that it serves", lambda: store.current() == serving)
    wait_until("Label Studio's word", lambda: project.backend["model_version"] == serving)
    page = requests.get(project.service.url, headers=BROWSER, timeout=WAIT_S).text
    assert serving in page
    listed = sspsam(project, "versions", "list")
    assert card.version_id in listed
    assert card.status in listed


def test_the_next_tasks_are_those_that_nobody_has_annotated(project: Project) -> None:
    first, *rest = project.tasks
    assert [task["id"] for task in project.client.next_tasks(project.number, PICTURES)] == project.tasks

    project.client.create_annotation(first, [])

    assert [task["id"] for task in project.client.next_tasks(project.number, PICTURES)] == rest
    assert [task["id"] for task in project.client.next_tasks(project.number, 1)] == rest[:1]
    done = sspsam(project, "prefetch", "--project", str(project.number), "--limit", str(PICTURES))
    assert "pictures embedded:" in done


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
    predictions = {task: project.client.predictions(task) for task in project.tasks}
    assert {len(found) for found in predictions.values()} == {1}
    for (prediction,) in predictions.values():
        assert prediction["model_version"] == serving
        content = read_annotation(prediction, CONFIG)
        phrases = {region.phrase for region in content.regions} | set(content.no_target_phrases)
        assert phrases == {"the crab", "the fish"}

    project.client.delete_task(bad)
    again = run_sspsam(project, *command)
    assert again.returncode == 0, again.stderr
    assert f"predictions: 0 with 0 masks, tasks left alone: {PICTURES}" in again.stdout


def next_task(project: Project) -> int:
    """What "Label All Tasks" serves now."""
    url = f"{project.client.url}/api/projects/{project.number}/next"
    answer = requests.get(url, headers={"Authorization": project.client.authorization()}, timeout=WAIT_S)
    assert answer.status_code == 200, answer.text
    return int(answer.json()["id"])


def test_label_studio_serves_tasks_in_our_order(project: Project) -> None:
    store = VersionStore(project.service.model_dir, "ssp-sam-test")
    before = store.current()
    version = store.promote(store.publish(decisive_state(), VersionCard(), {}).version_id).version_id
    try:
        told = sspsam(project, "rank", "--project", str(project.number), "--phrase", "the crab")
    finally:
        store.rollback()
    assert f"tasks in order: {PICTURES}, predictions posted: {PICTURES}" in told
    predicted = {task: project.client.predictions(task) for task in project.tasks}
    assert {one["model_version"] for found in predicted.values() for one in found} == {version}
    scores = {task: float(found[0]["score"]) for task, found in predicted.items()}
    assert len(set(scores.values())) == PICTURES, "no two are alike"

    served = []
    for _ in project.tasks:
        served.append(next_task(project))
        project.client.create_annotation(served[-1], [])

    assert served == sorted(project.tasks, key=scores.__getitem__)
    assert store.current() == before
