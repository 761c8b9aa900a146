"""A project in the stack's Label Studio, and what an annotator does with it through the editor's calls."""

from __future__ import annotations

import itertools
import json
import shutil
import time
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import requests
from PIL import Image

from backend.labelstudio.config import RECOMMENDED_CONFIG, LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, region_results
from benchmarks.common.novel import CORRECTED_SPLIT, NovelScene, novel_scenes
from sspsam.images.brush_rle import brush_rle_to_mask
from sspsam.images.masks import BoolMask
from tests.containers.stack import POLL_S, Stack
from tests.waiting import wait_until
from worker.local.demo_pictures import Picture, demo_pictures

CONFIG = LabelingConfig.parse(RECOMMENDED_CONFIG)
NOUN = "koala"
"""The weights that ship have never seen one; some corrections teach them to find it."""
SCENES = 12
TRAINED_ON = 10
FOUND_IOU = 0.3
ANSWER_WITHIN_S = 60.0


@dataclass
class ContainerProject:
    """A project whose pictures show a koala each."""

    stack: Stack
    number: int
    scenes: tuple[NovelScene, ...]
    known: Picture
    """A picture whose phrases the weights that ship understand; its task comes after those of the scenes."""
    version: str = ""
    """That was promoted for it."""

    @classmethod
    def create(cls, stack: Stack, folder: Path) -> ContainerProject:
        scenes = tuple(itertools.islice(novel_scenes(NOUN, CORRECTED_SPLIT), SCENES))
        paths = [folder / f"scene-{index}.png" for index in range(len(scenes))]
        for scene, path in zip(scenes, paths, strict=True):
            Image.fromarray(scene.image).save(path)
        (known,) = demo_pictures(folder / "demo", 1)
        shutil.copy(known.path, folder / f"scene-{SCENES}.png")
        paths.append(folder / f"scene-{SCENES}.png")
        number = int(stack.client.create_project("Koalas", RECOMMENDED_CONFIG)["id"])
        for path in paths:
            stack.client.upload_images(number, [path])
        return cls(stack, number, scenes, known)

    @cached_property
    def tasks(self) -> list[int]:
        """Of the scenes, in their order, and of the known picture."""
        tasks = list(self.stack.client.tasks(self.number))
        return [
            next(int(task["id"]) for task in tasks if task["data"]["image"].endswith(f"scene-{index}.png"))
            for index in range(len(self.scenes) + 1)
        ]

    def connect(self, url: str) -> None:
        """Connects the project; Label Studio then reaches the backend by this URL."""
        before = self.last_event()
        self.stack.sspsam("connect", "--project", str(self.number), "--yes")
        (backend,) = [one for one in self.stack.client.ml_backends(self.number) if one["url"] == url]
        assert backend["readable_state"] == "Connected"
        assert self.last_event() != before, "connect has sent an event through Label Studio"
        self.stack.sspsam("connect", "--project", str(self.number), "--check")

    def last_event(self) -> str:
        """When a webhook of the project arrived last."""
        url = f"{self.stack.backend_url}/webhook?project={self.number}"
        return str(requests.get(url, auth=self.stack.basic_auth, timeout=30).json()["last_event"])

    @property
    def serving(self) -> str:
        """The version that answers this project."""
        url = f"{self.stack.backend_url}/versions?project={self.number}"
        return str(requests.get(url, auth=self.stack.basic_auth, timeout=30).json()["versions"][0])

    def ask(self, index: int, phrase: str) -> list[dict[str, Any]]:
        """Types a phrase on a scene's picture, and returns the results to draw."""
        backend = int(self.stack.client.ml_backends(self.number)[0]["id"])
        prompt = {"id": "p", "from_name": "prompt", "to_name": "image", "type": "textarea"}
        context = {"result": [{**prompt, "value": {"text": [phrase]}}]}
        until_s = time.monotonic() + ANSWER_WITHIN_S
        while True:  # Label Studio gives a backend 1 s to say that it is there: little on a busy machine
            answer = self.stack.client.interactive_predict(backend, self.tasks[index], context)
            if "data" in answer:
                results: list[dict[str, Any]] = answer["data"]["result"]
                return results
            self.stack.note(
                f"until Label Studio gave up: {answer}", time.monotonic() + ANSWER_WITHIN_S - until_s
            )
            assert time.monotonic() < until_s, answer

    def masks(self, index: int, phrase: str) -> list[BoolMask]:
        """The masks that a phrase gets."""
        return [
            brush_rle_to_mask(result["value"]["rle"], result["original_height"], result["original_width"])
            for result in self.ask(index, phrase)
            if result["type"] == "brushlabels"
        ]

    def correct(self, index: int) -> None:
        """Saves what a scene's phrase means, drawn by hand."""
        scene = self.scenes[index]
        results = region_results(ProposedRegion(f"drawn-{index}", scene.phrase, scene.mask, 0.5), CONFIG)
        self.stack.client.create_annotation(self.tasks[index], results)

    def found(self, index: int) -> float:
        """Intersection over union of the koala and what its phrase finds."""
        truth = self.scenes[index].mask
        return max(
            (
                float((mask & truth).sum() / (mask | truth).sum())
                for mask in self.masks(index, self.scenes[index].phrase)
            ),
            default=0.0,
        )

    def still_works(self) -> None:
        """The promoted version serves, labels are there, and what was learned is found."""
        self.stack.wait_ready()
        wait_until(lambda: self.serving == self.version, "the promoted version", 60.0, POLL_S)
        labels = json.loads(self.stack.sspsam("export", "--project", str(self.number), "--out", "-"))
        assert len(labels["annotations"]) >= TRAINED_ON
        assert max(self.found(index) for index in range(TRAINED_ON, SCENES)) > FOUND_IOU
