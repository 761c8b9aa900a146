"""Connecting projects of a real Label Studio, including one with conflicting settings."""

import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from backend.errors import LabelStudioBlocksError
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.setup import EMPTY_CONFIG, check_project, connect_project, probe_webhook
from tests.annotator_client import AnnotatorClient
from tests.integration.conftest import LABEL_STUDIO, LOOPBACK, RunningLabelStudio, RunningService, free_port
from tests.integration.project import (
    Project,
    run_sspsam,
    sspsam,
)
from worker.local.local_label_studio import label_studio_part
from worker.local.supervisor import Supervisor


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
    assert found == "a webhook event arrived"


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


def test_the_command_connects_and_can_be_run_twice(project: Project) -> None:
    client = project.client
    number = int(client.create_project("By command", EMPTY_CONFIG)["id"])
    connect = ["connect", "--project", str(number)]
    assert run_sspsam(project, *connect, "--check").returncode == 1

    first = sspsam(project, *connect)
    second = sspsam(project, *connect)

    assert '<BrushLabels name="mask"' in first, "the change of the form, before it is made"
    assert "a webhook event arrived" in first
    assert "<BrushLabels" not in second
    assert "a webhook event arrived" in second
    assert "is fully connected" in sspsam(project, *connect, "--check")
    fields = client.project(number)
    assert fields["label_config"].strip() == RECOMMENDED_CONFIG.strip()
    assert fields["show_collab_predictions"] is False
    assert [record["is_interactive"] for record in client.ml_backends(number)] == [True]
    (webhook,) = client.webhooks(number)
    assert webhook["headers"] == {"X-ML-Secret": project.service.webhook_secret}


@contextmanager
def another(label_studio: RunningLabelStudio, folder: Path, **settings: str) -> Iterator[AnnotatorClient]:
    """A second Label Studio on a copy of the first one's data, with other settings."""
    name = "label_studio.sqlite3"
    with (
        closing(sqlite3.connect(label_studio.folder / name)) as data,
        closing(sqlite3.connect(folder / name)) as copy,
    ):
        data.backup(copy)
    port = free_port()
    part = label_studio_part(LABEL_STUDIO, port, folder, label_studio.account)
    with Supervisor(folder / "logs") as supervisor:
        supervisor.start(replace(part, environment={**(part.environment or {}), **settings}))
        supervisor.wait_until_ready("label-studio")
        yield AnnotatorClient(f"http://{LOOPBACK}:{port}", label_studio.account.token)


@pytest.mark.timeout(600)
def test_settings_of_label_studio_that_stand_in_the_way_are_named(
    label_studio: RunningLabelStudio, project: Project, tmp_path: Path
) -> None:
    service, secret = project.service, project.service.webhook_secret
    blocking = {"ML_BLOCK_LOCAL_IP": "true", "SSRF_PROTECTION_ENABLED": "true"}
    with another(label_studio, tmp_path, **blocking) as client:
        fresh = int(client.create_project("Fresh", RECOMMENDED_CONFIG)["id"])
        with pytest.raises(LabelStudioBlocksError, match="ML_BLOCK_LOCAL_IP=false"):
            connect_project(client, fresh, service.url, secret)
        (problem,) = check_project(client, project.number, service.url)
        assert "ML_BLOCK_LOCAL_IP=false" in problem, "of one that was connected before"
        found = probe_webhook(client, project.number, service.url, secret)
        assert "webhook events do not arrive" in found
        assert "SSRF_PROTECTION_ENABLED=false" in found
