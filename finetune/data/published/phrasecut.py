"""PhraseCut in the layout of https://github.com/ChenyunWu/PhraseCutDataset.

`<root>/VGPhraseCut_v0/refer_<split>.json` holds phrases and polygons, `.../images/<id>.jpg` the images.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from finetune.data.files import find, stream_json
from finetune.data.published.refcoco import check_split
from finetune.data.published.referring import (
    PolygonRegion,
    Reference,
    ReferringDataset,
    enclose,
    xywh_to_xyxy,
)
from finetune.data.sample import DatasetFileError

NAME = "phrasecut"
SPLITS = ("train", "val", "test", "miniv", "val_miniv")
"""`miniv` is a small part of the validation set, `val` the rest; `val_miniv` is all of it."""
FOLDERS = ("VGPhraseCut_v0", "data/VGPhraseCut_v0", "PhraseCutDataset/data/VGPhraseCut_v0", "phrasecut")
SOURCE = "https://github.com/ChenyunWu/PhraseCutDataset (python download_dataset.py -s {})"


def open_phrasecut(split: str, root: Path) -> ReferringDataset:
    """Opens one split.

    Args:
        split: One of SPLITS.
        root: Folder that holds `VGPhraseCut_v0`.

    Raises:
        DatasetNameError: no such split.
        DatasetFileError: a file is missing or invalid.
    """
    check_split(NAME, split, SPLITS)
    source, folders = SOURCE.format(split), [root / folder for folder in FOLDERS]
    files = [
        find([folder / f"refer_{part}.json" for folder in folders], f"PhraseCut {part}", source, Path.is_file)
        for part in split.split("_")
    ]
    images = find(
        [folder / "images" for folder in folders], "PhraseCut's folder of images", source, Path.is_dir
    )
    return ReferringDataset(reference for file in files for reference in _references(file, split, images))


def _references(path: Path, split: str, images: Path) -> Iterator[Reference]:
    for task in stream_json(path, "item"):
        try:
            yield _reference(task, split, images)
        except (KeyError, TypeError, ValueError) as error:
            raise DatasetFileError(f"{path}, task {task.get('task_id')}: {error!r}") from error


def _reference(task: dict[str, Any], split: str, images: Path) -> Reference:
    polygons = tuple(
        _polygon(polygon) for instance in task["Polygons"] for polygon in instance if len(polygon) > 1
    )
    if not polygons:
        raise ValueError("it has no polygon")
    boxes = [xywh_to_xyxy(box) for box in task.get("instance_boxes", [])]
    image = images / f"{task['image_id']}.jpg"
    kind = (task.get("phrase_structure") or {}).get("type") or ""
    return Reference(
        sample_id=f"{NAME}/{split}/{task['task_id']}",
        image_id=image.name,
        image=image,
        phrase=str(task["phrase"]).strip(),
        region=PolygonRegion(polygons),
        box_xyxy=enclose(boxes),
        family=kind,
    )


def _polygon(corners: Sequence[Sequence[float]]) -> npt.NDArray[np.int32]:
    """(N, 2) integer corners: the published evaluation truncates fractions."""
    whole: npt.NDArray[np.int32] = np.trunc(np.asarray(corners, dtype=float)).astype(np.int32)
    return whole.reshape(-1, 2)
