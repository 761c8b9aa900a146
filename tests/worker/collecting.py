"""One task in a simulated Label Studio, and what becomes of its annotations."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pytest

from backend.labelstudio.predictions import ProposedRegion, region_id_for
from finetune.data.records import RefRecord
from sspsam.images.masks import mask_to_coco_rle
from tests.worker.label_studio_server import LabelStudioServer
from worker import jobs
from worker.services import Services

Mask = npt.NDArray[np.bool_]
UInt8Image = npt.NDArray[np.uint8]

PROJECT, TASK, ANNOTATION = 3, 7, 11
BASE = "ssp-sam-test-base"
NOW = datetime.now(UTC).isoformat()
LATER = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
"""Masks are served before this, so that they were seen for a while."""


@pytest.fixture(autouse=True)
def one_task(label_studio: LabelStudioServer, image: UInt8Image) -> None:
    label_studio.add_project(PROJECT)
    label_studio.add_task(TASK, PROJECT, image)


def collect(services: Services, annotation: int = ANNOTATION) -> list[RefRecord]:
    jobs.collect_annotation(PROJECT, annotation, TASK)
    return services.collection(PROJECT).of_annotation(annotation)


def serve(services: Services, phrase: str, mask: Mask) -> str:
    """Lets the backend's log say that it served a mask; returns the region's id."""
    region_id = region_id_for(str(PROJECT), str(TASK), phrase)
    proposed = [(ProposedRegion(region_id, phrase, mask, 0.9), mask_to_coco_rle(mask))]
    services.redis_store.note_served(proposed, "ssp-sam-test-base")
    return region_id
