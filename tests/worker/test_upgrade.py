"""A MODEL_DIR of release 0.2 goes on as it is: the same version serves, and nothing is learned again."""

from __future__ import annotations

import hashlib
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.state.known_projects import KnownProject
from backend.web.app import create_app
from sspsam import Predictor, coco_rle_to_mask
from sspsam.version_store.lines import line_of_project
from sspsam.version_store.sharing import adopt
from tests.backend.parts import service_of
from tests.waiting import wait_until
from tests.worker.squares import scene
from worker import jobs
from worker.lines import load_split
from worker.queueing.queues import training_queue
from worker.services import Services

GOLDEN = Path(__file__).parents[1] / "golden"
"""See golden/make_models_0_2.py."""
RECORDED: dict[str, Any] = json.loads((GOLDEN / "models-0.2.json").read_text())
PROJECTS = (5, 6)
NEW = 7
READY_S = 60.0
FIRST, SERVING = "ssp-sam-test-0001", "ssp-sam-test-0002"


@pytest.fixture
def upgraded(services: Services) -> Services:
    shutil.copytree(GOLDEN / "models-0.2", services.settings.model_dir)
    for project in (*PROJECTS, NEW):
        services.redis_store.projects.note(KnownProject(str(project)))
    return services


def contents(folder: Path) -> dict[str, str]:
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_what_served_before_serves_every_project(upgraded: Services) -> None:
    store = upgraded.store
    assert RECORDED["version"] == SERVING
    assert {store.current(store.line_of(project)) for project in (*PROJECTS, NEW, None)} == {SERVING}
    assert [card.version_id for card in store.list()] == ["ssp-sam-test-base", FIRST, SERVING]
    assert store.get(SERVING).reason == "better after all"
    assert [entry.action for entry in store.history()] == ["promote", "promote", "rollback", "promote"]
    assert contents(upgraded.settings.model_dir) == contents(GOLDEN / "models-0.2"), "nothing is rewritten"


def test_no_answer_changes(upgraded: Services) -> None:
    """Recorded by release 0.2, perhaps on another processor: within the rounding of float32."""
    predictor = Predictor.from_preset("ssp-sam-test", "cpu")
    predictor.load_trainable(upgraded.store.load(upgraded.store.current(line_of_project(NEW))))
    for recorded in RECORDED["answers"]:
        embedding = predictor.embed(scene(recorded["scene"])[0])
        [referent] = predictor.predict(embedding, [recorded["phrase"]])
        assert (referent.mask != coco_rle_to_mask(recorded["mask"])).mean() < 1e-3
        np.testing.assert_allclose(referent.score, recorded["score"], atol=2e-4)


def test_the_backend_serves_it_to_every_project(upgraded: Services) -> None:
    app = create_app(upgraded.settings.model_copy(update={"open_access": True}))
    engine, client = service_of(app).engine, app.test_client()
    engine.start()
    try:
        wait_until(lambda: engine.status().state == "ready", "the model is loaded", READY_S)
        for project in (*PROJECTS, NEW):
            body = {"project": f"{project}.1", "schema": RECOMMENDED_CONFIG}
            assert client.post("/setup", json=body).get_json() == {"model_version": SERVING}
    finally:
        engine.stop()


def test_nothing_is_learned_again(upgraded: Services) -> None:
    decisions = jobs.check_projects()
    assert [decisions[str(project)]["reason"] for project in PROJECTS] == ["0 of 4 new corrected masks"] * 2
    assert not any(decision["start"] for decision in decisions.values())
    assert training_queue(upgraded.redis).count == 0


def test_images_keep_their_side(upgraded: Services) -> None:
    before = json.loads((upgraded.settings.model_dir / "records" / "split.json").read_text())
    for project in PROJECTS:
        assert load_split(upgraded.settings.model_dir, line_of_project(project)) == before


def test_a_project_leaves_what_served_before_with_its_own_first_version(upgraded: Services) -> None:
    store = upgraded.store
    own = replace(store.get(FIRST), line="project-5", parent=store.current("project-5"), data={})
    card = store.publish(store.load(FIRST), own, {})
    store.promote(card.version_id, "better", "project-5")
    serving = {project: store.current(store.line_of(project)) for project in (*PROJECTS, NEW)}
    assert serving == {5: card.version_id, 6: SERVING, NEW: SERVING}
    assert store.rollback(line="project-5") == SERVING
    assert store.rollback(line="project-5") == FIRST, "as it could before"
    assert adopt(store, "project-5", "project-6").parent == SERVING
