"""COCO files and RefCOCO's layout. Written as a stream: at most one image is in memory.

Format: https://cocodataset.org/#format-data . One annotation for each region and label, with all its holes
and parts: as RLE, or as polygons that pycocotools fills to the same pixels. Beyond COCO's own fields:

    annotations[]: `phrase` (or None), `region`, `shape`, `label_studio_annotation`, `completed_by`; `score`
        if the model proposed the region. A region with several labels has an annotation for each, with the
        same `region`
    images[]: `label_studio_task`, `coco_url` (where Label Studio shows it), `exif_applied` (masks, width and
        height are of the image as displayed, with EXIF orientation applied)
    referring_expressions[]: every phrase with the ids of the annotations it refers to; no ids: no target
    no_target[]: the phrases confirmed to be absent from the image, repeated

RefCOCO's layout (https://github.com/lichengunc/refer) is a folder: `instances.json`, and in `refs(unc).p`
every phrase that refers to one region. It cannot express phrases with several regions or none; gRefCOCO's
`grefs(unc).json` (https://github.com/henghuiding/gRefCOCO), written beside it, can. Their readers take
`annotation["segmentation"][0]` for a polygon, so regions are polygons there.
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

from backend.labelstudio.prompt_text import phrase_key
from sspsam import mask_to_coco_rle
from sspsam.files import sync_folder
from sspsam.images.masks import BoolMask, mask_to_box_xyxy
from worker.export.reader import LabelledImage, ProjectReader, user_id
from worker.export.regions import LabelledRegion

Json = dict[str, Any]

ESCAPED = "backslashreplace"
"""How text files encode lone surrogates, which JSON has as escape sequences: as the same."""
NO_TARGET = -1
"""gRefCOCO's annotation id for a phrase without a target."""
SPLITS = {"test": "testA"}
"""RefCOCO's readers know no split `test`; `testA` is found as `test` as well."""
PICKLE_PROTOCOL = 2
"""As in the published files."""


class ListFile:
    """A list of JSON values in a temporary file, later copied into the final file."""

    def __init__(self, folder: Path, name: str) -> None:
        self.path = folder / name
        self.count = 0
        self._file = self.path.open("w", encoding="utf-8", errors=ESCAPED)

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
        self._aside.mkdir(parents=True)
        self._lists = {name: ListFile(self._aside, name) for name in self.LISTS}

    def add(self, image: LabelledImage) -> None:
        height, width = image.hw
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
            spellings: dict[str, str] = {}
            by_phrase: dict[str, list[Json]] = {}
            for region in content.regions:
                annotation = self._add_region(image, entry, region)
                if region.phrase:
                    # Phrases that differ only in case are one: RefCOCO has them in lower case.
                    phrase = spellings.setdefault(phrase_key(region.phrase), region.phrase)
                    by_phrase.setdefault(phrase, []).append(annotation)
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
        with whole.open("w", encoding="utf-8", errors=ESCAPED) as file:
            head = {"info": self._info(), "licenses": [], "categories": self._reader.categories.as_coco()}
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

    def _add_region(self, image: LabelledImage, entry: Mapping[str, Any], region: LabelledRegion) -> Json:
        """Adds an annotation for each label of a region; returns the first."""
        mask = region.mask
        x0, y0, x1, y1 = region.box_xyxy or mask_to_box_xyxy(mask)
        annotation = {
            "image_id": image.task,
            "segmentation": self._segmentation(region, mask),
            "area": int(mask.sum()),
            "bbox": [x0, y0, x1 - x0, y1 - y0],
            "iscrowd": 0,
            "phrase": region.phrase,
            "region": region.region_id,
            "shape": region.shape,
            "label_studio_annotation": entry["id"],
            "completed_by": user_id(entry.get("completed_by")),
        }
        if region.score is not None:
            annotation["score"] = region.score
        annotations = self._lists["annotations"]
        labelled = []
        for label in region.labels or (None,):
            ids = {"id": annotations.count + 1, "category_id": self._reader.categories.id_of(label)}
            labelled.append({**ids, **annotation})
            annotations.append(labelled[-1])
        return labelled[0]

    def _segmentation(self, region: LabelledRegion, mask: BoolMask) -> Any:
        if not self._polygons:
            return mask_to_coco_rle(mask)
        return region.polygons(mask)


class RefCocoWriter(CocoWriter):
    """Writes a folder in RefCOCO's layout.

    Args:
        folder: Created if missing; its three files are replaced.
        reader: Source of the labels.
        split: Split of every phrase; None for that of its image.
    """

    def __init__(self, folder: Path, reader: ProjectReader, split: str | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        super().__init__(folder / "instances.json", reader, polygons=True)
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
            "split": self._split or SPLITS.get(image.split, image.split),
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
        with whole.open("w", encoding="utf-8", errors=ESCAPED) as file:
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
