"""A sample: an image, a phrase and the mask it refers to. What every data set yields."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from sspsam.images.masks import mask_to_box_xyxy

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
