"""COCO files and RefCOCO's layout. Written as a stream: at most one image is in memory.

Format: https://cocodataset.org/#format-data . One annotation for each region, with all its holes and parts:
as RLE, or as polygons that pycocotools fills to the same pixels. Beyond COCO's own fields:

    annotations[]: `phrase` (or None), `region`, `score`, `label_studio_annotation`, `completed_by`
    images[]: `label_studio_task`, `coco_url` (where Label Studio shows it), `exif_applied` (masks, width and
        height are of the image as displayed, with EXIF orientation applied)
    referring_expressions[]: every phrase with the ids of the annotations it refers to; no ids: no target
    no_target[]: the phrases confirmed to be absent from the image, repeated

RefCOCO's layout (https://github.com/lichengunc/refer) is a folder: `instances.json`, and in `refs(unc).p`
every phrase that refers to one mask. It cannot express phrases with several masks or none; gRefCOCO's
`grefs(unc).json` (https://github.com/henghuiding/gRefCOCO), written beside it, can.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
import uuid
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

from backend.labelstudio.annotations import Region
from sspsam import mask_to_coco_rle
from sspsam.files import sync_folder
from sspsam.images.masks import mask_to_box_xyxy
from sspsam.images.polygons import mask_to_polygons
from worker.export.reader import LabelledImage, ProjectReader, user_id

Json = dict[str, Any]

NO_LABEL = "object"
"""Category of masks without a label."""
NO_TARGET = -1
"""gRefCOCO's annotation id for a phrase without a target."""
PICKLE_PROTOCOL = 2
"""As in the published files."""


class ListFile:
    """A list of JSON values in a temporary file, later copied into the final file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        self.count = 0
        self._file = self.path.open("w", encoding="utf-8")

    def append(self, value: Json) -> None:
        self._file.write((",\n" if self.count else "") + json.dumps(value, ensure_ascii=False))
        self.count += 1

    def copy_to(self, target: IO[str]) -> None:
        self._file.close()
        target.write("[")
        with self.path.open(encoding="utf-8") as source:
            shutil.copyfileobj(source, target)
        target.write("]")

    def close(self) -> None:
        self._file.close()


class CocoWriter:
    """Writes one COCO file.

    Args:
        path: The file; replaced atomically once everything is written.
        reader: Source of the labels.
        polygons: Write polygons instead of RLE.
    """

    LISTS = ("images", "annotations", "referring_expressions", "no_target")

    def __init__(self, path: Path, reader: ProjectReader, polygons: bool = False) -> None:
        self._path = path
        self._reader = reader
        self._polygons = polygons
        self._aside = path.with_name(f".{path.name}.{uuid.uuid4().hex}")
        self._aside.mkdir()
        self._lists = {name: ListFile(self._aside, name) for name in self.LISTS}
        self.categories: dict[str, int] = {}

    def add(self, image: LabelledImage) -> None:
        height, width = image.hw or (None, None)
        self._lists["images"].append(
            {
                "id": image.task,
                "file_name": image.file_name,
                "width": width,
                "height": height,
                "exif_applied": True,
                "coco_url": image.url,
                "label_studio_task": image.task,
            }
        )
        for entry, content in image.annotations:
            by_phrase: dict[str, list[Json]] = {}
            for region in content.regions:
                annotation = self._add_region(image, entry, region)
                if region.phrase:
                    by_phrase.setdefault(region.phrase, []).append(annotation)
            by_phrase |= {phrase: [] for phrase in content.no_target_phrases}
            for phrase, named in by_phrase.items():
                self.add_expression(image, entry, phrase, named)

    def add_expression(
        self, image: LabelledImage, entry: Mapping[str, Any], phrase: str, named: list[Json]
    ) -> int:
        """Adds a phrase with the annotations it refers to; returns its id."""
        expressions = self._lists["referring_expressions"]
        number = expressions.count + 1
        expressions.append(
            {
                "id": number,
                "image_id": image.task,
                "phrase": phrase,
                "annotation_ids": [annotation["id"] for annotation in named],
                "label_studio_annotation": entry["id"],
            }
        )
        if not named:
            self._lists["no_target"].append({"id": number, "image_id": image.task, "phrase": phrase})
        return number

    def close(self) -> None:
        whole = self._aside / "whole"
        with whole.open("w", encoding="utf-8") as file:
            head = {"info": self._info(), "licenses": [], "categories": self._category_list()}
            file.write(json.dumps(head, ensure_ascii=False)[:-1])
            for name, values in self._lists.items():
                file.write(f', "{name}": ')
                values.copy_to(file)
            file.write("}")
            file.flush()
            os.fsync(file.fileno())
        os.replace(whole, self._path)
        self.discard()
        sync_folder(self._path.parent)

    def discard(self) -> None:
        for values in self._lists.values():
            values.close()
        shutil.rmtree(self._aside, ignore_errors=True)

    def _info(self) -> Json:
        project = self._reader.project
        return {
            "description": f"{project.get('title', '')} (Label Studio project {project['id']})",
            "url": f"{self._reader.url}/projects/{project['id']}",
            "date_created": datetime.now(UTC).isoformat(timespec="seconds"),
        }

    def _category_list(self) -> list[Json]:
        return [{"id": number, "name": name, "supercategory": ""} for name, number in self.categories.items()]

    def _add_region(self, image: LabelledImage, entry: Mapping[str, Any], region: Region) -> Json:
        mask = region.mask
        x0, y0, x1, y1 = mask_to_box_xyxy(mask)
        annotations = self._lists["annotations"]
        category = self.categories.setdefault(region.label or NO_LABEL, len(self.categories) + 1)
        segmentation = mask_to_polygons(mask) if self._polygons else mask_to_coco_rle(mask)
        annotation = {
            "id": annotations.count + 1,
            "image_id": image.task,
            "category_id": category,
            "segmentation": segmentation,
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "phrase": region.phrase,
            "region": region.region_id,
            "score": region.score,
            "label_studio_annotation": entry["id"],
            "completed_by": user_id(entry.get("completed_by")),
        }
        annotations.append(annotation)
        return annotation


class RefCocoWriter(CocoWriter):
    """Writes a folder in RefCOCO's layout.

    Args:
        folder: Created if missing; its three files are replaced.
        reader: Source of the labels.
        split: Split of every phrase.
    """

    def __init__(self, folder: Path, reader: ProjectReader, split: str = "train") -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "instances.json", reader)
        self._split = split
        self._grefs = ListFile(self._aside, "grefs")
        self._refs = PickledList(self._aside / "refs")

    def add_expression(
        self, image: LabelledImage, entry: Mapping[str, Any], phrase: str, named: list[Json]
    ) -> int:
        number = super().add_expression(image, entry, phrase, named)
        sentence = {
            "tokens": phrase.lower().split(),
            "raw": phrase,
            "sent": phrase.lower(),
            "sent_id": number,
        }
        ref: Json = {
            "ref_id": number,
            "image_id": image.task,
            "split": self._split,
            "sentences": [sentence],
            "sent_ids": [number],
            "file_name": image.file_name,
        }
        ids = [annotation["id"] for annotation in named]
        categories = [annotation["category_id"] for annotation in named]
        self._grefs.append(
            {**ref, "ann_id": ids or [NO_TARGET], "category_id": categories or [NO_TARGET],
             "no_target": not ids}
        )  # fmt: skip
        if len(ids) == 1:
            self._refs.append({**ref, "ann_id": ids[0], "category_id": categories[0]})
        return number

    def close(self) -> None:
        whole = self._aside / "grefs.json"
        with whole.open("w", encoding="utf-8") as file:
            self._grefs.copy_to(file)
        self._refs.close()
        os.replace(whole, self._path.with_name("grefs(unc).json"))
        os.replace(self._refs.path, self._path.with_name("refs(unc).p"))
        super().close()

    def discard(self) -> None:
        self._grefs.close()
        self._refs.close()
        super().discard()


class PickledList:
    """A pickle of a list of plain values, written value by value.

    `pickle.dump` of the whole list would hold it and its memo in memory, 90 MB for 100,000 references. So
    each value is pickled by itself, without the two bytes of protocol 2 before it and the STOP after it, and
    an APPEND puts it on the list.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._file = path.open("wb")
        self._file.write(pickle.PROTO + bytes([PICKLE_PROTOCOL]) + pickle.EMPTY_LIST)

    def append(self, value: Json) -> None:
        self._file.write(pickle.dumps(value, PICKLE_PROTOCOL)[2:-1] + pickle.APPEND)

    def close(self) -> None:
        if not self._file.closed:
            self._file.write(pickle.STOP)
            self._file.close()
