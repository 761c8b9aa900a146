"""Opens data sets by name and split."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import numpy as np

from finetune.data.augmentation import VariedDataset, swap_sides
from finetune.data.record_dataset import RecordDataset
from finetune.data.records import RecordFormatError, read_records
from finetune.data.sample import (
    Dataset,
    DatasetError,
    DatasetFileError,
    DatasetNameError,
    PhraseList,
    Sample,
)

logger = logging.getLogger(__name__)

RECORDS_PREFIX = "records:"
JOINT = " + "
"""Separates the names of concatenated data sets."""


class JointDataset:
    """Concatenation of several data sets."""

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


class SelectedSamples:
    """Some samples of a data set that lists its phrases."""

    def __init__(self, dataset: Dataset, phrases: Sequence[str], positions: Sequence[int]) -> None:
        self.dataset = dataset
        self.positions = positions
        self._phrases = [phrases[position] for position in positions]

    def __len__(self) -> int:
        return len(self.positions)

    def __getitem__(self, index: int) -> Sample:
        return self.dataset[self.positions[index]]

    def phrases(self) -> Sequence[str]:
        """The phrase of every sample."""
        return self._phrases


def without_unreadable(dataset: Dataset) -> Dataset:
    """The samples whose phrases the model can read, for training; logs the number of others.

    Sticker scenes are returned as they are: their phrases are short.
    """
    if isinstance(dataset, JointDataset):
        return JointDataset([without_unreadable(part) for part in dataset.parts])
    if isinstance(dataset, VariedDataset):
        return VariedDataset(without_unreadable(dataset.dataset), dataset.views)
    if not isinstance(dataset, PhraseList):
        return dataset
    phrases = list(dataset.phrases())
    unreadable = {phrase for phrase in set(phrases) if not is_readable(phrase)}
    positions = [position for position, phrase in enumerate(phrases) if phrase not in unreadable]
    if not unreadable:
        return dataset
    logger.warning(
        "%d samples are left out: their phrases are empty or too long, such as %.60r",
        len(phrases) - len(positions),
        min(unreadable),
    )
    return SelectedSamples(dataset, phrases, positions)


def is_readable(phrase: str) -> bool:
    """Whether the model can read a phrase, which has at most 77 tokens."""
    from sspsam import PhraseError
    from sspsam.phrases import tokenize

    try:
        tokenize([phrase])
    except PhraseError:
        return False
    return True


def phrases_of(dataset: Dataset, most: int) -> set[str]:
    """The distinct phrases of a data set.

    Args:
        dataset: Corrections and published sets list all of their phrases. Those of sticker scenes are known
            only when the scenes are drawn.
        most: Number of first samples to draw in each part of the data set that cannot list its phrases.
    """
    if isinstance(dataset, JointDataset):
        return set().union(*(phrases_of(part, most) for part in dataset.parts))
    if isinstance(dataset, VariedDataset):
        phrases = phrases_of(dataset.dataset, most)
        return phrases | {swap_sides(phrase) for phrase in phrases if dataset.views > 1}  # may be mirrored
    if isinstance(dataset, PhraseList):
        return set(dataset.phrases())
    return {dataset[index].phrase for index in range(min(most, len(dataset)))}


def open_dataset(spec: str) -> Dataset:
    """Opens a data set by name.

    Args:
        spec: `stickers/<split>?count=N&phrases=N&seed=N&families=a,b&nouns=a,b&styles=a,b`, options as
            needed, for `count` images with `phrases` samples each; `size=4000x3000` for the images' width
            and height, `objects=0.02-0.1` for the objects' longer sides as fractions of the short side,
            `close_ups=0.1` for a share of close-ups, `wording=varied` for other
            wordings of the same phrases; a published data set's name and split
            such as `refcoco/testA`, with `root=<folder>` instead of SSPSAM_DATA, `without=refcoco/val,...`
            to leave out the images of other splits; or `records:<file.jsonl>?images=<folder>`,
            with `views=N` for N views of each sample (`finetune.data.augmentation.VariedDataset`).
            Several names separated by " + " are concatenated.

    Raises:
        DatasetNameError: no such name, split or option.
        DatasetFileError: a named file or folder does not exist.
    """
    if JOINT in spec:
        return JointDataset([open_dataset(part.strip()) for part in spec.split(JOINT)])
    name, _, query = spec.partition("?")
    options = dict(
        parse_qsl(query.replace("+", "%2B"), keep_blank_values=True)
    )  # "+" is part of the name refcoco+
    if name.startswith(RECORDS_PREFIX):
        return _open_records(spec, Path(name.removeprefix(RECORDS_PREFIX)), options)
    family, _, split = name.partition("/")
    if family not in _OPENERS:
        known = ", ".join([f"{known}/<split>" for known in _OPENERS] + [f"{RECORDS_PREFIX}<file>"])
        raise DatasetNameError(f"no data set is named {name!r}; known: {known}")
    return _OPENERS[family](spec, split, options)


def _open_records(spec: str, path: Path, options: dict[str, str]) -> Dataset:
    images = Path(options.pop("images", ""))
    views = _integer(spec, options, "views") or 1
    _refuse_unknown(spec, options)
    if not path.is_file():
        raise DatasetFileError(f"no such file of records: {path}")
    if images == Path() or not images.is_dir():
        raise DatasetFileError(f"{spec!r}: images=<folder> must name the folder of images, got '{images}'")
    try:
        return VariedDataset(RecordDataset(read_records(path), images), views)
    except RecordFormatError as error:
        raise DatasetFileError(str(error)) from error


def _open_stickers(spec: str, split: str, options: dict[str, str]) -> Dataset:
    from finetune.data.stickers.dataset import StickerDataset, parse_range, parse_size

    keywords: dict[str, Any] = {name: _integer(spec, options, name) for name in ("count", "seed")}
    keywords |= {name: _names(options, name) for name in ("families", "nouns", "styles")}
    keywords["phrases_per_scene"] = _integer(spec, options, "phrases")
    size, objects, close_ups = (options.pop(name, None) for name in ("size", "objects", "close_ups"))
    keywords["wording"] = options.pop("wording", None)
    _refuse_unknown(spec, options)
    try:
        keywords["canvas_hw"] = None if size is None else parse_size(size)
        keywords["sticker_range"] = None if objects is None else parse_range(objects)
        keywords["close_ups"] = None if close_ups is None else float(close_ups)
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
"""Names of the data sets read from disk in their published layout."""

_OPENERS: dict[str, Callable[[str, str, dict[str, str]], Dataset]] = {
    "stickers": _open_stickers,
    **dict.fromkeys(PUBLISHED, _open_published),
}
