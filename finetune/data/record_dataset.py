"""Labels made by annotators, as a data set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt

from finetune.data.phrase_types import family_of
from finetune.data.records import RefRecord
from finetune.data.sample import DatasetFileError, Sample
from sspsam import coco_rle_to_mask
from sspsam.images.image_io import PictureError, read_picture
from sspsam.images.masks import MaskFormatError
from sspsam.reading.requests import bare_phrase


class RecordDataset:
    """Annotators' labels: records of phrases and masks, with the image files in a folder.

    Records are grouped by image, in the order of their first appearance. Phrases are without what serving
    leaves out: what is learned for "where is the koala?" is what "the koala" is asked as.
    """

    def __init__(self, records: Sequence[RefRecord], images: Path) -> None:
        """Takes records and the folder of image files, each named by the sha256 of its bytes."""
        first_seen = {record.image_sha256: at for at, record in reversed(list(enumerate(records)))}
        self.records = sorted(records, key=lambda record: first_seen[record.image_sha256])
        self.images = images
        self._last: tuple[str, npt.NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        phrase = bare_phrase(record.phrase)
        return Sample(
            sample_id=record.sample_id,
            image_id=record.image_sha256,
            image=self._image(record),
            phrase=phrase,
            mask=_record_mask(record),
            family=family_of(phrase, record.mask_rle is not None),
            label=record.label or "",
            is_box=record.is_box,
        )

    def phrases(self) -> Iterable[str]:
        """The phrase of every sample."""
        return (bare_phrase(record.phrase) for record in self.records)

    def _image(self, record: RefRecord) -> npt.NDArray[np.uint8]:
        if self._last is None or self._last[0] != record.image_sha256:
            try:
                image = read_picture(self.images / record.image_sha256)
            except PictureError as error:
                raise DatasetFileError(f"record {record.sample_id}: {error}") from error
            if image.shape[:2] != record.image_hw:
                raise DatasetFileError(
                    f"{self.images / record.image_sha256} is {image.shape[:2]} (H, W), "
                    f"but record {record.sample_id} was drawn on {record.image_hw}"
                )
            self._last = record.image_sha256, image
        return self._last[1]


def _record_mask(record: RefRecord) -> npt.NDArray[np.bool_]:
    if record.mask_rle is None:
        return np.zeros(record.image_hw, dtype=bool)
    try:
        return coco_rle_to_mask(record.mask_rle)
    except MaskFormatError as error:
        raise DatasetFileError(f"record {record.sample_id}: {error}") from error
