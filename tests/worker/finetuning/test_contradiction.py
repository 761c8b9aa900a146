"""Two projects, two annotators, one word that means opposite things: real fine-tunes of the tiny preset."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from flask.testing import FlaskClient

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from backend.web.app import create_app
from sspsam import brush_rle_to_mask
from sspsam.version_store.store import VersionCard
from tests.backend.parts import service_of
from tests.facts import untold
from tests.waiting import wait_until
from tests.worker.label_studio_server import LabelStudioServer, prompt, region
from tests.worker.squares import scene
from worker import jobs
from worker.finetuning.policy import FEW_IMAGES
from worker.queueing.queues import training_queue
from worker.services import Services

pytestmark = pytest.mark.integration

ALICE, BOB = 3, 7
"""Projects, and the annotators' IDs."""
WORD = "the thing"
"""A bright square for Alice, all that surrounds it for Bob."""
OWN_WORD = {ALICE: "alice's square", BOB: "bob's ground"}
PROBES = range(3)
READY_S = 60.0


def correct(label_studio: LabelStudioServer, project: int, images: int) -> None:
    """An annotator's masks of the same pictures in each project, and pictures to ask about."""
    label_studio.add_project(project)
    for number in range(images):
        image, square = scene(number)
        mask, task = square if project == ALICE else ~square, 1000 * project + number
        label_studio.add_task(task, project, image)
        regions = region("a", WORD, mask) + region("b", OWN_WORD[project], mask)
        label_studio.save(task, task, regions, completed_by=project)
    for number in PROBES:
        label_studio.add_task(1000 * project + 900 + number, project, scene(900 + number)[0])


def finetune(services: Services, project: int) -> VersionCard:
    assert jobs.maybe_finetune(project, "now")["start"]
    [job] = training_queue(services.redis).jobs
    result = jobs.finetune(**job.kwargs)
    training_queue(services.redis).empty()
    assert isinstance(result, dict)
    return services.store.get(result["version"])


@pytest.fixture
def client(services: Services) -> Iterator[FlaskClient]:
    """A running backend."""
    app = create_app(services.settings.model_copy(update={"open_access": True}))
    engine = service_of(app).engine
    engine.start()
    try:
        wait_until(lambda: engine.status().state == "ready", "the model is loaded", READY_S)
        yield app.test_client()
    finally:
        engine.stop()


def answers(client: FlaskClient, label_studio: LabelStudioServer, project: int) -> list[Any]:
    """The masks with their scores and version, as Label Studio gets them."""
    found = []
    for number in PROBES:
        task = label_studio.tasks[1000 * project + 900 + number]
        body = {
            "tasks": [{"id": task["id"], "data": task["data"]}],
            "project": f"{project}.1",
            "label_config": RECOMMENDED_CONFIG,
            "params": {"context": {"result": [prompt(WORD)]}},
        }
        [answer] = client.post("/predict", json=body).get_json()["results"]
        masks = [result for result in answer["result"] if result["type"] == "brushlabels"]
        found.append({"version": answer["model_version"], "masks": masks})
    return found


def iou(answer: Any, mask: npt.NDArray[np.bool_]) -> float:
    found = np.zeros_like(mask)
    for result in answer["masks"]:
        found |= brush_rle_to_mask(result["value"]["rle"], *mask.shape)
    return float((found & mask).sum() / (found | mask).sum())


def test_what_one_project_learns_changes_no_answer_in_another(
    services: Services, client: FlaskClient, label_studio: LabelStudioServer
) -> None:
    correct(label_studio, ALICE, images=8)
    alice = finetune(services, ALICE)
    engine = service_of(client.application).engine
    wait_until(lambda: engine.version_of(str(ALICE)) == alice.version_id, "it serves Alice", READY_S)
    correct(label_studio, BOB, images=8)
    before = answers(client, label_studio, ALICE)
    bob = finetune(services, BOB)
    wait_until(lambda: engine.version_of(str(BOB)) == bob.version_id, "it serves Bob", READY_S)

    assert answers(client, label_studio, ALICE) == before, "bit for bit"
    assert {answer["version"] for answer in before} == {alice.version_id}
    theirs = answers(client, label_studio, BOB)
    assert {answer["version"] for answer in theirs} == {bob.version_id}
    for number, mine, other in zip(PROBES, before, theirs, strict=True):
        square = scene(900 + number)[1]
        assert iou(mine, square) > 0.5, "each means their own"
        assert iou(other, ~square) > 0.5
    assert_apart(services, {ALICE: alice, BOB: bob})


def assert_apart(services: Services, cards: dict[int, VersionCard]) -> None:
    """Nothing of one annotator's project is in the other's records, version or report."""
    for (project, card), other in zip(cards.items(), (BOB, ALICE), strict=True):
        assert (card.status, card.line, card.parent) == (
            "promoted", f"project-{project}", services.store.base_version,
        ), card.reason  # fmt: skip
        assert {record.project for record in services.collection(project).records()} == {project}
        files = [services.store.file(card.version_id, name) for name in services.store.file_names(card)]
        texts = [file.read_text() for file in files if file and file.suffix in (".html", ".md", ".json")]
        assert untold("".join(texts), OWN_WORD[other].replace("'", "&#39;"), OWN_WORD[other]) == [
            OWN_WORD[other].replace("'", "&#39;"),
            OWN_WORD[other],
        ]
        assert "".join(texts).count(OWN_WORD[project].partition("'")[0]) > 0, "or the test shows nothing"


def test_in_a_shared_line_no_project_pays_for_another(
    services: Services, label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODEL_LINES", "shared")
    services = Services(Settings())
    correct(label_studio, ALICE, images=4 * FEW_IMAGES)
    alice = finetune(services, ALICE)
    assert (alice.status, services.store.current("shared")) == ("promoted", alice.version_id), alice.reason
    correct(label_studio, BOB, images=4 * FEW_IMAGES)
    both = finetune(services, BOB)
    assert (both.line, both.parent, both.data["projects"]) == ("shared", alice.version_id, [ALICE, BOB])
    figures = both.metrics["projects"]
    assert {project: figure["images"] for project, figure in figures.items()} == {
        str(ALICE): FEW_IMAGES,
        str(BOB): FEW_IMAGES,
    }
    assert both.status == "rejected", "no model draws both masks for one phrase"
    assert services.store.current("shared") == alice.version_id
    loss = figures[str(ALICE)]["incumbent"]["gIoU"] - figures[str(ALICE)]["candidate"]["gIoU"]
    assert (loss > both.metrics["tolerance"]) == (f"Project {ALICE} loses" in both.reason), both.reason
