"""Images from all sources of a real Label Studio: local files, buckets, other hosts, data URIs."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import boto3
import numpy as np
import pytest
import requests
from PIL import Image
from werkzeug.wrappers import Response

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.predictions import ProposedRegion, region_results
from backend.labelstudio.setup import connect_project
from sspsam.images.masks import coco_rle_to_mask
from tests.backend.web_server import Web
from tests.integration.conftest import (
    LABEL_STUDIO,
    LOCAL_FILES,
    RunningLabelStudio,
    RunningService,
    running_label_studio,
    running_service,
)
from tests.integration.project import CONFIG, POLL_S, WAIT_S, Project, mask_of, ring, sspsam
from tests.s3_server import s3_server
from tests.waiting import wait_until

pytestmark = pytest.mark.xdist_group("label-studio")
SOURCES = (
    "an upload",
    "a local file",
    "a local file at Label Studio's other address",
    "a bucket that redirects",
    "a bucket that is passed on",
    "another host",
    "the task itself",
)
NAME = "a scene, größer.png"
"""Addresses have to quote it."""
KEY = {"aws_access_key_id": "key", "aws_secret_access_key": "secret", "region_name": "us-east-1"}


@dataclass(frozen=True)
class Sources:
    """A project with a task for each source, every picture of another size."""

    project: Project
    tasks: Mapping[str, int]
    files: Mapping[str, Path]

    def size_hw(self, source: str) -> tuple[int, int]:
        with Image.open(self.files[source]) as picture:
            return picture.height, picture.width


@pytest.fixture(scope="module", params=["", "/label-studio"], ids=["at the root", "under a path"])
def home(
    request: pytest.FixtureRequest, other_servers: list[int], tmp_path_factory: pytest.TempPathFactory
) -> Iterator[tuple[RunningLabelStudio, RunningService]]:
    """Where Label Studio is, and the service that knows of it."""
    if not request.param:
        yield request.getfixturevalue("label_studio"), request.getfixturevalue("service")
        return
    folder = tmp_path_factory.mktemp("label-studio-under-a-path")
    with (
        running_label_studio(LABEL_STUDIO, folder, request.param) as elsewhere,
        running_service(elsewhere, tmp_path_factory.mktemp("service"), other_servers) as its_service,
    ):
        yield elsewhere, its_service


@pytest.fixture(scope="module")
def sources(
    home: tuple[RunningLabelStudio, RunningService],
    other_servers: list[int],
    pictures: list[Path],
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Sources]:
    label_studio, service = home
    files = cut_pictures(pictures[0], tmp_path_factory.mktemp("sources"), label_studio.folder / LOCAL_FILES)
    client = label_studio.client
    number = int(client.create_project("Sources", RECOMMENDED_CONFIG)["id"])
    connect_project(client, number, service.url, webhook_secret=service.webhook_secret)
    project = Project(client, service, number, [])
    elsewhere = Response(files["another host"].read_bytes(), content_type="image/png")
    with s3_server(other_servers[0]) as s3, Web({"/a.png": elsewhere}, port=other_servers[1]) as web:
        tasks = {
            "an upload": add_upload(project, files["an upload"]),
            "a local file": add_storage(
                project, "localfiles", path=str(files["a local file"].parent), use_blob_urls=True
            ),
        }
        for source, presign in (("a bucket that redirects", True), ("a bucket that is passed on", False)):
            bucket = source.replace(" ", "-")
            store = boto3.client("s3", endpoint_url=s3, **KEY)
            store.create_bucket(Bucket=bucket)
            store.upload_file(str(files[source]), bucket, f"folder/{NAME}")
            tasks[source] = add_storage(
                project,
                "s3",
                bucket=bucket,
                prefix="folder",
                s3_endpoint=s3,
                presign=presign,
                use_blob_urls=True,
                **KEY,
            )
        deeper = files["a local file at Label Studio's other address"].relative_to(
            label_studio.folder / LOCAL_FILES
        )
        inline = base64.b64encode(files["the task itself"].read_bytes()).decode()
        images = {
            "a local file at Label Studio's other address": (
                f"{service.environment['LABEL_STUDIO_HOST']}/data/local-files/?d={quote(str(deeper))}"
            ),
            "another host": f"{web.url}/a.png",
            "the task itself": f"data:image/png;base64,{inline}",
        }
        tasks |= {source: add_task(project, image) for source, image in images.items()}
        yield Sources(project, tasks, files)


def cut_pictures(picture: Path, folder: Path, local_files: Path) -> dict[str, Path]:
    """A file for each source, each of another size; those of local files where Label Studio may read them."""
    files = {}
    with Image.open(picture) as whole:
        for number, source in enumerate(SOURCES):
            path = {
                "a local file": local_files / "pictures",
                "a local file at Label Studio's other address": local_files / "pictures" / "deeper",
            }.get(source, folder / f"{number}") / NAME
            path.parent.mkdir(parents=True)
            whole.convert("RGB").crop((0, 0, whole.width - 7 * number, whole.height - 3)).save(path)
            files[source] = path
    return files


def add_storage(project: Project, kind: str, **options: Any) -> int:
    """Connects an import storage of one picture, as a lead does on the storages' page; returns its task."""
    before = {task["id"] for task in project.client.tasks(project.number)}
    made = ask(project, f"/api/storages/{kind}", {"project": project.number, "title": kind, **options})
    ask(project, f"/api/storages/{kind}/{made['id']}/sync", {})
    (task,) = {task["id"] for task in project.client.tasks(project.number)} - before
    return int(task)


def add_upload(project: Project, path: Path) -> int:
    project.client.upload_images(project.number, [path])
    (task,) = project.client.tasks(project.number)
    assert task["data"]["image"].startswith(f"{urlsplit(project.client.url).path}/data/upload/")
    return int(task["id"])


def add_task(project: Project, image: str) -> int:
    before = {task["id"] for task in project.client.tasks(project.number)}
    project.client.import_tasks(project.number, [{"image": image}])
    (task,) = {task["id"] for task in project.client.tasks(project.number)} - before
    return int(task)


def ask(project: Project, path: str, body: Mapping[str, Any]) -> Any:
    answer = requests.post(
        project.client.url + path,
        json=dict(body),
        headers={"Authorization": project.client.authorization()},
        timeout=WAIT_S,
    )
    assert answer.ok, answer.text
    return answer.json()


@pytest.mark.parametrize("source", SOURCES)
def test_a_phrase_gets_its_mask(sources: Sources, source: str) -> None:
    results = sources.project.ask(sources.tasks[source], "the crab")

    assert [one["value"].get("text") for one in results if one["from_name"] == "status"] == [], "all is well"
    (mask,) = (result for result in results if result["type"] == "brushlabels")
    assert (mask["original_height"], mask["original_width"]) == sources.size_hw(source)
    assert mask_of(mask).any()


def test_labels_are_collected_and_leave_with_their_picture(sources: Sources, tmp_path: Path) -> None:
    project = sources.project
    masks = {source: ring(*sources.size_hw(source)) for source in SOURCES}
    for source, mask in masks.items():
        results = region_results(ProposedRegion("drawn", source, mask, score=0.5), CONFIG)
        project.client.create_annotation(sources.tasks[source], results)

    wait_until(lambda: len(project.records) == len(SOURCES), "the records", WAIT_S, POLL_S)

    assert {record.phrase: record.image_sha256 for record in project.records} == {
        source: sha256(path.read_bytes()).hexdigest() for source, path in sources.files.items()
    }
    sspsam(project, "export", "--project", str(project.number), "--out", str(tmp_path / "labels.json"))
    exported = json.loads((tmp_path / "labels.json").read_text())
    assert len(exported["annotations"]) == len(SOURCES)
    for annotation in exported["annotations"]:
        mask = coco_rle_to_mask(annotation["segmentation"])
        assert np.array_equal(mask, masks[annotation["phrase"]])


def test_all_are_prelabelled(sources: Sources) -> None:
    project = sources.project
    done = sspsam(project, "prelabel", "--project", str(project.number), "--phrase", "the fish")

    assert f"predictions: {len(SOURCES)} with" in done
    assert "tasks with a problem: 0" in done
