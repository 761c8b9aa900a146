"""A lead works in the console alone: connects a project, starts a fine-tune, stops it, and exports."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest
from PIL import Image
from playwright.sync_api import Page, expect

from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, region_results
from benchmarks.common.novel import CORRECTED_SPLIT, novel_scenes
from tests.e2e.running_demo import FINETUNE_AFTER, Demo
from tests.waiting import wait_until
from worker.records import Collection

NOUN = "koala"
CORRECTED = FINETUNE_AFTER - 2
"""Too few for a fine-tune to start by itself."""
PLAIN_FORM = (
    '<View><Image name="photo" value="$image"/><BrushLabels name="masks" toName="photo">'
    f'<Label value="{NOUN}"/><Label value="other"/></BrushLabels></View>'
)
WITHIN_S = 120.0
POLL_S = 0.5


@pytest.fixture(scope="module")
def project(demo: Demo, tmp_path_factory: pytest.TempPathFactory) -> int:
    """A project as a team has it, which has never seen the backend."""
    folder, client = tmp_path_factory.mktemp("koalas"), demo.client
    number = int(client.create_project("Koalas", PLAIN_FORM)["id"])
    for index, scene in enumerate(itertools.islice(novel_scenes(NOUN, CORRECTED_SPLIT), CORRECTED)):
        path = folder / f"{index}.png"
        Image.fromarray(scene.image).save(path)
        client.upload_images(number, [path])
    return number


@pytest.fixture
def console(demo: Demo, page: Page) -> Page:
    """The console, signed in."""
    demo.open_start_page(page)
    return page


def test_a_project_is_connected_in_the_console(demo: Demo, console: Page, project: int) -> None:
    console.goto(f"{demo.backend_url}/projects")
    console.get_by_role("link", name="See what connecting Koalas changes").click()
    diff = console.get_by_label("Changes as a diff")
    expect(diff).to_contain_text('+  <TextArea name="prompt"')
    assert demo.client.project(project)["label_config"] == PLAIN_FORM, "looking changes nothing"

    console.get_by_role("button", name="Connect", exact=True).click()
    console.goto(f"{demo.backend_url}/projects/{project}/connect")
    expect(console.get_by_text("The project is fully connected")).to_be_visible()
    form = LabelingConfig.parse(demo.client.project(project)["label_config"])
    assert form.prompt is not None
    (backend,) = demo.client.ml_backends(project)
    assert backend["readable_state"] == "Connected"


def test_a_fine_tune_is_stopped_in_the_console_and_the_worker_goes_on(
    demo: Demo, console: Page, project: int
) -> None:
    correct(demo, project)
    console.goto(f"{demo.backend_url}/projects/{project}")
    console.get_by_role("button", name="Fine-tune now").click()

    console.goto(f"{demo.backend_url}/jobs")
    running = console.get_by_role("region", name="Running jobs")
    stop = running.get_by_role("button", name=f"Stop: Fine-tune, project {project}")
    expect(stop).to_be_visible(timeout=1000 * WITHIN_S)
    expect(running.get_by_text("step ")).to_be_visible(timeout=1000 * WITHIN_S)
    stop.click()
    expect(console.get_by_text("the job was stopped")).to_be_visible()
    expect(console.get_by_text("Nothing runs.")).to_be_visible(timeout=1000 * WITHIN_S)

    console.goto(f"{demo.backend_url}/projects/{project}")
    console.get_by_label("Format").select_option("coco")
    console.get_by_role("button", name="Export", exact=True).click()
    link = console.get_by_role("link", name="Download")
    expect(link).to_be_visible(timeout=1000 * WITHIN_S)
    with console.expect_download() as downloading:
        link.click()
    exported = json.loads(Path(downloading.value.path()).read_text())
    assert len(exported["annotations"]) == CORRECTED


def correct(demo: Demo, project: int) -> None:
    """Draws what the phrase of each picture means, by hand, and waits until the worker has collected it."""
    config = LabelingConfig.parse(demo.client.project(project)["label_config"])
    scenes = novel_scenes(NOUN, CORRECTED_SPLIT)
    for number, (task, scene) in enumerate(zip(demo.client.tasks(project), scenes, strict=False)):
        drawn = ProposedRegion(f"drawn-{number}", scene.phrase, scene.mask, 0.5)
        demo.client.create_annotation(int(task["id"]), region_results(drawn, config))
    collected = Collection(demo.folder / "models", project)
    wait_until(lambda: len(collected.records()) == CORRECTED, "the labels are collected", WITHIN_S, POLL_S)
