"""Tools that people train and annotate with read the exports: each in a process of .venv-consumers.

What a tool loses is in the table of docs/label-studio.md.
"""

from __future__ import annotations

import json
import os
import subprocess
from collections import Counter
from pathlib import Path

import pytest
from typer.testing import CliRunner

from sspsam.images.masks import coco_rle_iou, coco_rle_to_mask, mask_to_coco_rle
from tests.worker.export.sample_project import PROJECT, Object, Sample, fill_project
from tests.worker.label_studio_server import LabelStudioServer
from worker.cli.commands import app
from worker.services import Services

ROOT = Path(__file__).parents[3]
PYTHON = ROOT / ".venv-consumers/bin/python"
PROGRAM = Path(__file__).with_name("consumers.py")
WITHIN_S = 120

EXACT = ("supervision", "datumaro", "datumaro_polygons", "ultralytics_dataset", "detr", "imagefolder")
NEARLY = {"supervision_yolo": 0.5, "ultralytics_converter": 0.9}
"""Tool -> least IoU of a region of LARGE_PX: those that round corners, or connect parts in their own way."""
TOP_FOLDER_ONLY = ("supervision_yolo",)
"""Tools that do not look for pictures in the folders of a folder."""
LARGE_PX = 50


@pytest.fixture
def folder(label_studio: LabelStudioServer, services: Services, tmp_path: Path) -> tuple[Path, Sample]:
    sample = fill_project(label_studio)
    folder = tmp_path / "export"
    for name, file_format in (("instances", "coco"), ("polygons", "coco-polygons")):
        out = folder / name / "annotations/instances_train.json"
        export(file_format, out, "--images", folder / name / "images")
    export("yolo", folder / "yolo")
    export("png", folder / "png", "--images", folder / "png/images")
    return folder, sample


def export(file_format: str, out: Path, *options: object) -> None:
    words = ["export", "--project", PROJECT, "--format", file_format, "--out", out, *options]
    done = CliRunner().invoke(app, [str(word) for word in words])
    assert done.exit_code == 0, done.output


def read(tool: str, folder: Path) -> list[tuple[str, str, dict[str, object]]]:
    """Runs a tool offline, with its settings and caches in the folder."""
    environment = {
        **{name: value for name, value in os.environ.items() if name in ("PATH", "LANG", "OMP_NUM_THREADS")},
        "HOME": str(folder),
        "YOLO_CONFIG_DIR": str(folder),
        "YOLO_OFFLINE": "true",
        "YOLO_AUTOINSTALL": "false",
        "HF_HUB_OFFLINE": "1",
        "HF_HOME": str(folder / "hugging-face"),
        "DATUMARO_TELEMETRY": "0",
        "PYTHONUTF8": "1",
    }
    done = subprocess.run(
        [PYTHON, "-P", PROGRAM, tool, folder],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=WITHIN_S,
    )
    assert done.returncode == 0, done.stdout[-4000:]
    return [(name, label, rle) for name, label, rle in json.loads((folder / f"{tool}.json").read_text())]


def keys(regions: list[tuple[str, str, dict[str, object]]]) -> Counter[tuple[str, str, object]]:
    return Counter((name, label, rle["counts"]) for name, label, rle in regions)


def expected(sample: Sample) -> list[tuple[str, str, dict[str, object]]]:
    return [(each.file_name, each.label, mask_to_coco_rle(each.mask)) for each in sample.objects]


@pytest.mark.consumers
@pytest.mark.parametrize("tool", EXACT)
def test_a_tool_has_every_region_pixel_for_pixel(folder: tuple[Path, Sample], tool: str) -> None:
    assert keys(read(tool, folder[0])) == keys(expected(folder[1]))


@pytest.mark.consumers
@pytest.mark.parametrize("tool", NEARLY)
def test_a_tool_has_every_region_nearly(folder: tuple[Path, Sample], tool: str) -> None:
    found = read(tool, folder[0])
    objects = [each for each in folder[1].objects if "/" not in each.file_name or tool not in TOP_FOLDER_ONLY]
    places = Counter((name, label) for name, label, _ in found)
    assert places == Counter((each.file_name, each.label) for each in objects)
    for each in objects:
        if each.mask.sum() >= LARGE_PX and each.phrase != "specks":
            assert best_iou(each, found) >= NEARLY[tool], (each.file_name, each.phrase)


def best_iou(each: Object, found: list[tuple[str, str, dict[str, object]]]) -> float:
    truth = mask_to_coco_rle(each.mask)
    same = [rle for name, label, rle in found if (name, label) == (each.file_name, each.label)]
    assert all(coco_rle_to_mask(rle).shape == each.mask.shape for rle in same)
    return max(coco_rle_iou(truth, rle) for rle in same)
