"""A connected project in a real Label Studio, and what tests do with it."""

from __future__ import annotations

import subprocess
import sysconfig
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import requests
from PIL import Image

from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, region_results
from finetune.data.records import RefRecord
from sspsam.images.brush_rle import brush_rle_to_mask
from sspsam.images.masks import BoolMask
from tests.annotator_client import AnnotatorClient
from worker.records import Collection

if TYPE_CHECKING:
    from tests.integration.conftest import RunningService

CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
PICTURES = 4
WAIT_S = 60.0
TRAINING_WAIT_S = 240.0
POLL_S = 0.2
BROWSER = {"Accept": "text/html"}


@dataclass(frozen=True)
class Project:
    """A connected project with its own tasks."""

    client: AnnotatorClient
    service: RunningService
    number: int
    tasks: list[int]

    @property
    def backend(self) -> dict[str, Any]:
        """Label Studio's record of our backend, just asked for its health."""
        return self.client.ml_backends(self.number)[0]

    @property
    def records(self) -> list[RefRecord]:
        """What the worker has collected."""
        return Collection(self.service.model_dir, self.number).records()

    def ask(self, task: int, *phrases: str) -> list[dict[str, Any]]:
        """Enters phrases in the prompt box, as the editor sends them, and returns the results to draw."""
        prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
        return self.send(task, {**prompt, "value": {"text": list(phrases)}})

    def click(self, task: int, x: float, y: float, name: str, positive: bool = True) -> dict[str, Any]:
        """A click of the smart tool, x and y in percent, as the editor describes it."""
        height, width = size_of(self, task)
        return {
            "original_width": width,
            "original_height": height,
            "image_rotation": 0,
            "value": {"x": x, "y": y, "width": 0.2, "labels": ["refine"], "keypointlabels": ["refine"]},
            "is_positive": positive,
            "id": name,
            "from_name": "click",
            "to_name": "image",
            "type": "keypointlabels",
            "origin": "manual",
        }

    def send(self, task: int, *results: dict[str, Any]) -> list[dict[str, Any]]:
        """Sends what is on the form, as the editor does, and returns the results to draw."""
        context = {"result": list(results)}
        answer = self.client.interactive_predict(int(self.backend["id"]), task, context)
        drawn: list[dict[str, Any]] = answer["data"]["result"]
        return drawn

    def save(self, task: int, phrase: str, mask: BoolMask, region: str = "drawn") -> int:
        """Saves an annotation of one region; returns its id."""
        results = region_results(ProposedRegion(region, phrase, mask, score=0.5), CONFIG)
        return int(self.client.create_annotation(task, results)["id"])


def run_sspsam(project: Project, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Runs an `sspsam` command on the service's data."""
    command = [str(Path(sysconfig.get_path("scripts")) / "sspsam"), *arguments]
    environment = project.service.environment
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=TRAINING_WAIT_S)


def sspsam(project: Project, *arguments: str) -> str:
    """Runs a command that must succeed, and returns what it printed."""
    done = run_sspsam(project, *arguments)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def ring(height: int, width: int) -> BoolMask:
    """A mask with a hole, and a separate part that touches the border."""
    rows, columns = np.mgrid[:height, :width]
    distance = np.hypot(rows - height / 2, columns - width / 2)
    mask: BoolMask = (distance < height / 4) & (distance > height / 8)
    mask[-5:, -9:] = True
    return mask


def mask_of(result: dict[str, Any]) -> BoolMask:
    """The mask of a brush result."""
    return brush_rle_to_mask(result["value"]["rle"], result["original_height"], result["original_width"])


def size_of(project: Project, task: int) -> tuple[int, int]:
    """(H, W) of a task's picture."""
    url = project.client.url + project.client.task(task)["data"]["image"]
    answer = requests.get(url, headers={"Authorization": project.client.authorization()}, timeout=WAIT_S)
    with Image.open(BytesIO(answer.content)) as picture:
        return picture.height, picture.width
