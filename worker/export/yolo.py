"""YOLO data sets in the layout of Ultralytics: https://docs.ultralytics.com/datasets/segment .

    data.yaml                 folders of the splits, names of the classes: the form's labels in its order
    images/<split>/...        the pictures
    labels/<split>/....txt    per region and label a line: the class from 0 and, relative to the picture's
                              width and height, the outline or the box (centre, width, height)

A line is one polygon: holes and further parts are connected by lines that are traversed both ways and enclose
nothing. Pictures without regions have an empty file. Tools for detection take the box of an outline.
"""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import numpy as np

from backend.errors import BackendError
from backend.state.skipped_items import reason_of
from sspsam.images.masks import mask_to_box_xyxy
from worker.export.pictures import PictureFolder
from worker.export.png import commit, staging_folder
from worker.export.reader import LabelledImage, ProjectReader
from worker.export.regions import LabelledRegion

DECIMALS = 6
_UNPRINTABLE = re.compile("[\x7f-\x9f\u2028\u2029\ufeff\ufffe\uffff]")
"""Characters that JSON allows in a string and YAML does not."""


class YoloWriter:
    """Writes a folder with pictures and labels.

    Args:
        folder: Must not exist or be empty; it is created atomically.
        reader: Source of the labels, with pictures.
        splits: Names of the splits.
        boxes: Write boxes instead of outlines.

    Raises:
        ExportError: it exists and is not empty.
    """

    def __init__(self, folder: Path, reader: ProjectReader, splits: tuple[str, ...], boxes: bool) -> None:
        self._folder = folder
        self._reader = reader
        self._splits = splits
        self._boxes = boxes
        self.staging = staging_folder(folder)
        for split in splits:
            for kind in ("images", "labels"):
                (self.staging / kind / split).mkdir(parents=True)
        self._pictures = {split: PictureFolder(self.staging / "images" / split) for split in splits}

    def add(self, image: LabelledImage) -> None:
        path = self.staging / "labels" / image.split / Path(image.file_name).with_suffix(".txt")
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("w", encoding="utf-8") as file:
            for _, content in image.annotations:
                for region in content.regions:
                    file.writelines(self._lines(region))
        if image.picture is None:
            return
        try:
            self._pictures[image.split].add(image.picture, image.file_name)
        except BackendError as error:
            self._reader.summary.note(f"task {image.task}: its picture is missing: {reason_of(error)}")

    def close(self) -> None:
        (self.staging / "data.yaml").write_text(self._description(), encoding="utf-8", errors="replace")
        commit(self.staging, self._folder)

    def discard(self) -> None:
        shutil.rmtree(self.staging, ignore_errors=True)

    def _lines(self, region: LabelledRegion) -> list[str]:
        height, width = region.hw
        if self._boxes:
            x0, y0, x1, y1 = region.box_xyxy or mask_to_box_xyxy(region.mask)
            numbers = [(x0 + x1) / 2 / width, (y0 + y1) / 2 / height, (x1 - x0) / width, (y1 - y0) / height]
        else:
            outline = one_outline(region.polygons(region.mask))
            numbers = (np.asarray(outline).reshape(-1, 2) / (width, height)).clip(0, 1).ravel().tolist()
        text = " ".join(f"{number:.{DECIMALS}f}".rstrip("0").rstrip(".") for number in numbers)
        index_of = self._reader.categories.index_of
        return [f"{index_of(label)} {text}\n" for label in region.labels or (None,)]

    def _description(self) -> str:
        """YAML; JSON's strings are YAML's. Without `path`, folders are relative to the file."""
        places = {
            "train": self._splits[0],
            "val": self._splits[0],
            **{split: split for split in self._splits},
        }
        lines = [f"{split}: images/{place}" for split, place in places.items()]
        names = self._reader.categories.names
        listed = [f"  {index}: {quoted(name)}" for index, name in enumerate(names)]
        return "\n".join([*lines, "names:", *listed, ""])


def quoted(name: str) -> str:
    """A label as a YAML string."""
    text = json.dumps(name, ensure_ascii=False)
    return _UNPRINTABLE.sub(lambda sign: f"\\u{ord(sign[0]):04x}", text)


def one_outline(polygons: list[list[float]]) -> list[float]:
    """Connects the polygons of a mask by a chain through their first corners, traversed both ways."""
    if len(polygons) == 1:
        return polygons[0]
    starts = [polygon[:2] for polygon in polygons]
    outline = [number for polygon in polygons for number in (*polygon, *polygon[:2])]
    for start in reversed(starts[:-1]):
        outline += start
    return outline
