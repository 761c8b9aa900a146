"""gRefCOCO in the layout of https://github.com/henghuiding/gRefCOCO: phrases with several targets or none.

`<root>/grefcoco/instances.json` holds images and regions, `<root>/grefcoco/grefs(unc).json` the phrases.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from finetune.data.files import find, read_plain_pickle, stream_json
from finetune.data.published.refcoco import (
    COCO_FOLDERS,
    COCO_SOURCE,
    Instances,
    check_split,
    image_locator,
    in_split,
    read_instances,
    sentences_of,
)
from finetune.data.published.referring import Reference, ReferringDataset, enclose, union
from finetune.data.sample import DatasetFileError

NAME = "grefcoco"
SPLITS = ("train", "val", "testA", "testB")
SOURCE = "https://github.com/henghuiding/gRefCOCO"
NO_TARGET = -1
"""Annotation id for a phrase without a target."""


def open_grefcoco(split: str, root: Path) -> ReferringDataset:
    """Opens one split.

    Args:
        split: One of SPLITS.
        root: Folder that holds `grefcoco` and `images`.

    Raises:
        DatasetNameError: no such split.
        DatasetFileError: a file is missing or invalid.
    """
    check_split(NAME, split, SPLITS)
    folder = root / NAME
    candidates = [folder / "grefs(unc).json", folder / "grefs(unc).p"]
    refs_file = find(candidates, "gRefCOCO's file of phrases", SOURCE, Path.is_file)
    refs: Iterable[Any] = (
        stream_json(refs_file, "item") if refs_file.suffix == ".json" else read_plain_pickle(refs_file)
    )
    chosen = [ref for ref in refs if in_split(ref, split, refs_file)]
    instances = read_instances(
        find([folder / "instances.json"], "gRefCOCO's file of regions", SOURCE, Path.is_file),
        {annotation for ref in chosen for annotation in _annotations(ref)},
    )
    locate = image_locator(root, COCO_FOLDERS, "gRefCOCO", COCO_SOURCE)
    return ReferringDataset(_references(split, chosen, instances, locate, refs_file))


def _references(
    split: str, refs: list[dict[str, Any]], instances: Instances, locate: Callable[[str], Path], path: Path
) -> Iterator[Reference]:
    for ref in refs:
        if instances.without_region.intersection(_annotations(ref)):
            continue
        image_id = ref["image_id"]
        if image_id not in instances.file_names:
            raise DatasetFileError(f"{path}: reference {ref['ref_id']} is on an unknown image {image_id}")
        place = f"{path}, reference {ref['ref_id']}"
        named = [instances.get(annotation, place) for annotation in _annotations(ref)]
        if strangers := [instance.image_id for instance in named if instance.image_id != image_id]:
            raise DatasetFileError(f"{place}: its region is on image {strangers[0]}, expected {image_id}")
        # The published evaluation omits crowds; a phrase that refers only to a crowd keeps its target.
        targets = [instance for instance in named if not instance.crowd] or named
        region = union([target.region for target in targets], instances.sizes[image_id])
        box = enclose([target.box_xyxy for target in targets if target.box_xyxy is not None])
        file_name, as_shown = instances.file_names[image_id], image_id in instances.as_shown
        image = locate(file_name)
        for sample_id, phrase in sentences_of(ref, f"{NAME}/{split}"):
            yield Reference(sample_id, file_name, image, phrase, region, box, as_shown=as_shown)


def _annotations(ref: dict[str, Any]) -> list[int]:
    ids = ref["ann_id"] if isinstance(ref["ann_id"], list) else [ref["ann_id"]]
    return [] if ids == [NO_TARGET] else ids
