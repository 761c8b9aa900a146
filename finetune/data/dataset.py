"""What every data set gives: a picture, a phrase and the mask it refers to. Opened by name and split."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import parse_qsl

import numpy as np
import numpy.typing as npt

from finetune.data.phrase_types import family_of
from finetune.data.records import RecordFormatError, RefRecord, read_records
from sspsam.images.image_io import PictureError, read_picture
from sspsam.images.masks import MaskFormatError, coco_rle_to_mask, mask_to_box_xyxy

RECORDS_PREFIX = "records:"
DATA_ROOT_VARIABLE = "SSPSAM_DATA"
"""Environment: folder of the published data sets."""
JOINT = " + "
"""Between the names of data sets that are read one after the other."""

BoxXyxy = tuple[float, float, float, float]


class DatasetError(ValueError):
    """A data set that cannot be opened or read as asked. The message says what was expected."""


class DatasetNameError(DatasetError):
    """No data set has this name, split or option: correct the name."""


class DatasetFileError(DatasetError):
    """A file of the data set is missing or is not what its record says: restore the file."""


@dataclass(frozen=True)
class Sample:
    """One phrase on one picture."""

    sample_id: str
    """Unique in its data set, and stable between runs."""
    image_id: str
    """The same for all samples of one picture."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB, original frame."""
    phrase: str
    mask: npt.NDArray[np.bool_]
    """(H, W), what the phrase refers to; all False when nothing in the picture fits it."""
    family: str = ""
    """Kind of phrase ("noun", "ordinal", ...), for figures by family; empty where there are no kinds."""
    all_objects: npt.NDArray[np.bool_] | None = None
    """(H, W), every object of the picture at once, where the data set knows them: a trivial baseline."""
    box_xyxy: BoxXyxy | None = None
    """The published box of the target, px, where the data set has one that need not be the mask's."""
    label: str = ""
    """Of the object, for figures by label; empty where the data set has none."""

    @property
    def true_box_xyxy(self) -> BoxXyxy:
        """The published box, or the mask's; all zero without a target."""
        return mask_to_box_xyxy(self.mask) if self.box_xyxy is None else self.box_xyxy

    @property
    def has_target(self) -> bool:
        """Whether the phrase refers to anything in the picture."""
        return bool(self.mask.any())


class Dataset(Protocol):
    """Samples by position. Those of one picture follow each other, so that it is read and embedded once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


class RecordDataset:
    """Labels made by annotators: records of phrases and masks, with the pictures' bytes in a folder.

    Records of one picture are brought together, in the order of their first appearance.
    """

    def __init__(self, records: Sequence[RefRecord], images: Path) -> None:
        """Takes records, and the folder whose files are pictures named by the sha256 of their bytes."""
        first_seen = {record.image_sha256: at for at, record in reversed(list(enumerate(records)))}
        self.records = sorted(records, key=lambda record: first_seen[record.image_sha256])
        self.images = images
        self._last: tuple[str, npt.NDArray[np.uint8]] | None = None

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Sample:
        record = self.records[index]
        return Sample(
            sample_id=record.sample_id,
            image_id=record.image_sha256,
            image=self._image(record),
            phrase=record.phrase,
            mask=_record_mask(record),
            family=family_of(record.phrase, record.mask_rle is not None),
            label=record.label or "",
        )

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


class JointDataset:
    """Several data sets, one after the other."""

    def __init__(self, parts: Sequence[Dataset]) -> None:
        self.parts = parts
        self._ends = np.cumsum([len(part) for part in parts])

    def __len__(self) -> int:
        return int(self._ends[-1])

    def __getitem__(self, index: int) -> Sample:
        if not 0 <= index < len(self):
            raise IndexError(f"sample {index} of {len(self)}")
        number = int(np.searchsorted(self._ends, index, side="right"))
        part = self.parts[number]
        return part[index - int(self._ends[number]) + len(part)]


def open_dataset(spec: str) -> Dataset:
    """Opens a data set by name.

    Args:
        spec: `stickers/<split>?count=N&phrases=N&seed=N&families=a,b&nouns=a,b&styles=a,b`, options as
            needed, for `count` pictures with `phrases` samples each; a published data set's name and split
            such as `refcoco/testA`, with `root=<folder>` in place of SSPSAM_DATA, `without=refcoco/val,...`
            to leave out the pictures of other splits; or `records:<file.jsonl>?images=<folder>`,
            with `views=N` to have each sample N times (`finetune.data.augmentation.VariedDataset`).
            Several, with " + " between them, are one.

    Raises:
        DatasetNameError: no such name, split or option.
        DatasetFileError: a named file or folder does not exist.
    """
    if JOINT in spec:
        return JointDataset([open_dataset(part.strip()) for part in spec.split(JOINT)])
    name, _, query = spec.partition("?")
    options = dict(parse_qsl(query.replace("+", "%2B"), keep_blank_values=True))  # refcoco+ is a name
    if name.startswith(RECORDS_PREFIX):
        return _open_records(spec, Path(name.removeprefix(RECORDS_PREFIX)), options)
    family, _, split = name.partition("/")
    if family not in _OPENERS:
        known = ", ".join([f"{known}/<split>" for known in _OPENERS] + [f"{RECORDS_PREFIX}<file>"])
        raise DatasetNameError(f"no data set is named {name!r}; known: {known}")
    return _OPENERS[family](spec, split, options)


def samples_by_image(dataset: Dataset, positions: Sequence[int] | None = None) -> Iterator[list[Sample]]:
    """Yields the samples of one picture at a time, as long as they follow each other.

    Args:
        dataset: Where they come from.
        positions: Which of its samples; all when None.
    """
    group: list[Sample] = []
    for index in range(len(dataset)) if positions is None else positions:
        sample = dataset[index]
        if group and group[0].image_id != sample.image_id:
            yield group
            group = []
        group.append(sample)
    if group:
        yield group


def _open_records(spec: str, path: Path, options: dict[str, str]) -> Dataset:
    from finetune.data.augmentation import VariedDataset

    images = Path(options.pop("images", ""))
    views = _integer(spec, options, "views") or 1
    _refuse_unknown(spec, options)
    if not path.is_file():
        raise DatasetFileError(f"there is no file of records {path}")
    if images == Path() or not images.is_dir():
        raise DatasetFileError(f"{spec!r}: images=<folder> must name the folder of pictures, got '{images}'")
    try:
        return VariedDataset(RecordDataset(read_records(path), images), views)
    except RecordFormatError as error:
        raise DatasetFileError(str(error)) from error


def _open_stickers(spec: str, split: str, options: dict[str, str]) -> Dataset:
    from finetune.data.stickers.dataset import StickerDataset

    keywords: dict[str, Any] = {name: _integer(spec, options, name) for name in ("count", "seed")}
    keywords |= {name: _names(options, name) for name in ("families", "nouns", "styles")}
    keywords["phrases_per_scene"] = _integer(spec, options, "phrases")
    _refuse_unknown(spec, options)
    try:
        return StickerDataset(split, **{name: value for name, value in keywords.items() if value is not None})
    except DatasetError:
        raise
    except ValueError as error:
        raise DatasetNameError(f"{spec!r}: {error}") from error


def _open_published(spec: str, split: str, options: dict[str, str]) -> Dataset:
    from finetune.data.files import data_root
    from finetune.data.published.grefcoco import open_grefcoco
    from finetune.data.published.phrasecut import open_phrasecut
    from finetune.data.published.refcoco import open_refcoco
    from finetune.data.published.referring import ReferringDataset

    root = data_root(options.pop("root", None))
    without = _names(options, "without") or ()
    _refuse_unknown(spec, options)

    def open_split(name: str, split: str) -> ReferringDataset:
        if name == "grefcoco":
            return open_grefcoco(split, root)
        return open_phrasecut(split, root) if name == "phrasecut" else open_refcoco(name, split, root)

    opened = open_split(spec.partition("?")[0].partition("/")[0], split)
    for name, _, other_split in (other.partition("/") for other in without):
        if name not in PUBLISHED:
            raise DatasetNameError(f"{spec!r}: without={name!r}, expected one of: {', '.join(PUBLISHED)}")
        opened = opened.without(open_split(name, other_split))
    return opened


def _integer(spec: str, options: dict[str, str], name: str) -> int | None:
    text = options.pop(name, None)
    if text is None:
        return None
    if not text.isdecimal():
        raise DatasetNameError(f"{spec!r}: {name} is {text!r}, expected a whole number of 0 or more")
    return int(text)


def _names(options: dict[str, str], name: str) -> tuple[str, ...] | None:
    text = options.pop(name, None)
    return None if text is None else tuple(part for part in text.split(",") if part)


def _refuse_unknown(spec: str, options: dict[str, str]) -> None:
    if options:
        raise DatasetNameError(f"{spec!r}: unknown option {', '.join(sorted(options))}")


def _record_mask(record: RefRecord) -> npt.NDArray[np.bool_]:
    if record.mask_rle is None:
        return np.zeros(record.image_hw, dtype=bool)
    try:
        return coco_rle_to_mask(record.mask_rle)
    except MaskFormatError as error:
        raise DatasetFileError(f"record {record.sample_id}: {error}") from error


PUBLISHED = (
    "refcoco",
    "refcoco+",
    "refcocog-umd",
    "refcocog-google",
    "refclef-unc",
    "refclef-berkeley",
    "grefcoco",
    "phrasecut",
)
"""Names of data sets that are read from disk in their published layout."""

_OPENERS: dict[str, Callable[[str, str, dict[str, str]], Dataset]] = {
    "stickers": _open_stickers,
    **dict.fromkeys(PUBLISHED, _open_published),
}
