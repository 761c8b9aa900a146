"""Saved annotations -> records, and the records of a project on disk.

Label Studio is the source of truth. The records, one JSON Lines file per annotation under
`<MODEL_DIR>/records/<project>/`, are a cache that can be deleted and collected again. A file is replaced
atomically, so an annotation seen twice or in another order leaves the same records.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from backend.labelstudio.annotations import AnnotationContent, Region
from backend.labelstudio.prompt_text import phrase_key
from backend.labelstudio.regions.shapes import Box
from finetune.data.records import RecordFormatError, RecordObject, RefRecord, read_records, write_records
from finetune.metrics import BOX_HIT, box_iou
from sspsam import mask_to_coco_rle
from sspsam.images.masks import mask_to_box_xyxy, merge_coco_rles

logger = logging.getLogger(__name__)

DAMAGED = ".damaged"
"""Suffix of an annotation's file that could not be read."""


@dataclass(frozen=True)
class ServedMask:
    """The mask that the model proposed under a region id."""

    rle: Mapping[str, Any]
    """COCO RLE."""
    version: str
    served_at: datetime | None = None
    """None if unknown."""
    phrase: str = ""
    answer: Mapping[str, Any] | None = None
    """COCO RLE of the whole answer, if the mask is one object of several."""


@dataclass(frozen=True)
class ImageFacts:
    """The image of a task, as fetched."""

    sha256: str
    url: str
    hw: tuple[int, int]


@dataclass(frozen=True)
class AnnotationSource:
    """Origin of the records of one annotation."""

    project: int
    task: int
    annotation: int
    updated_at: str
    """ISO 8601."""
    image: ImageFacts

    def record(
        self,
        phrase: str,
        mask_rle: Mapping[str, Any] | None,
        region: str | None,
        label: str | None = None,
        is_box: bool = False,
    ) -> RefRecord:
        return RefRecord(
            image_sha256=self.image.sha256,
            image_url=self.image.url,
            image_hw=self.image.hw,
            phrase=phrase,
            mask_rle=mask_rle,
            project=self.project,
            task=self.task,
            annotation=self.annotation,
            region=region,
            updated_at=self.updated_at,
            label=label,
            is_box=is_box,
        )


class Collection:
    """The records of one project. The constructor opens no file."""

    def __init__(self, model_dir: Path, project: int) -> None:
        self.folder = records_folder(model_dir) / str(project)

    def records(self) -> list[RefRecord]:
        """Reads all records, ordered by annotation id."""
        return [record for number in self.annotations() for record in self.of_annotation(number)]

    def annotations(self) -> list[int]:
        """Ids of the collected annotations, including those without records."""
        return sorted(int(path.stem) for path in self.folder.glob("*.jsonl") if path.stem.isdecimal())

    def of_annotation(self, annotation: int) -> list[RefRecord]:
        """Reads the records of one annotation that are labels; empty if it was not collected."""
        return [record for record in self._read(annotation) if not record.is_unanswered]

    def unanswered(self) -> list[RefRecord]:
        """Reads the phrases for which a model found nothing, and no person drew or confirmed anything."""
        read = (record for number in self.annotations() for record in self._read(number))
        return [record for record in read if record.is_unanswered]

    def _read(self, annotation: int) -> list[RefRecord]:
        try:
            path = self._path(annotation)
            if not path.stat().st_size:
                raise RecordFormatError(f"{path}: it has lost its content")
            return read_records(path)
        except FileNotFoundError:
            return []
        except (RecordFormatError, OSError) as error:
            logger.error("unreadable records, to be collected again: %s", error)
            self._set_aside(annotation)
            return []

    def replace(self, annotation: int, records: Iterable[RefRecord]) -> None:
        """Replaces the records of an annotation."""
        write_records(self._path(annotation), records)
        self._path(annotation).with_suffix(DAMAGED).unlink(missing_ok=True)

    def damaged(self) -> list[int]:
        """Ids of the annotations whose records were found to be damaged and are not yet collected again."""
        return sorted(int(path.stem) for path in self.folder.glob(f"*{DAMAGED}") if path.stem.isdecimal())

    def _set_aside(self, annotation: int) -> None:
        """Renames a damaged file: a missing one is collected again."""
        path = self._path(annotation)
        try:
            path.replace(path.with_suffix(DAMAGED))
        except OSError as error:
            logger.error("%s stays: %s", path, error)

    def forget(self, annotations: Iterable[int]) -> int:
        """Removes the records of annotations; returns how many had been collected."""
        known = [path for path in map(self._path, annotations) if path.exists()]
        for path in known:
            path.unlink(missing_ok=True)
            path.with_suffix(DAMAGED).unlink(missing_ok=True)
        return len(known)

    def _path(self, annotation: int) -> Path:
        return self.folder / f"{int(annotation)}.jsonl"


def records_folder(model_dir: Path) -> Path:
    return model_dir / "records"


def collected_projects(model_dir: Path) -> list[int]:
    """Returns the ids of the projects with collected annotations."""
    return sorted(int(path.name) for path in records_folder(model_dir).glob("*") if path.name.isdecimal())


def make_records(
    content: AnnotationContent,
    source: AnnotationSource,
    served: Callable[[str], ServedMask | None],
    region_id_for: Callable[[str], str],
) -> list[RefRecord]:
    """Converts the content of an annotation into records: one per phrase, the unanswered ones included.

    The label of a phrase is the union of its regions (GRES), and its proposal the whole answer: three
    regions, two accepted and one edited, are one corrected record. It is a record of boxes if one of the
    objects has a box only. Regions without a phrase or with a mask of
    another size than the image are left out. A mask whose proposal is unknown, because the log was lost,
    counts as added, never as accepted.

    Args:
        content: Content of the annotation.
        source: Origin of the annotation.
        served: Maps a region id to the model's proposal; None if there is none or it is unknown.
        region_id_for: Maps a phrase to the region id under which the model would propose its mask.
    """
    by_phrase: dict[str, list[Region]] = {}
    for region in (*content.regions, *content.boxes):
        if not region.phrase or region.hw != source.image.hw:
            logger.warning("region %s of annotation %d is left out", region.region_id, source.annotation)
            continue
        by_phrase.setdefault(phrase_key(region.phrase), []).append(region)
    records = [
        _record_of(regions, source, {region.region_id: served(region.region_id) for region in regions})
        for regions in map(_without_boxes_of_masks, by_phrase.values())
    ]
    for phrase in content.no_target_phrases:
        record, proposed = source.record(phrase, None, None), served(region_id_for(phrase))
        records.append(record if proposed is None else _with_served(record, proposed))
    unanswered = (source.record(phrase, None, None) for phrase in content.found_nothing)
    return [*records, *(replace(record, confirmed=False) for record in unanswered)]


def _without_boxes_of_masks(regions: Sequence[Region]) -> list[Region]:
    """The regions of a phrase without boxes around its masks: what they tell, the masks tell better."""
    if len({region.box_xyxy is None for region in regions}) == 1:
        return list(regions)
    around = [mask_to_box_xyxy(region.mask) for region in regions if region.box_xyxy is None]
    return [region for region in regions if not _is_around_one(region.box_xyxy, around)]


def _is_around_one(box: Box | None, masks: Sequence[Box]) -> bool:
    return box is not None and max(box_iou(box, mask) for mask in masks) >= BOX_HIT


def _record_of(
    regions: Sequence[Region], source: AnnotationSource, proposals: Mapping[str, ServedMask | None]
) -> RefRecord:
    """The record of a phrase.

    Args:
        regions: The regions with the phrase, at least one.
        source: Origin of the annotation.
        proposals: Region id -> the model's proposal.
    """
    first = regions[0]
    assert first.phrase is not None
    rles, objects = [], []
    for region in regions:
        mask, proposed = region.mask, proposals[region.region_id]
        rles.append(mask_to_coco_rle(mask))
        served_rle = None if proposed is None else dict(proposed.rle)
        objects.append(RecordObject(region.region_id, mask_to_box_xyxy(mask), served_rle))
    is_box = any(region.box_xyxy is not None for region in regions)
    record = source.record(first.phrase, merge_coco_rles(rles), first.region_id, first.label, is_box)
    answer = _answer_to(first.phrase, [proposed for proposed in proposals.values() if proposed is not None])
    if answer is None:
        return replace(record, objects=tuple(objects) if len(objects) > 1 else ())
    is_of_several = len(objects) > 1 or answer.rle != objects[0].served_rle
    return replace(_with_served(record, answer), objects=tuple(objects) if is_of_several else ())


def _answer_to(phrase: str, proposals: Sequence[ServedMask]) -> ServedMask | None:
    """The whole answer that the proposals of a phrase's regions were part of; None without a proposal.

    A region that an annotator gave the phrase afterwards was part of another answer.
    """
    own = [proposed for proposed in proposals if phrase_key(proposed.phrase) in ("", phrase_key(phrase))]
    whole = next((proposed for proposed in own if proposed.answer is not None), None)
    if whole is not None and whole.answer is not None:
        return replace(whole, rle=whole.answer)
    parts = own or proposals
    if not parts:
        return None
    same_size = [part.rle for part in parts if list(part.rle["size"]) == list(parts[0].rle["size"])]
    return replace(parts[0], rle=merge_coco_rles(same_size)) if len(parts) > 1 else parts[0]


def _with_served(record: RefRecord, served: ServedMask) -> RefRecord:
    rle = served.answer if record.mask_rle is None and served.answer else served.rle
    return replace(record, served_rle=dict(rle), served_version=served.version)


def remembered(earlier: Iterable[RefRecord], region_id_for: Callable[[str], str]) -> dict[str, ServedMask]:
    """Served masks from earlier records of an annotation, for use after their log has expired.

    Args:
        earlier: The records.
        region_id_for: As for `make_records`: confirmed absences have no region.
    """
    found: dict[str, ServedMask] = {}
    for record in earlier:
        if record.served_rle is None:
            continue
        version = record.served_version or ""
        for entry in record.objects:
            if entry.served_rle is not None:
                found[entry.region] = ServedMask(
                    entry.served_rle, version, phrase=record.phrase, answer=record.served_rle
                )
        if not record.objects:
            region_id = record.region or region_id_for(record.phrase)
            found[region_id] = ServedMask(record.served_rle, version, phrase=record.phrase)
    return found


def sample_key(record: RefRecord) -> str:
    """Short digest of a record's training content: 16 hex digits."""
    counts = None if record.mask_rle is None else record.mask_rle["counts"]
    content = json.dumps([record.image_sha256, record.phrase, counts, *(["box"] if record.is_box else [])])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
