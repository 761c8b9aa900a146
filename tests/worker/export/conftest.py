"""A project of three tasks."""

from __future__ import annotations

import pytest

from tests.worker.export.exporting import PROJECT, UInt8Image
from tests.worker.label_studio_server import LabelStudioServer


@pytest.fixture
def project(label_studio: LabelStudioServer, image: UInt8Image) -> None:
    label_studio.add_project(PROJECT)
    for task in (1, 2, 3):
        label_studio.add_task(task, PROJECT, image)
