"""Labels out of Label Studio as COCO: exact masks, one annotation per region, each with its phrase.

Format: https://cocodataset.org/#format-data . Segmentations are compressed RLE, so that holes and separate
parts stay in one annotation and every pixel is the saved one. Beyond COCO's own fields:

    annotations[]: `phrase` (or None), `region`, `label_studio_annotation`, `completed_by`
    images[]: `label_studio_task`, `coco_url` (where Label Studio shows it)
    referring_expressions[]: every phrase with the ids of the annotations it refers to; none: nothing fits
    no_target[]: those phrases again that nothing in the image fits
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urljoin, urlsplit

from backend.errors import BackendError, LabelStudioNotFound
from backend.labelstudio.annotations import AnnotationContent, Region, read_annotation
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from sspsam.files import replace_text
from sspsam.masks import mask_to_box_xyxy, mask_to_coco_rle

Json = dict[str, Any]

NO_LABEL = "object"
"""Category of masks without a label."""

ImageSize = Callable[[object], tuple[int, int]]
"""What a task says about where its image is, to the (H, W) of that; for tasks without a mask to tell it."""


@dataclass(frozen=True)
class Export:
    """What came out, and what did not."""

    coco: Json
    problems: tuple[str, ...]
    """What could not be read, in words; nothing else is missing."""


@dataclass
class CocoWriter:
    """Collects tasks and their annotations into one COCO dict."""

    project: Mapping[str, Any]
    config: LabelingConfig
    url: str
    """Of Label Studio, for relative image addresses."""
    image_size: ImageSize
    problems: list[str] = field(default_factory=list)
    _images: list[Json] = field(init=False, default_factory=list)
    _annotations: list[Json] = field(init=False, default_factory=list)
    _expressions: list[Json] = field(init=False, default_factory=list)
    _categories: dict[str, int] = field(init=False, default_factory=dict)
    _file_names: set[str] = field(init=False, default_factory=set)

    def add_task(self, task: Mapping[str, Any]) -> None:
        """Adds a task with its submitted annotations; skipped ones are left out."""
        submitted = [entry for entry in task.get("annotations") or [] if not entry.get("was_cancelled")]
        contents = [(entry, read_annotation(entry, self.config)) for entry in submitted]
        for entry, content in contents:
            self.problems += [f"task {task['id']}, annotation {entry['id']}: {it}" for it in content.problems]
        if contents:
            self._add_image(task, [content for _, content in contents])
        for entry, content in contents:
            self._add_annotation(task, entry, content)

    def result(self) -> Json:
        """The COCO dict of all that was added."""
        categories = [{"id": number, "name": name} for name, number in self._categories.items()]
        nothing = [entry for entry in self._expressions if not entry["annotation_ids"]]
        return {
            "info": {
                "description": f"{self.project.get('title', '')} (Label Studio project {self.project['id']})",
                "url": f"{self.url}/projects/{self.project['id']}",
                "date_created": datetime.now(UTC).isoformat(timespec="seconds"),
            },
            "licenses": [],
            "categories": [{**category, "supercategory": ""} for category in categories],
            "images": self._images,
            "annotations": self._annotations,
            "referring_expressions": self._expressions,
            "no_target": [{key: entry[key] for key in ("id", "image_id", "phrase")} for entry in nothing],
        }

    def _add_image(self, task: Mapping[str, Any], contents: Iterable[AnnotationContent]) -> None:
        masks = [region.mask for content in contents for region in content.regions]
        height, width = masks[0].shape if masks else self._size_of(task)
        url = urljoin(f"{self.url}/", str(self._image_url(task)))
        self._images.append(
            {
                "id": task["id"],
                "file_name": self._file_name(task["id"], url),
                "width": width,
                "height": height,
                "coco_url": url,
                "label_studio_task": task["id"],
            }
        )

    def _size_of(self, task: Mapping[str, Any]) -> tuple[int | None, int | None]:
        try:
            return self.image_size(self._image_url(task))
        except BackendError as error:
            self.problems.append(f"task {task['id']}: the size of its image is not known: {error}")
            return None, None

    def _image_url(self, task: Mapping[str, Any]) -> Any:
        return (task.get("data") or {}).get(self.config.image.value if self.config.image else "", "")

    def _file_name(self, task_id: int, url: str) -> str:
        """The last part of the address; of two that are the same, the second gets the task's id in front."""
        name = unquote(urlsplit(url).path).rsplit("/", 1)[-1] or f"task-{task_id}"
        if name in self._file_names:
            name = f"{task_id}-{name}"
        self._file_names.add(name)
        return name

    def _add_annotation(
        self, task: Mapping[str, Any], entry: Mapping[str, Any], content: AnnotationContent
    ) -> None:
        by_phrase: dict[str, list[int]] = {}
        for region in content.regions:
            number = self._add_region(task, entry, region)
            if region.phrase:
                by_phrase.setdefault(region.phrase, []).append(number)
        by_phrase |= {phrase: [] for phrase in content.no_target_phrases}
        for phrase, numbers in by_phrase.items():
            self._expressions.append(
                {
                    "id": len(self._expressions) + 1,
                    "image_id": task["id"],
                    "phrase": phrase,
                    "annotation_ids": numbers,
                    "label_studio_annotation": entry["id"],
                }
            )

    def _add_region(self, task: Mapping[str, Any], entry: Mapping[str, Any], region: Region) -> int:
        x0, y0, x1, y1 = mask_to_box_xyxy(region.mask)
        number = len(self._annotations) + 1
        self._annotations.append(
            {
                "id": number,
                "image_id": task["id"],
                "category_id": self._categories.setdefault(
                    region.label or NO_LABEL, len(self._categories) + 1
                ),
                "segmentation": mask_to_coco_rle(region.mask),
                "area": int(region.mask.sum()),
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "iscrowd": 0,
                "phrase": region.phrase,
                "region": region.region_id,
                "label_studio_annotation": entry["id"],
                "completed_by": _user_id(entry.get("completed_by")),
            }
        )
        return number


def export_coco(client: LabelStudioClient, project_id: int, image_size: ImageSize) -> Export:
    """Reads all submitted annotations of a project.

    Args:
        client: To Label Studio.
        project_id: Its number, as in the address of the project's page.
        image_size: Asked for images on which nothing was found, whose size no mask tells.

    Raises:
        LabelStudioUnavailable, LabelStudioUnauthorized, LabelStudioError: nothing could be read.
        LabelStudioNotFound: there is no such project.
        LabelingConfigError: the project has no brush tag.
    """
    try:
        project = client.project(project_id)
    except LabelStudioNotFound as error:
        raise LabelStudioNotFound(f"Label Studio at {client.url} has no project {project_id}") from error
    config = LabelingConfig.parse(project["label_config"])
    config.require("mask", "image")
    writer = CocoWriter(project, config, client.url, image_size)
    for task in client.export(project_id):
        writer.add_task(task)
    return Export(writer.result(), tuple(writer.problems))


def write_export(path: Path, export: Export) -> None:
    """Writes the COCO file, whole or not at all.

    Raises:
        OSError: it cannot be written.
    """
    replace_text(path, json.dumps(export.coco, ensure_ascii=False))


def _user_id(completed_by: Any) -> int | None:
    """Label Studio writes the id, or in some places a user with an id."""
    value = completed_by.get("id") if isinstance(completed_by, Mapping) else completed_by
    return value if isinstance(value, int) else None
