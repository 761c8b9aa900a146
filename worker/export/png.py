"""Masks as PNG images: one black-and-white file per region, and one line per region in `masks.jsonl`.

A line holds `file` (None for a phrase without a target), `phrase`, `label`, `region`, `score`, `image`,
`coco_url`, `label_studio_task`, `label_studio_annotation` and `completed_by`.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from backend.errors import ExportError
from worker.export.reader import LabelledImage, user_id

INDEX = "masks.jsonl"
NAME_CHARACTERS = 80
"""Of a region's ID in a file name; file systems allow 255 bytes in all. The index has the whole ID."""
_UNSAFE = re.compile(r"[^A-Za-z0-9_-]")


class PngWriter:
    """Writes a folder of masks.

    Args:
        folder: Must not exist or be empty; it is created atomically.

    Raises:
        ExportError: it exists and is not empty.
    """

    def __init__(self, folder: Path) -> None:
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise ExportError(f"{folder} already exists: choose another folder, or remove it")
        self._folder = folder
        self._aside = folder.with_name(f".{folder.name}.{uuid.uuid4().hex}")
        self._aside.mkdir(parents=True)
        self._index = (self._aside / INDEX).open("w", encoding="utf-8")

    def add(self, image: LabelledImage) -> None:
        for entry, content in image.annotations:
            for number, region in enumerate(content.regions):
                region_name = _UNSAFE.sub("_", region.region_id[:NAME_CHARACTERS])
                name = f"task-{image.task}-annotation-{entry['id']}-{number}-{region_name}.png"
                Image.fromarray(region.mask).save(self._aside / name, optimize=False)
                about = {"phrase": region.phrase, "label": region.label, "region": region.region_id}
                self._note(image, entry, {"file": name, **about, "score": region.score})
            for phrase in content.no_target_phrases:
                nothing = {"file": None, "phrase": phrase, "label": None, "region": None, "score": None}
                self._note(image, entry, nothing)

    def close(self) -> None:
        self._index.close()
        if self._folder.exists():
            self._folder.rmdir()
        os.replace(self._aside, self._folder)

    def discard(self) -> None:
        self._index.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    def _note(self, image: LabelledImage, entry: Mapping[str, Any], about: dict[str, Any]) -> None:
        line = {
            **about,
            "image": image.file_name,
            "coco_url": image.url,
            "label_studio_task": image.task,
            "label_studio_annotation": entry["id"],
            "completed_by": user_id(entry.get("completed_by")),
        }
        self._index.write(json.dumps(line, ensure_ascii=False) + "\n")
