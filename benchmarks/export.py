"""Export of a project's labels as COCO, against label-studio-sdk and pycocotools region by region.

Realistic regions on images of 640 x 480 px, read from a fake Label Studio that generates its responses: both
ways start from these and end with a file of the same masks. CPU seconds.

    python benchmarks/export.py [--regions 100000] [--one-by-one 500]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any, cast

import cv2
import numpy as np
import psutil
from common.sections import table, write_section
from label_studio_sdk.converter.brush import decode_rle
from pycocotools import mask as coco_mask

from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import RECOMMENDED_CONFIG
from sspsam.images.frames import BoolMask
from tests.worker.label_studio_server import region
from worker.export.coco import CocoWriter
from worker.export.reader import ProjectReader, export

HEIGHT, WIDTH = 480, 640
SHAPES = 40
"""Different masks; the regions repeat them."""
REGIONS_PER_TASK = 10
LEAST = 3.0
"""Minimum speed-up."""
MOST_MB = 40
"""Maximum growth of memory after the first tenth of the regions."""


def shapes() -> list[BoolMask]:
    """Blobs of several parts with holes and uneven outlines, 1 to 20 % of the image."""
    rng = np.random.default_rng(0)
    found = []
    for number in range(SHAPES):
        noise = cv2.resize(rng.standard_normal((24, 32)), (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
        y, x = np.mgrid[:HEIGHT, :WIDTH]
        side = 40 + 3 * number
        near = np.exp(-(((y - rng.integers(HEIGHT)) / side) ** 2) - ((x - rng.integers(WIDTH)) / side) ** 2)
        found.append(near + 0.15 * noise * near > 0.5)
    return found


class Project:
    """Implements the methods of `LabelStudioClient` that an export uses."""

    url = "http://label-studio"

    def __init__(self, regions: int) -> None:
        self.tasks_count = regions // REGIONS_PER_TASK
        self._results = [region("id", "the thing on the left", mask) for mask in shapes()]

    def project(self, number: int) -> dict[str, Any]:
        return {"id": number, "label_config": RECOMMENDED_CONFIG, "task_number": self.tasks_count}

    def project_summary(self, _number: int) -> dict[str, Any]:
        return {}

    def tasks(self, _number: int, _page_size: int) -> Iterator[dict[str, Any]]:
        for task in range(self.tasks_count):
            result = []
            for place in range(REGIONS_PER_TASK):
                number = task * REGIONS_PER_TASK + place
                result += [{**one, "id": f"r{number}"} for one in self._results[number % SHAPES]]
            annotation = {
                "id": task,
                "completed_by": 1,
                "updated_at": "2026-01-01T00:00:00Z",
                "result": result,
            }
            yield {"id": task, "data": {"image": f"/data/upload/1/{task}.png"}, "annotations": [annotation]}


def one_by_one(project: Project, file: IO[str]) -> None:
    """The baseline: a short script."""
    for task in project.tasks(1, 1):
        for result in task["annotations"][0]["result"]:
            if result["type"] != "brushlabels":
                continue
            channels = decode_rle(result["value"]["rle"]).reshape(HEIGHT, WIDTH, 4)
            rle = coco_mask.encode(np.asfortranarray((channels[:, :, 3] > 127).astype(np.uint8)))
            entry = {
                "segmentation": {"size": rle["size"], "counts": rle["counts"].decode()},
                "area": int(coco_mask.area(rle)),
                "bbox": coco_mask.toBbox(rle).tolist(),
                "region": result["id"],
            }
            file.write(json.dumps(entry) + "\n")


def main() -> None:
    """Measures both and writes the section."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--regions", type=int, default=100_000)
    parser.add_argument("--one-by-one", type=int, default=300, help="regions for the slow baseline")
    options = parser.parse_args()
    process, resident = psutil.Process(), list[int]()
    with tempfile.TemporaryDirectory(prefix="sspsam-") as name:
        whole, part = Path(name) / "coco.json", Path(name) / "part.jsonl"
        reader = ProjectReader(
            cast(LabelStudioClient, Project(options.regions)), 1, lambda _value, _task: (HEIGHT, WIDTH)
        )
        since_s = time.process_time()
        summary = export(
            reader, CocoWriter(whole, reader), lambda: resident.append(process.memory_info().rss)
        )
        ours_s = (time.process_time() - since_s) / summary.masks
        project = Project(options.one_by_one)
        since_s = time.process_time()
        with part.open("w") as file:
            one_by_one(project, file)
        theirs_s = (time.process_time() - since_s) / options.one_by_one
        expected = [json.loads(line) for line in part.read_text().splitlines()]
        found = json.loads(whole.read_text())["annotations"][: len(expected)]
    assert summary.masks == options.regions
    for one, other in zip(found, expected, strict=False):
        assert {key: one[key] for key in other} == other, "the two outputs differ"
    warm = len(resident) // 10
    grown_mb = (max(resident[warm:]) - max(resident[:warm])) / 1e6
    rows = [
        ["`sspsam export`", f"{options.regions:,}", f"{1 / ours_s:.0f}", f"{theirs_s / ours_s:.1f}"],
        ["region by region", f"{options.one_by_one:,}", f"{1 / theirs_s:.0f}", "1.0"],
    ]
    write_section(
        "Export",
        f"Regions on images of {WIDTH} x {HEIGHT} px to COCO RLE, against label-studio-sdk's `decode_rle` "
        "and pycocotools' `encode` region by region, with identical segmentation, area and box. Target: "
        f"{LEAST:.0f} times as fast.",
        table(["", "regions", "regions per CPU second", "times as fast"], rows),
        f"Memory growth after the first tenth of the regions: {max(grown_mb, 0):.0f} MB (target: at most "
        f"{MOST_MB} MB).",
    )
    if theirs_s < LEAST * ours_s or grown_mb > MOST_MB:
        raise SystemExit("the export is slower, or uses more memory, than its target")


if __name__ == "__main__":
    main()
