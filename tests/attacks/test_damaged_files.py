"""Damaged files below MODEL_DIR: each stops only what needs it, is named, and is mended where possible."""

from __future__ import annotations

import errno
import os
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest

from backend.errors import ImageFetchError
from backend.state.redis_store import KnownProject
from tests.worker.label_studio_server import LabelStudioServer, region
from tests.worker.reconciling import reconcile_all
from worker import jobs
from worker.lines import COPY, SPLIT_OF_ALL, DamagedSplitError, load_split, save_split
from worker.queueing.queues import reconcile_queue
from worker.records import records_folder
from worker.services import Services

PROJECT, OTHER = 3, 4
DAMAGES = {
    "empty": b"",
    "cut": b'{"a"',
    "flipped": b"\xff{}",
    "another kind": b"[1]",
    "nested": b"[" * 100_000,
}


@pytest.fixture(autouse=True)
def annotated(services: Services, label_studio: LabelStudioServer, mask: npt.NDArray[np.bool_]) -> None:
    """Two projects with a drawn mask each."""
    for project in (PROJECT, OTHER):
        label_studio.add_project(project)
        services.redis_store.note_project(KnownProject(str(project)))
        label_studio.add_task(project, project, np.full((*mask.shape, 3), project, dtype=np.uint8))
        label_studio.save(project, project, region("a", "the ring", mask))
    reconcile_all(services)


@pytest.mark.parametrize("damage", DAMAGES)
def test_records_are_collected_again(services: Services, damage: str) -> None:
    [before] = services.collection(PROJECT).records()
    path = services.collection(PROJECT).folder / f"{PROJECT}.jsonl"
    path.write_bytes(DAMAGES[damage] or b"x")
    decisions = jobs.check_projects()
    assert "1 corrected mask " in decisions[str(OTHER)]["reason"]
    assert services.collection(PROJECT).records() == []

    jobs.check_projects()

    assert [item.item for item in services.skipped.of(PROJECT)] == [f"annotation {PROJECT}"], "on the page"
    assert reconcile_queue(services.redis).get_job_ids() == [f"reconcile-{PROJECT}"], (
        "not a quarter of an hour later"
    )
    reconcile_all(services)
    assert services.collection(PROJECT).records() == [before]
    assert services.skipped.of(PROJECT) == []
    assert services.collection(PROJECT).damaged() == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_split_is_named_in_place_of_a_decision(services: Services, damage: str) -> None:
    (records_folder(services.settings.model_dir) / SPLIT_OF_ALL).write_bytes(DAMAGES[damage])
    decisions = jobs.check_projects()
    assert decisions.keys() == {str(PROJECT), str(OTHER)}
    for project in (PROJECT, OTHER):
        shown = services.redis_store.decision(services.line(project).name)["reason"]
        assert shown.startswith("no decision is possible")
        assert "decide" in {item.work for item in services.skipped.of(project)}
    assert not jobs.maybe_finetune(PROJECT, "start-training")["start"]
    assert [result["problems"] for result in reconcile_all(services).values()] == [0, 0]

    (records_folder(services.settings.model_dir) / SPLIT_OF_ALL).unlink()
    jobs.check_projects()
    assert services.skipped.of(PROJECT) == []


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_split_has_a_copy(tmp_path: Path, damage: str) -> None:
    save_split(tmp_path, "project-3", {"a": "train", "b": "held-out"})
    [path] = [path for path in tmp_path.rglob("*.json") if not path.name.endswith(COPY)]
    path.write_bytes(DAMAGES[damage])
    assert load_split(tmp_path, "project-3") == {"a": "train", "b": "held-out"}
    path.with_suffix(COPY).write_bytes(DAMAGES[damage])
    with pytest.raises(DamagedSplitError, match=path.name):
        load_split(tmp_path, "project-3")


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_state_of_the_store_stops_no_collection(
    services: Services, label_studio: LabelStudioServer, mask: npt.NDArray[np.bool_], damage: str
) -> None:
    folder = services.settings.model_dir / "versions" / services.settings.preset
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "current.json").write_bytes(DAMAGES[damage])
    label_studio.save(PROJECT, PROJECT, region("a", "another ring", mask))
    assert [result["problems"] for result in reconcile_all(services).values()] == [0, 0]
    assert [record.phrase for record in services.collection(PROJECT).records()] == ["another ring"]
    assert jobs.check_projects().keys() == {str(PROJECT), str(OTHER)}
    assert "decide" in {item.work for item in services.skipped.of(PROJECT)}


@pytest.mark.parametrize(
    ("number", "words"), [(errno.EROFS, "MODEL_DIR must be writable"), (errno.ENOSPC, "its disk is full")]
)
def test_a_folder_that_takes_no_image_is_named(
    services: Services,
    label_studio: LabelStudioServer,
    mask: npt.NDArray[np.bool_],
    monkeypatch: pytest.MonkeyPatch,
    number: int,
    words: str,
) -> None:
    """A read-only file system refuses also to remove the partial file."""

    def refuse(self: Path, *arguments: object, **named: object) -> None:
        raise OSError(number, os.strerror(number), str(self))

    label_studio.add_task(9, PROJECT, np.full((*mask.shape, 3), 99, dtype=np.uint8))
    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_bytes", refuse)
        patch.setattr(Path, "unlink", refuse)
        with pytest.raises(ImageFetchError, match=words):
            services.images.digest(label_studio.tasks[9]["data"]["image"], "9")
