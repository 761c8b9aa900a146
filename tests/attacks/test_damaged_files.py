"""Damaged files below MODEL_DIR: each stops only what needs it, is named, and is mended where possible."""

from __future__ import annotations

import errno
import json
import os
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from flask import Flask

from backend.console import fine_tunes
from backend.errors import ImageFetchError
from backend.state.known_projects import KnownProject
from sspsam.version_store.store import DamagedVersionError
from tests.worker.label_studio_server import LabelStudioServer, region
from tests.worker.reconciling import reconcile_all
from worker import jobs
from worker.cli.versions import list_versions
from worker.lines import COPY, SPLIT_OF_ALL, DamagedSplitError, Side, load_split, save_split
from worker.queueing.queues import reconcile_queue
from worker.records import records_folder
from worker.services import Services

PROJECT, OTHER = 3, 4
PRESET_ID = "ssp-sam-test-"
DAMAGES = {
    "empty": b"",
    "cut": b'{"a"',
    "flipped": b"\xff{}",
    "another kind": b"[1]",
    "nested": b"[" * 100_000,
}


STEPS = pytest.mark.parametrize(
    "step", [pytest.param(7, id="some"), pytest.param(1, id="all", marks=pytest.mark.slow)]
)
"""From one flipped bit to the next: by 7, each is in another byte or so and at another place of it."""


@pytest.fixture
def services(services: Services, label_studio: LabelStudioServer, mask: npt.NDArray[np.bool_]) -> Services:
    """Two projects with a drawn mask each."""
    for project in (PROJECT, OTHER):
        label_studio.add_project(project)
        services.redis_store.projects.note(KnownProject(str(project)))
        label_studio.add_task(project, project, np.full((*mask.shape, 3), project, dtype=np.uint8))
        label_studio.save(project, project, region("a", "the ring", mask))
    reconcile_all(services)
    return services


@pytest.mark.parametrize("damage", DAMAGES)
def test_records_are_collected_again(services: Services, damage: str) -> None:
    [before] = services.collection(PROJECT).records()
    path = services.collection(PROJECT).folder / f"{PROJECT}.jsonl"
    path.write_bytes(DAMAGES[damage])
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


@STEPS
def test_every_flipped_bit_of_a_record_is_noticed(services: Services, step: int) -> None:
    """Most of them leave JSON that is a record: of another phrase, image or mask."""
    collection = services.collection(PROJECT)
    path, [record] = collection.folder / f"{PROJECT}.jsonl", collection.records()
    whole = path.read_bytes()
    passed = []
    for place in range(0, 8 * (len(whole) - 1), step):
        path.write_bytes(flipped(whole, place))
        if (found := collection.of_annotation(PROJECT)) not in ([], [record]):
            passed.append((place, found))
    assert passed == []
    collection.replace(PROJECT, [record])
    assert collection.records() == [record], "and an undamaged one is read"


def test_lines_that_are_lost_or_exchanged_are_noticed(services: Services) -> None:
    collection = services.collection(PROJECT)
    [record] = collection.records()
    path = collection.folder / f"{PROJECT}.jsonl"
    for count, order in ((2, [0]), (2, [1]), (2, [1, 0]), (3, [0, 1]), (3, [0, 2]), (2, [0, 0]), (1, [0, 0])):
        collection.replace(PROJECT, [replace(record, phrase=f"ring {number}") for number in range(count)])
        lines = path.read_text().splitlines()
        path.write_text("".join(f"{lines[number]}\n" for number in order))
        assert collection.of_annotation(PROJECT) == [], (count, order)


def test_an_annotation_without_records_is_no_damaged_one(services: Services) -> None:
    collection = services.collection(PROJECT)
    collection.replace(PROJECT, [])
    assert collection.of_annotation(PROJECT) == []
    assert collection.damaged() == []
    assert collection.annotations() == [PROJECT]


def test_records_of_earlier_releases_have_no_digests(services: Services) -> None:
    collection = services.collection(PROJECT)
    [record] = collection.records()
    path = collection.folder / f"{PROJECT}.jsonl"
    path.write_text("".join(json.dumps(record.to_dict()) + "\n" for _ in range(2)))
    assert collection.of_annotation(PROJECT) == [record, record]


def flipped(content: bytes, place: int) -> bytes:
    changed = bytearray(content)
    changed[place // 8] ^= 1 << place % 8
    return bytes(changed)


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_split_is_named_in_place_of_a_decision(services: Services, damage: str) -> None:
    (records_folder(services.settings.model_dir) / SPLIT_OF_ALL).write_bytes(DAMAGES[damage])
    decisions = jobs.check_projects()
    assert decisions.keys() == {str(PROJECT), str(OTHER)}
    for project in (PROJECT, OTHER):
        shown = services.redis_store.worker.decision(services.line(project).name)["reason"]
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


@STEPS
def test_a_flipped_bit_holds_no_image_out_that_was_trained_on(tmp_path: Path, step: int) -> None:
    sides: dict[str, Side] = {"a" * 64: "train", "b" * 64: "held-out"}
    save_split(tmp_path, "project-3", sides)
    for path in [path for path in tmp_path.rglob("*.json")]:
        whole = path.read_bytes()
        for place in range(0, 8 * len(whole), step):
            path.write_bytes(flipped(whole, place))
            found = load_split(tmp_path, "project-3")
            assert {image: found[image] for image in sides} == sides, place
        path.write_bytes(whole)


NO_LINE: dict[str, object] = {"version_id": "", "stack": [], "history": []}
STATES: dict[str, dict[str, object]] = {
    "a number for an ID": {"version_id": 7, "stack": [], "history": []},
    "a number in the stack": {"stack": [7]},
    "a number in the history": {"history": [{"action": "promote", "version_id": 7, "before": "", "at": ""}]},
    "a list for a time": {"history": [{"action": "promote", "version_id": "x", "before": "", "at": []}]},
    "a number for a reason": {"judgements": {"x": {"status": "promoted", "reason": 7}}},
    "a version of 5,000 digits": {"judgements": {PRESET_ID + "9" * 5000: {"status": "", "reason": ""}}},
    "a line of a number": {"lines": {"project-3": 7}},
    "a project of 5,000 digits": {"lines": {"project-" + "9" * 5000: NO_LINE}},
    "groups of texts": {"groups": {"x": ["y"]}},
}


@pytest.mark.parametrize("name", STATES)
def test_odd_values_in_the_state_stop_nothing_else(services: Services, app: Flask, name: str) -> None:
    """Either the state is named as damaged, or the value has no effect."""
    folder = services.settings.model_dir / "versions" / services.settings.preset
    folder.mkdir(parents=True, exist_ok=True)
    good = {"version_id": services.store.base_version, "stack": [], "history": []}
    (folder / "current.json").write_text(json.dumps({**good, **STATES[name]}))
    with suppress(DamagedVersionError):
        state_read = services.store.state()
        assert state_read.current("project-3") == services.store.base_version
    assert services.store._next_id() == f"{services.settings.preset}-0001"
    assert jobs.check_projects().keys() == {str(PROJECT), str(OTHER)}
    assert app.test_client().get("/", headers={"Accept": "text/html"}).status_code == 200


CARDS: dict[str, object] = {
    "metrics": {"metrics": {"held_out_samples": "x", "incumbent": [1], "candidate": {"mIoU": 10**400}}},
    "figures": {"metrics": {"metric": ["x"], "incumbent": 7, "candidate": {"mIoU": "x"}}},
    "projects": {"parent": "x", "data": {"projects": 7, "trained_on": []}},
    "project names": {"parent": "x", "data": {"projects": [[], {}], "composition": {"corrected": []}}},
    "rate": {"parent": "x", "config": {"steps": "a", "batch_size": "b", "learning_rate": "fast"}},
    "composition": {"parent": "x", "data": {"composition_by_label": {"a": 7, "b": {"corrected": "x"}}}},
    "times": {"created_at": "0001-01-01T00:00:00+23:00"},
    "files": {"sha256": {"log.jsonl": 7, "before-after.json": [], "report.html": None}},
    "another kind": [1],
}


@pytest.mark.parametrize("name", CARDS)
def test_a_malformed_card_keeps_no_other_from_the_page(
    services: Services, app: Flask, name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = services.settings.model_dir / "versions" / services.settings.preset
    for number, card in ((1, CARDS[name]), (2, {"reason": "a good one", "parent": "x"})):
        place = folder / f"{services.settings.preset}-{number:04d}"
        place.mkdir(parents=True)
        (place / "card.json").write_text(json.dumps(card))
    page = app.test_client().get("/", headers={"Accept": "text/html"})
    assert page.status_code == 200
    assert "a good one" in page.text
    assert app.test_client().get("/metrics").status_code == 200
    list_versions(model_dir=services.settings.model_dir, preset=services.settings.preset)
    assert "a good one" in capsys.readouterr().out
    assert jobs.check_projects().keys() == {str(PROJECT), str(OTHER)}


def test_a_card_that_is_a_folder_keeps_no_other_from_the_page(services: Services) -> None:
    folder = services.settings.model_dir / "versions" / services.settings.preset
    (folder / f"{services.settings.preset}-0001" / "card.json").mkdir(parents=True)
    assert [card.version_id for card in services.store.list()] == [services.store.base_version]


LOGS = {
    "no text": b"\xff\xfe\n",
    "nested": b"[" * 100_000,
    "a large number": b'{"step": 1, "total": 1' + b"0" * 400 + b"}\n" * 3,
    "large steps": b"".join(b'{"step": %d, "total": 1}\n' % 10**number for number in (400, 401, 402)),
    "no number": b'{"step": true, "total": NaN}\n{"step": [], "total": 1}\n[]\n7\n',
    "cut": b'{"step": 1, "total": 1}\n{"ste',
}


@pytest.mark.parametrize("name", LOGS)
def test_a_damaged_log_is_no_curve(tmp_path: Path, name: str) -> None:
    path = tmp_path / "log.jsonl"
    path.write_bytes(LOGS[name])
    with suppress(ArithmeticError):  # the page leaves this fine-tune out
        fine_tunes.curve(fine_tunes._losses(path))
    assert fine_tunes._pairs(path) == []


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
