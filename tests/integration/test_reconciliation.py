"""Reconciliation with a real Label Studio: its filters, its order of tasks, its counts."""

from __future__ import annotations

from pathlib import Path

import pytest
from redis import Redis

from backend.labelstudio.client import moment_of
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.settings import Settings
from tests.annotator_client import AnnotatorClient
from tests.integration.conftest import RunningLabelStudio
from tests.integration.project import ring
from tests.worker.label_studio_server import region
from worker.corrections.reconciling import reconcile
from worker.services import Services


@pytest.fixture
def services(
    label_studio: RunningLabelStudio, redis_url: str, redis_server: Redis, tmp_path: Path
) -> Services:
    settings = Settings(
        label_studio_url=label_studio.url,
        label_studio_api_key=label_studio.account.token,
        redis_url=redis_url,
        model_dir=tmp_path,
        preset="ssp-sam-test",
    )
    return Services(settings)


def save(client: AnnotatorClient, services: Services, task: int, phrase: str) -> int:
    image = client.task(task)["data"]["image"]
    mask = ring(*services.image_hw(image, str(task)))
    return int(client.create_annotation(task, region("drawn", phrase, mask))["id"])


def test_only_what_changed_is_read_and_what_is_gone_is_forgotten(
    label_studio: RunningLabelStudio, services: Services, pictures: list[Path]
) -> None:
    client = label_studio.client
    project = int(client.create_project("Reconciled", RECOMMENDED_CONFIG)["id"])
    client.upload_images(project, pictures)
    tasks = [task["id"] for task in client.tasks(project)]
    first, second, third = (save(client, services, task, f"ring {task}") for task in tasks[:3])
    assert reconcile(services, project).collected == 3
    assert services.collection(project).annotations() == [first, second, third]
    assert (result := reconcile(services, project)).collected == result.forgotten == 0

    since = moment_of(client.task(tasks[2])["updated_at"])
    [(page, _)] = client.changed_tasks(project, since)
    assert [task["id"] for task in page][:1] == [tasks[2]], "the others changed before"

    mask = ring(*services.image_hw(client.task(tasks[0])["data"]["image"], str(tasks[0])))
    client.update_annotation(first, region("drawn", "another ring", mask))
    client.delete_annotation(second)
    [(page, _)] = client.changed_tasks(project, since)
    assert [task["id"] for task in page] == [tasks[2], tasks[0], tasks[1]], "by the time of the change"
    result = reconcile(services, project)
    assert (result.collected, result.forgotten) == (1, 1)

    client.delete_task(tasks[2])
    result = reconcile(services, project)
    assert (result.collected, result.forgotten) == (0, 1)
    assert [record.phrase for record in services.collection(project).records()] == ["another ring"]


def test_pages_follow_each_other_by_time(
    label_studio: RunningLabelStudio, services: Services, pictures: list[Path]
) -> None:
    client = label_studio.client
    project = int(client.create_project("Paged", RECOMMENDED_CONFIG)["id"])
    client.upload_images(project, pictures)
    tasks = {task["id"] for task in client.tasks(project)}
    pages = [page for page, _ in client.changed_tasks(project, page_size=2)]
    assert {task["id"] for page in pages for task in page} == tasks
    assert len(pages) <= len(tasks) + 1
