"""RefCOCO, RefCOCO+, RefCOCOg and ReferIt in the layout of https://github.com/lichengunc/refer.

`<root>/<name>/instances.json` holds images and regions, `<root>/<name>/refs(<authors>).p` the phrases.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from finetune.data.files import find, read_plain_pickle, stream_json
from finetune.data.published.referring import (
    Hw,
    NoRegionError,
    Reference,
    ReferringDataset,
    RleRegion,
    segmentation_to_region,
    xywh_to_xyxy,
)
from finetune.data.sample import BoxXyxy, DatasetFileError, DatasetNameError

logger = logging.getLogger(__name__)

ANNOTATIONS_SOURCE = "https://github.com/lichengunc/refer (download {}.zip and unpack it there)"
COCO_SOURCE = "https://cocodataset.org/#download (2014 Train images)"
SAIAPR_SOURCE = "https://github.com/lichengunc/refer (saiapr_tc-12.zip)"
COCO_FOLDERS = ("images/mscoco/images/train2014", "images/train2014", "coco/train2014", "train2014")
SAIAPR_FOLDERS = ("images/saiapr_tc-12", "saiapr_tc-12", "referit/images")


@dataclass(frozen=True)
class Publication:
    """One published set of phrases and its splits."""

    folder: str
    authors: str
    splits: tuple[str, ...]
    image_folders: tuple[str, ...] = COCO_FOLDERS
    image_source: str = COCO_SOURCE


PUBLICATIONS: dict[str, Publication] = {
    "refcoco": Publication("refcoco", "unc", ("train", "val", "testA", "testB")),
    "refcoco+": Publication("refcoco+", "unc", ("train", "val", "testA", "testB")),
    "refcocog-umd": Publication("refcocog", "umd", ("train", "val", "test")),
    "refcocog-google": Publication("refcocog", "google", ("train", "val")),
    "refclef-unc": Publication(
        "refclef", "unc", ("train", "val", "testA", "testB", "testC"), SAIAPR_FOLDERS, SAIAPR_SOURCE
    ),
    "refclef-berkeley": Publication(
        "refclef", "berkeley", ("train", "val", "test"), SAIAPR_FOLDERS, SAIAPR_SOURCE
    ),
}


def open_refcoco(name: str, split: str, root: Path) -> ReferringDataset:
    """Opens one split.

    Args:
        name: Key of PUBLICATIONS.
        split: One of its splits.
        root: Folder that holds `refcoco`, `refclef`, ... and `images`.

    Raises:
        DatasetNameError: no such split.
        DatasetFileError: a file is missing or invalid.
    """
    publication = PUBLICATIONS[name]
    check_split(name, split, publication.splits)
    folder = root / publication.folder
    source = ANNOTATIONS_SOURCE.format(publication.folder)
    refs_file = folder / f"refs({publication.authors}).p"
    find([refs_file], f"{name}'s file of phrases", source, Path.is_file)
    refs = read_plain_pickle(refs_file)
    if not isinstance(refs, list):
        raise DatasetFileError(f"{refs_file} holds {type(refs).__name__}, expected a list of references")
    chosen = [ref for ref in refs if in_split(ref, split, refs_file)]
    instances = read_instances(
        find([folder / "instances.json"], f"{name}'s file of regions", source, Path.is_file),
        {ref["ann_id"] for ref in chosen},
    )
    locate = image_locator(root, publication.image_folders, name, publication.image_source)
    return ReferringDataset(_references(name, split, chosen, instances, locate, refs_file))


@dataclass(frozen=True, slots=True)
class Instance:
    """One annotated region of an image."""

    image_id: int
    region: RleRegion
    box_xyxy: BoxXyxy | None
    crowd: bool


@dataclass(frozen=True)
class Instances:
    """The required content of `instances.json`."""

    by_id: dict[int, Instance]
    file_names: dict[int, str]
    """Image id -> file name, which may have folders."""
    sizes: dict[int, Hw]
    as_shown: frozenset[int] = frozenset()
    """Images whose regions are in the displayed frame, as our own exports declare."""
    without_region: frozenset[int] = frozenset()
    """Annotations that show nothing: a reference to one has no known target."""

    def get(self, annotation: int, sample_id: str) -> Instance:
        """Raises DatasetFileError if there is none."""
        if annotation not in self.by_id:
            raise DatasetFileError(f"{sample_id}: instances.json has no annotation {annotation}")
        return self.by_id[annotation]


def read_instances(path: Path, wanted: set[int]) -> Instances:
    """Reads the requested annotations and the image names from an `instances.json`.

    Raises:
        DatasetFileError: it is damaged, or an annotation is invalid.
    """
    file_names: dict[int, str] = {}
    sizes: dict[int, Hw] = {}
    as_shown: set[int] = set()
    by_id: dict[int, Instance] = {}
    without_region: set[int] = set()
    try:
        for image in stream_json(path, "images.item"):
            file_names[image["id"]] = image["file_name"]
            sizes[image["id"]] = (int(image["height"]), int(image["width"]))
            if image.get("exif_applied"):
                as_shown.add(image["id"])
        for annotation in stream_json(path, "annotations.item"):
            if annotation["id"] in wanted:
                try:
                    by_id[annotation["id"]] = _instance(path, annotation, sizes)
                except NoRegionError:
                    without_region.add(annotation["id"])
    except KeyError as error:
        raise DatasetFileError(f"{path}: an entry has no field {error}") from error
    if without_region:
        logger.warning(
            "%s: references to %d annotations without a region are left out, such as annotation %d",
            path,
            len(without_region),
            min(without_region),
        )
    return Instances(by_id, file_names, sizes, frozenset(as_shown), frozenset(without_region))


def image_locator(root: Path, folders: Sequence[str], name: str, source: str) -> Callable[[str], Path]:
    """Finds the folder of images; returns a function from a file name to its path.

    The original ReferIt archive has numbered subfolders (`19/images/19579.jpg`), others do not.
    """
    folder = find([root / place for place in folders], f"{name}'s folder of images", source, Path.is_dir)

    def locate(file_name: str) -> Path:
        path = folder / file_name
        stem = path.stem
        nested = folder / f"{int(stem) // 1000:02d}" / "images" / file_name if stem.isdecimal() else path
        return nested if nested != path and not path.is_file() and nested.is_file() else path

    return locate


def check_split(name: str, split: str, splits: Sequence[str]) -> None:
    """Raises DatasetNameError for a split that was not published."""
    if split not in splits:
        raise DatasetNameError(f"{name} has no split {split!r}; known: {', '.join(splits)}")


def in_split(ref: Any, split: str, path: Path) -> bool:
    """Whether a reference belongs to a split; in ReferIt, some belong to two (`testAB`)."""
    if not isinstance(ref, dict) or not {"ref_id", "ann_id", "image_id", "split", "sentences"} <= ref.keys():
        raise DatasetFileError(f"{path}: expected references with ids, split and sentences, got {ref!r:.80}")
    own = str(ref["split"])
    if split.startswith("test") and own.startswith("test"):
        return set(split.removeprefix("test")) <= set(own.removeprefix("test"))
    return own == split


def sentences_of(ref: dict[str, Any], sample_id: str) -> Iterator[tuple[str, str]]:
    """Sample id and phrase of each sentence of a reference."""
    for sentence in ref["sentences"]:
        phrase = str(sentence.get("sent") or sentence.get("raw") or "").strip()
        if phrase:
            yield f"{sample_id}/{ref['ref_id']}/{sentence.get('sent_id', 0)}", phrase


def _references(
    name: str,
    split: str,
    refs: Sequence[dict[str, Any]],
    instances: Instances,
    locate: Callable[[str], Path],
    path: Path,
) -> Iterator[Reference]:
    for ref in refs:
        if ref["ann_id"] in instances.without_region:
            continue
        instance = instances.get(ref["ann_id"], f"{path}, reference {ref['ref_id']}")
        image_id = ref["image_id"]
        if instance.image_id != image_id:
            raise DatasetFileError(
                f"{path}: reference {ref['ref_id']} is on image {image_id}, its region on {instance.image_id}"
            )
        file_name, as_shown = instances.file_names[image_id], image_id in instances.as_shown
        image, region, box = locate(file_name), instance.region, instance.box_xyxy
        for sample_id, phrase in sentences_of(ref, f"{name}/{split}"):
            yield Reference(sample_id, file_name, image, phrase, region, box, as_shown=as_shown)


def _instance(path: Path, annotation: dict[str, Any], sizes: dict[int, Hw]) -> Instance:
    image_id = annotation["image_id"]
    try:
        region = segmentation_to_region(annotation["segmentation"], sizes[image_id])
        box = xywh_to_xyxy(annotation["bbox"]) if "bbox" in annotation else None
    except NoRegionError:
        raise
    except ValueError as error:
        raise DatasetFileError(f"{path}, annotation {annotation['id']}: {error}") from error
    return Instance(image_id, region, box, bool(annotation.get("iscrowd", 0)))
