"""The sample type of all data sets: an image, a phrase, and the mask of its referent."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

from sspsam.images.masks import mask_to_box_xyxy

BoxXyxy = tuple[float, float, float, float]


class DatasetError(ValueError):
    """A data set cannot be opened or read as requested. The message says what was expected."""


class DatasetNameError(DatasetError):
    """No data set has this name, split or option: correct the name."""


class DatasetFileError(DatasetError):
    """A file of the data set is missing or does not match its record: restore the file."""


@dataclass(frozen=True)
class Sample:
    """One phrase on one image."""

    sample_id: str
    """Unique in its data set, and stable across runs."""
    image_id: str
    """Equal for all samples of one image."""
    image: npt.NDArray[np.uint8]
    """(H, W, 3) RGB, original frame."""
    phrase: str
    mask: npt.NDArray[np.bool_]
    """(H, W), the referent of the phrase; all False without a target."""
    family: str = ""
    """Type of phrase ("noun", "ordinal", ...), for metrics by family; empty if the data set has none."""
    all_objects: npt.NDArray[np.bool_] | None = None
    """(H, W), the union of all objects in the image, if known: a trivial baseline."""
    box_xyxy: BoxXyxy | None = None
    """The published box of the target, px, if any; it may differ from the mask's box."""
    label: str = ""
    """Label of the object, for metrics by label; empty if the data set has none."""
    is_box: bool = False
    """Whether only the box of the target is known: the mask is then the pixels in it. Such a sample trains
    the box terms alone, and is compared with the box around an answer's mask.
    """

    @property
    def true_box_xyxy(self) -> BoxXyxy:
        """The published box, or the mask's; all zero without a target."""
        return mask_to_box_xyxy(self.mask) if self.box_xyxy is None else self.box_xyxy

    @property
    def has_target(self) -> bool:
        """Whether the phrase refers to anything in the image."""
        return bool(self.mask.any())


class Dataset(Protocol):
    """Samples by position. Those of one image are contiguous, so it is read and embedded once."""

    def __len__(self) -> int: ...

    def __getitem__(self, index: int, /) -> Sample: ...


@runtime_checkable
class PhraseList(Protocol):
    """A data set that knows its phrases without reading or drawing images."""

    def phrases(self) -> Iterable[str]:
        """The phrase of every sample."""


def samples_by_image(dataset: Dataset, positions: Sequence[int] | None = None) -> Iterator[list[Sample]]:
    """Yields groups of contiguous samples of the same image.

    Args:
        dataset: Source of the samples.
        positions: Positions of the samples; all if None.
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
