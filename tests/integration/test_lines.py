"""Two projects of two Label Studio users on one service: lines of versions, records and pages stay apart."""

from __future__ import annotations

from pathlib import Path

import requests
from redis import Redis

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.setup import connect_project
from sspsam.version_store.pruning import plan_pruning
from sspsam.version_store.store import VersionCard, VersionStore
from tests.facts import untold
from tests.integration.project import BROWSER, POLL_S, WAIT_S, Project, ring, size_of
from tests.waiting import wait_until
from tests.worker.decisive import decisive_state
from worker.queueing.queues import ask_for_reconciliation

BASE = "ssp-sam-test-base"


def project_of_another_user(project: Project, pictures: list[Path]) -> Project:
    client = project.client.invite("second@example.com", "a password of their own")
    number = int(client.create_project("Second", RECOMMENDED_CONFIG)["id"])
    client.upload_images(number, pictures)
    connect_project(client, number, project.service.url, webhook_secret=project.service.webhook_secret)
    return Project(client, project.service, number, [task["id"] for task in client.tasks(number)])


def page_of(project: Project) -> str:
    url = f"{project.service.url}/?project={project.number}"
    return requests.get(url, headers=BROWSER, timeout=WAIT_S).text


def test_projects_of_two_users_stay_apart(project: Project, pictures: list[Path]) -> None:
    other = project_of_another_user(project, pictures)
    assert other.client.whoami()["id"] != project.client.whoami()["id"]
    store = VersionStore(project.service.model_dir, "ssp-sam-test")
    before = other.ask(other.tasks[0], "the crab")

    card = VersionCard(line=store.line_of(project.number), data={"run": "r", "project": project.number})
    version = store.promote(store.publish(decisive_state(), card, {}).version_id).version_id
    wait_until(lambda: project.backend["model_version"] == version, "that it serves", WAIT_S, POLL_S)

    assert other.backend["model_version"] == BASE
    assert other.ask(other.tasks[0], "the crab") == before
    for own in (project, other):
        own.save(own.tasks[0], f"the ring of {own.number}", ring(*size_of(own, own.tasks[0])))
    for own in (project, other):
        wait_until(lambda own=own: len(own.records) == 1, "the record", WAIT_S, POLL_S)  # type: ignore[misc]
        assert own.records[0].phrase == f"the ring of {own.number}"
    assert version in page_of(project)
    assert untold(page_of(other), version, f"the ring of {project.number}", f"project-{project.number}") == [
        version, f"the ring of {project.number}", f"project-{project.number}",
    ]  # fmt: skip

    project.client.delete_project(project.number)
    ask_for_reconciliation(Redis.from_url(project.service.redis_url), project.number)
    wait_until(lambda: project.records == [], "that its records are forgotten", WAIT_S, POLL_S)
    wait_until(lambda: version in plan_pruning(store, 0).removed, "that it can go", WAIT_S, POLL_S)
    assert len(other.records) == 1
