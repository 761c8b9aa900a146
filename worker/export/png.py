"""Masks as PNG images: one black-and-white file per region.

    masks.jsonl      one line per region, and per phrase without a target: `file` (None without a target),
                     `phrase`, `label`, `labels`, `region`, `shape`, `score`, `image`, `split`, `coco_url`,
                     `label_studio_task`, `label_studio_annotation` and `completed_by`
    metadata.jsonl   one line per mask, for the imagefolder builder of Hugging Face's datasets: the mask is
                     `image`; if the pictures are below the folder, the picture is `picture`
    label-maps/      on request, one image per picture: pixels are numbers of labels, 0 is background. Where
                     regions overlap, the smaller one is on top
    label-map.json   number -> label

With splits, each has a folder with its masks, its label maps and its own `metadata.jsonl`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np
from PIL import Image

from backend.errors import ExportError
from worker.export.coco import ESCAPED
from worker.export.reader import LabelledImage, ProjectReader, user_id
from worker.export.regions import ExportContent, LabelledRegion

Json = dict[str, Any]

INDEX = "masks.jsonl"
METADATA = "metadata.jsonl"
LABEL_MAPS = "label-maps"
LABEL_NAMES = "label-map.json"
NAME_CHARACTERS = 80
"""Of a region's ID in a file name; file systems allow 255 bytes in all. The index has the whole ID."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


def staging_folder(folder: Path) -> Path:
    """Creates the folder in which a new folder is written, beside it.

    Raises:
        ExportError: the folder exists and is not empty.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ExportError(f"{folder} already exists: choose another folder, or remove it")
    staging = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
    staging.mkdir(parents=True)
    return staging


def commit(staging: Path, folder: Path) -> None:
    """Gives a complete folder its name."""
    if folder.exists():
        folder.rmdir()
    os.replace(staging, folder)


class PngWriter:
    """Writes a folder of masks.

    Args:
        folder: Must not exist or be empty; it is created atomically.
        reader: Source of the labels; needed for label maps.
        splits: Folders of the splits; none if there is no split.
        label_maps: Whether to write label maps.
        pictures: Folder of the pictures, relative to `folder`; None if they are elsewhere.

    Raises:
        ExportError: it exists and is not empty.
    """

    def __init__(
        self,
        folder: Path,
        reader: ProjectReader | None = None,
        splits: tuple[str, ...] = (),
        label_maps: bool = False,
        pictures: Path | None = None,
    ) -> None:
        self._folder = folder
        self._reader = reader
        self._splits = splits
        self._label_maps = label_maps
        self._pictures = pictures
        self.staging = staging_folder(folder)
        self._index = (self.staging / INDEX).open("w", encoding="utf-8", errors=ESCAPED)
        self._metadata: dict[str, IO[str]] = {}
        for name in splits or ("",):
            (self.staging / name).mkdir(exist_ok=True)
            self._metadata[name] = (self.staging / name / METADATA).open(
                "w", encoding="utf-8", errors=ESCAPED
            )

    def add(self, image: LabelledImage) -> None:
        split = image.split if self._splits else ""
        for entry, content in image.annotations:
            for number, region in enumerate(content.regions):
                region_name = _UNSAFE.sub("_", region.region_id[:NAME_CHARACTERS])
                name = f"task-{image.task}-annotation-{_id_of(entry)}-{number}-{region_name}.png"
                file = self.staging / split / name
                Image.fromarray(region.mask).save(file, optimize=False)
                about: Json = {"phrase": region.phrase, "label": next(iter(region.labels), None)}
                about |= {"labels": list(region.labels), "region": region.region_id, "shape": region.shape}
                file_name = f"{split}/{name}" if split else name
                self._note(image, entry, {"file": file_name, **about, "score": region.score})
                self._describe(image, entry, region, name, split)
            for phrase in content.no_target_phrases:
                nothing: Json = {"file": None, "phrase": phrase, "label": None, "labels": [], "region": None}
                self._note(image, entry, {**nothing, "shape": None, "score": None})
            if self._label_maps:
                self._draw(image, entry, content, split)

    def close(self) -> None:
        self._close_files()
        if self._label_maps and self._reader is not None:
            names = {0: "background", **dict(enumerate(self._reader.categories.names, 1))}
            text = json.dumps(names, ensure_ascii=False, indent=1)
            (self.staging / LABEL_NAMES).write_text(text, encoding="utf-8", errors=ESCAPED)
        commit(self.staging, self._folder)

    def discard(self) -> None:
        self._close_files()
        shutil.rmtree(self.staging, ignore_errors=True)

    def _close_files(self) -> None:
        for file in (self._index, *self._metadata.values()):
            file.close()

    def _note(self, image: LabelledImage, entry: Mapping[str, Any], about: dict[str, Any]) -> None:
        line = {
            **about,
            "image": image.file_name,
            "split": image.split,
            "coco_url": image.url,
            "label_studio_task": image.task,
            "label_studio_annotation": entry["id"],
            "completed_by": user_id(entry.get("completed_by")),
        }
        self._index.write(json.dumps(line, ensure_ascii=False) + "\n")

    def _describe(
        self, image: LabelledImage, entry: Mapping[str, Any], region: LabelledRegion, name: str, split: str
    ) -> None:
        """Every line has the same fields and no null: the types of all splits must agree."""
        line: dict[str, Any] = {
            "file_name": name,
            "phrase": region.phrase or "",
            "labels": list(region.labels) or [""],
            "region": region.region_id,
            "picture_name": image.file_name,
            "label_studio_task": image.task,
            "label_studio_annotation": entry["id"],
        }
        if self._pictures is not None:
            up = "../" if split else ""
            line["picture_file_name"] = f"{up}{(self._pictures / image.file_name).as_posix()}"
        self._metadata[split].write(json.dumps(line, ensure_ascii=False) + "\n")

    def _draw(
        self, image: LabelledImage, entry: Mapping[str, Any], content: ExportContent, split: str
    ) -> None:
        """One label map per annotation: those of several annotators are told apart by the annotation's ID."""
        assert self._reader is not None
        several = len(image.annotations) > 1
        stem = image.file_name.removesuffix(Path(image.file_name).suffix)
        name = f"{stem}-annotation-{_id_of(entry)}.png" if several else f"{stem}.png"
        numbers = np.zeros(image.hw, dtype=np.uint16)
        for region in sorted(content.regions, key=lambda region: -int(region.mask.sum())):
            label = next(iter(region.labels), None)
            numbers[region.mask] = self._reader.categories.index_of(label) + 1
        path = self.staging / split / LABEL_MAPS / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if int(numbers.max()) > 255:
            Image.fromarray(numbers).save(path)
            return
        palette_image = Image.fromarray(numbers.astype(np.uint8))
        palette_image.putpalette(_palette())
        palette_image.save(path)


def _id_of(entry: Mapping[str, Any]) -> str:
    """An annotation's ID as part of a file name."""
    return _UNSAFE.sub("_", str(entry["id"])[:NAME_CHARACTERS])


def _palette() -> list[int]:
    """256 RGB colours; that of a number is far from those of its neighbours. Background is black."""
    return [0, 0, 0] + [
        channel
        for number in range(1, 256)
        for channel in (number * 67 % 224 + 32, number * 149 % 224 + 32, number * 211 % 224 + 32)
    ]
