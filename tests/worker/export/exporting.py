"""Exports of one project, and masks as annotators leave them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import numpy.typing as npt
from pycocotools import mask as coco_mask
from typer.testing import CliRunner, Result

from worker.cli.commands import app
from worker.export.coco import CocoWriter
from worker.export.reader import ProjectReader, Selection
from worker.export.reader import export as write
from worker.services import Services

Mask = npt.NDArray[np.bool_]
UInt8Image = npt.NDArray[np.uint8]

PROJECT = 2


def export(services: Services, **selection: Any) -> dict[str, Any]:
    """The COCO file that comes out."""
    path = services.settings.model_dir.parent / "export.json"
    reader = ProjectReader(services.label_studio, PROJECT, services.image_hw, Selection(**selection))
    write(reader, CocoWriter(path, reader))
    found: dict[str, Any] = json.loads(path.read_text())
    return found


def command(*options: str) -> Result:
    return CliRunner().invoke(app, ["export", "--project", str(PROJECT), *options])


def shapes() -> dict[str, Mask]:
    """What annotators really leave behind, each with a reason."""
    empty = np.zeros((48, 64), dtype=np.bool_)

    def filled(*boxes: tuple[slice, slice], holes: tuple[tuple[slice, slice], ...] = ()) -> Mask:
        mask = empty.copy()
        for box in boxes:
            mask[box] = True
        for hole in holes:
            mask[hole] = False
        return mask

    return {
        "a hole": filled(np.s_[5:40, 5:40], holes=(np.s_[10:20, 10:20],)),
        "two parts": filled(np.s_[0:9, 0:9], np.s_[30:48, 50:64]),
        "parts that touch at a corner": filled(np.s_[4:8, 4:8], np.s_[8:12, 8:12]),
        "one pixel": filled(np.s_[47:48, 63:64]),
        "the whole image": ~empty,
        "specks": np.random.default_rng(0).random((48, 64)) < 0.3,
    }


def fill(polygons: list[list[float]], like: Mask) -> Mask:
    """As pycocotools fills polygons."""
    return np.asarray(coco_mask.decode(coco_mask.merge(coco_mask.frPyObjects(polygons, *like.shape))), bool)
