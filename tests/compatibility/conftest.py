"""Each tested version of Label Studio, in a venv of its own, with the real service."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from backend.labelstudio.setup import EMPTY_CONFIG
from backend.labelstudio.tested_versions import TESTED
from tests.e2e.conftest import browser
from tests.integration.conftest import (
    LABEL_STUDIO,
    ROOT,
    RunningLabelStudio,
    pictures,
    running_label_studio,
    running_service,
)
from tests.integration.project import Project

__all__ = ["browser", "pictures"]
HERE = Path(__file__).parent
NEWEST = TESTED[-1]
"""Has the venv that the demo and all other tests use."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if HERE in item.path.parents:
            item.add_marker(pytest.mark.compatibility)


def program_of(version: str) -> Path:
    """The `label-studio` of a version, as `make compatibility` installs it."""
    return LABEL_STUDIO if version == NEWEST else ROOT / f".venv-label-studio-{version}/bin/label-studio"


@pytest.fixture(scope="module", params=TESTED)
def label_studio(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningLabelStudio]:
    folder = tmp_path_factory.mktemp(f"label-studio-{request.param}")
    with running_label_studio(program_of(request.param), folder) as running:
        assert running.client.version() == request.param
        yield running


@pytest.fixture(scope="module")
def project(
    label_studio: RunningLabelStudio, tmp_path_factory: pytest.TempPathFactory, pictures: list[Path]
) -> Iterator[Project]:
    """A project with pictures and an empty form, and a service that knows of its Label Studio."""
    client = label_studio.client
    number = int(client.create_project("Pictures", EMPTY_CONFIG)["id"])
    client.upload_images(number, pictures)
    tasks = [int(task["id"]) for task in client.tasks(number)]
    with running_service(label_studio, tmp_path_factory.mktemp("service")) as service:
        yield Project(client, service, number, tasks)
