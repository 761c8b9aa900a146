"""RefRecord: a referring expression on an image, with the mask accepted by an annotator. JSON Lines on disk.

Records are derived from saved annotations, and can be rebuilt from them. They contain the training sample,
its origin, and the model's proposal, to distinguish corrections from masks accepted unchanged.

Each line has a digest of its content, its place and the number of lines: a flipped bit would otherwise be
another label, and a lost line no label. A file without records has an empty line, so a file of no bytes is
damaged. Files of other programs and of earlier releases have no digests.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_args

from sspsam.files import replace_text

Kind = Literal["corrected", "accepted", "added", "absent"]
KINDS: tuple[Kind, ...] = get_args(Kind)
DIGEST = "digest"
"""Field of a line's digest."""
_DIGEST_DIGITS = 16


class RecordFormatError(ValueError):
    """A line is not a record; the message names file, line and reason."""


@dataclass(frozen=True)
class RecordObject:
    """One of several objects that a phrase refers to."""

    region: str
    """ID of its region."""
    box_xyxy: tuple[float, float, float, float]
    """Px of the original frame, right and bottom exclusive."""
    served_rle: Mapping[str, Any] | None = None
    """COCO RLE proposed by the model for this region; None if drawn by hand."""


@dataclass(frozen=True)
class RefRecord:
    """One phrase on one image, with the mask of its referent: the union of its objects."""

    image_sha256: str
    """sha256 of the image file's bytes: its name in the folder of images."""
    image_url: str
    image_hw: tuple[int, int]
    """(H, W) of the original frame, EXIF orientation applied."""
    phrase: str
    mask_rle: Mapping[str, Any] | None
    """COCO RLE in the original frame; None if the phrase has no target."""
    project: int
    task: int
    annotation: int
    region: str | None
    """ID of the mask's region, of one of several; None without a mask."""
    updated_at: str
    """When the annotation was last saved, ISO 8601."""
    served_rle: Mapping[str, Any] | None = None
    """COCO RLE proposed by the model for the phrase, all objects together; None if drawn by hand."""
    served_version: str | None = None
    """Model version of the proposal."""
    label: str | None = None
    """The brush's label, if the form has labels; not used in training."""
    confirmed: bool = True
    """Whether a person confirmed an absent phrase; see `is_unanswered`. Files from before this was asked lack
    the field: what they state as absent is only what a model did not find."""
    is_box: bool = False
    """Whether the annotator gave a box: both masks are then the pixels in a box."""
    objects: tuple[RecordObject, ...] = ()
    """The objects, if they have a region each, or had one when they were proposed; empty for one region."""

    def __post_init__(self) -> None:
        object.__setattr__(self, "objects", tuple(_object(entry) for entry in self.objects))
        object.__setattr__(self, "image_hw", (int(self.image_hw[0]), int(self.image_hw[1])))
        if not self.phrase.strip():
            raise RecordFormatError("a record needs a phrase")
        for rle in (self.mask_rle, self.served_rle):
            if rle is not None and not {"size", "counts"} <= set(rle):
                raise RecordFormatError(f"not a COCO RLE: {rle!r:.80}")
        if self.mask_rle is not None and tuple(self.mask_rle["size"]) != self.image_hw:
            raise RecordFormatError(f"the mask is {self.mask_rle['size']}, the image {list(self.image_hw)}")

    @property
    def sample_id(self) -> str:
        """Constant over all saves of the annotation; unique within a collection."""
        place = self.region or "none-" + hashlib.sha256(self.phrase.encode()).hexdigest()[:12]
        return f"{self.project}/{self.task}/{self.annotation}/{place}"

    @property
    def is_unanswered(self) -> bool:
        """Whether it only states that a model found nothing. Such a record is no label."""
        return self.mask_rle is None and not self.confirmed

    @property
    def kind(self) -> Kind:
        """What the annotator did: changed the model's mask, accepted it, added a mask, or confirmed that the
        phrase is absent.
        """
        if self.mask_rle is None:
            return "absent"
        if self.served_rle is None:
            return "added"
        return "corrected" if self.corrected else "accepted"

    @property
    def corrected(self) -> bool:
        """Whether the annotator's answer differs from the model's.

        A mask that was edited or drawn by hand is a correction. A phrase without a target is one only if the
        model had proposed a mask for it.
        """
        if self.mask_rle is None or self.served_rle is None:
            return (self.mask_rle is None) != (self.served_rle is None)
        return (list(self.mask_rle["size"]), self.mask_rle["counts"]) != (
            list(self.served_rle["size"]),
            self.served_rle["counts"],
        )

    @property
    def has_corrected_mask(self) -> bool:
        """Whether the annotator changed the model's mask or added one: these start fine-tunes."""
        return self.kind in ("corrected", "added")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> RefRecord:
        """Builds a record; unknown fields are ignored.

        Raises:
            RecordFormatError: a field is missing, or a value is invalid.
        """
        known = {entry.name for entry in fields(cls)}
        try:
            present = {name: value for name, value in values.items() if name in known}
            return cls(**{"confirmed": False, **present})
        except (TypeError, AttributeError, IndexError) as error:
            raise RecordFormatError(str(error)) from error


def _object(entry: RecordObject | Mapping[str, Any]) -> RecordObject:
    """An object, or one as `to_dict` writes it.

    Raises:
        RecordFormatError: it is not one.
    """
    if isinstance(entry, RecordObject):
        return entry
    try:
        x0, y0, x1, y1 = (float(side) for side in entry["box_xyxy"])
        served = entry.get("served_rle")
        return RecordObject(str(entry["region"]), (x0, y0, x1, y1), served)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise RecordFormatError(f"not an object of a record: {entry!r:.80}") from error


def read_records(path: Path) -> list[RefRecord]:
    """Reads a JSON Lines file.

    Raises:
        RecordFormatError: a line is not a record, or differs from what was written.
        FileNotFoundError: no such file.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecordFormatError(f"{path}: {error}") from error
    lines = [(number, line) for number, line in enumerate(text.split("\n"), start=1) if line.strip()]
    records, digests = [], []
    for place, (number, line) in enumerate(lines):
        try:
            values = json.loads(line)
            found = values.pop(DIGEST, None)
            digests.append(found == _line_digest(values, place, len(lines)) if found is not None else None)
            records.append(RefRecord.from_dict(values))
        except (RecordFormatError, ValueError, TypeError, AttributeError, RecursionError) as error:
            raise RecordFormatError(f"{path}, line {number}: {error}") from error
    if any(digest is not None for digest in digests) and not all(digests):
        number = lines[next(place for place, digest in enumerate(digests) if not digest)][0]
        raise RecordFormatError(f"{path}, line {number}: it differs from what was written (digest)")
    return records


def write_records(path: Path, records: Iterable[RefRecord]) -> None:
    """Writes a JSON Lines file atomically."""
    path.parent.mkdir(parents=True, exist_ok=True)
    values = [record.to_dict() for record in records]
    for place, record in enumerate(values):
        record[DIGEST] = _line_digest(record, place, len(values))
    replace_text(path, "\n".join(json.dumps(record, ensure_ascii=False) for record in values) + "\n")


def _line_digest(values: Mapping[str, Any], place: int, count: int) -> str:
    """Digest of a line: its place among the lines, and its content without the digest."""
    content = json.dumps([place, count, values], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:_DIGEST_DIGITS]


def records_digest(records: Sequence[RefRecord]) -> str:
    """Digest of the training content of records: independent of order, equal for equal images, phrases and
    masks.

    Returns:
        Hex sha256.
    """
    digest = hashlib.sha256()
    for line in sorted(_content(record) for record in records):
        digest.update(line.encode())
    return digest.hexdigest()


def _content(record: RefRecord) -> str:
    counts = None if record.mask_rle is None else record.mask_rle["counts"]
    kind = ["box"] if record.is_box else []
    return json.dumps([record.sample_id, record.image_sha256, record.phrase, counts, *kind]) + "\n"
