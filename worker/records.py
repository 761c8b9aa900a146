"""Saved annotations -> records, and the records of a project on disk.

Label Studio is the source of truth. What is kept here, one JSON Lines file per annotation under
`<MODEL_DIR>/records/<project>/`, is a cache that can be deleted and collected again. A file is replaced as a
whole, so that an annotation seen twice, or in another order, leaves the same records.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from pathlib import Path
from typing import Any

from backend.labelstudio.annotations import AnnotationContent, Region
from finetune.data.records import RecordFormatError, RefRecord, read_records, write_records
from sspsam import mask_to_coco_rle

logger = logging.getLogger(__name__)

UNSUBMITTED_WINDOW_S = 10.0
"""Text that was typed but not entered is sent to the model while the annotation is being saved: its answer
comes too late for the annotator. A mask served this close to the save says nothing about the phrase."""


@dataclass(frozen=True)
class ServedMask:
    """What the model had proposed under a region id."""

    rle: Mapping[str, Any]
    """COCO RLE."""
    version: str
    served_at: datetime | None = None
    """None when it is not known."""
    phrase: str = ""


@dataclass(frozen=True)
class ImageFacts:
    """The image of a task, as fetched."""

    sha256: str
    url: str
    hw: tuple[int, int]


@dataclass(frozen=True)
class AnnotationSource:
    """Where the records of one annotation come from."""

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
        )


class Collection:
    """The records of one project. Making one opens nothing."""

    def __init__(self, model_dir: Path, project: int) -> None:
        self.folder = records_folder(model_dir) / str(project)

    def records(self) -> list[RefRecord]:
        """Reads everything, by annotation id."""
        return [record for number in self.annotations() for record in self.of_annotation(number)]

    def annotations(self) -> list[int]:
        """Ids of the annotations that were collected, those without records included."""
        return sorted(int(path.stem) for path in self.folder.glob("*.jsonl") if path.stem.isdecimal())

    def of_annotation(self, annotation: int) -> list[RefRecord]:
        """Reads the records of one annotation; none if it was not collected."""
        try:
            return read_records(self._path(annotation))
        except FileNotFoundError:
            return []
        except RecordFormatError as error:
            logger.error("collected again at the next reconciliation: %s", error)
            return []

    def replace(self, annotation: int, records: Iterable[RefRecord]) -> None:
        """Puts the records of an annotation in the place of those it had."""
        write_records(self._path(annotation), records)

    def forget(self, annotations: Iterable[int]) -> int:
        """Removes the records of annotations; returns how many of these had been collected."""
        known = [path for path in map(self._path, annotations) if path.exists()]
        for path in known:
            path.unlink(missing_ok=True)
        return len(known)

    def _path(self, annotation: int) -> Path:
        return self.folder / f"{int(annotation)}.jsonl"


def records_folder(model_dir: Path) -> Path:
    return model_dir / "records"


def collected_projects(model_dir: Path) -> list[int]:
    """Returns the ids of the projects of which anything was collected."""
    return sorted(int(path.name) for path in records_folder(model_dir).glob("*") if path.name.isdecimal())


def make_records(
    content: AnnotationContent,
    source: AnnotationSource,
    served: Callable[[str], ServedMask | None],
    region_id_for: Callable[[str], str],
) -> list[RefRecord]:
    """Turns what an annotation says into records.

    Regions without a phrase, or whose mask is not of the image's size, teach nothing and are left out.

    Args:
        content: Of the annotation.
        source: Where it comes from.
        served: Region id to what the model had proposed for it, None if nothing (known).
        region_id_for: A phrase to the region id under which the model would propose its mask.
    """
    records = []
    for region in content.regions:
        if not region.phrase or region.mask.shape != source.image.hw:
            logger.warning("region %s of annotation %d is left out", region.region_id, source.annotation)
            continue
        records.append(_region_record(region, region.phrase, source, served, region_id_for))
    for phrase in content.no_target_phrases:
        record = _no_target_record(phrase, source, served(region_id_for(phrase)))
        if record is not None:
            records.append(record)
    return records


def _region_record(
    region: Region,
    phrase: str,
    source: AnnotationSource,
    served: Callable[[str], ServedMask | None],
    region_id_for: Callable[[str], str],
) -> RefRecord:
    """A mask under its phrase.

    An id of our making without anything known to have been served: the log is lost, and nothing tells whether
    the mask was corrected. It then counts as accepted.
    """
    rle = mask_to_coco_rle(region.mask)
    record = source.record(phrase, rle, region.region_id, region.label)
    proposed = served(region.region_id)
    if proposed is None and region.region_id == region_id_for(phrase):
        proposed = ServedMask(rle, "")
    return record if proposed is None else _with_served(record, proposed)


def _no_target_record(phrase: str, source: AnnotationSource, served: ServedMask | None) -> RefRecord | None:
    """A phrase left in the prompt box: nothing fits.

    If the model had proposed a mask well before the save, the annotator has thrown it away: a correction.
    If it did so around the save, the annotator never saw it, and the phrase means nothing either way: None.
    """
    record = source.record(phrase, None, None)
    if served is None:
        return record
    if served.served_at is None:
        return None
    before_s = (datetime.fromisoformat(source.updated_at) - served.served_at).total_seconds()
    if before_s < -UNSUBMITTED_WINDOW_S:
        return record
    return _with_served(record, served) if before_s > UNSUBMITTED_WINDOW_S else None


def _with_served(record: RefRecord, served: ServedMask) -> RefRecord:
    return replace(record, served_rle=dict(served.rle), served_version=served.version)


def remembered(earlier: Iterable[RefRecord]) -> dict[str, ServedMask]:
    """What earlier records of an annotation know of served masks, for when the log of these has expired."""
    return {
        record.region: ServedMask(record.served_rle, record.served_version or "", phrase=record.phrase)
        for record in earlier
        if record.region and record.served_rle is not None
    }


def sample_key(record: RefRecord) -> str:
    """Names what one record teaches, shortly: 16 hex digits."""
    counts = None if record.mask_rle is None else record.mask_rle["counts"]
    content = json.dumps([record.image_sha256, record.phrase, counts])
    return hashlib.sha256(content.encode()).hexdigest()[:16]
