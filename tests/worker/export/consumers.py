"""Tools that read exports. A program for .venv-consumers, which has none of our modules:

    python consumers.py TOOL FOLDER

FOLDER has `instances/annotations/instances_train.json` (RLE) with `instances/images`, the same with polygons
in `polygons`, and `yolo` and `png`. Written is `TOOL.json`: [file, label, COCO RLE] of each region, as the
tool has it.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from pycocotools import mask as coco_mask

Region = tuple[str, str, Any]
"""File, label and (H, W) mask."""


def supervision(folder: Path) -> Iterator[Region]:
    """Masks from RLE, and each picture."""
    from supervision import DetectionDataset

    images = folder / "instances/images"
    dataset = DetectionDataset.from_coco(
        str(images), str(folder / "instances/annotations/instances_train.json")
    )
    for path, picture, detections in dataset:
        for number, mask in zip(detections.class_id, detections.mask if len(detections) else (), strict=True):
            assert mask.shape == picture.shape[:2]
            yield Path(path).relative_to(images.resolve()).as_posix(), dataset.classes[number], mask


def supervision_yolo(folder: Path) -> Iterator[Region]:
    """Outlines from YOLO."""
    from supervision import DetectionDataset

    images = folder / "yolo/images/train"
    dataset = DetectionDataset.from_yolo(
        str(images), str(folder / "yolo/labels/train"), str(folder / "yolo/data.yaml"), force_masks=True
    )
    for path, _, detections in dataset:
        for number, mask in zip(detections.class_id, detections.mask if len(detections) else (), strict=True):
            yield Path(path).resolve().relative_to(images.resolve()).as_posix(), dataset.classes[number], mask


def datumaro(folder: Path) -> Iterator[Region]:
    """Masks from RLE, and each picture."""
    from datumaro import AnnotationType, Dataset

    dataset = Dataset.import_from(str(folder / "instances"), "coco_instances")
    labels = dataset.categories()[AnnotationType.label]
    for item in dataset:
        assert item.media.data is not None
        name = Path(item.media.path).relative_to(folder / "instances/images").as_posix()
        for annotation in item.annotations:
            if annotation.type == AnnotationType.mask:
                assert annotation.image.shape == item.media.size
                yield name, labels[annotation.label].name, annotation.image


def datumaro_polygons(folder: Path) -> Iterator[Region]:
    """Its polygons of a region have the region's group."""
    from datumaro import AnnotationType, Dataset

    dataset = Dataset.import_from(str(folder / "polygons"), "coco_instances")
    labels = dataset.categories()[AnnotationType.label]
    for item in dataset:
        name = Path(item.media.path).relative_to(folder / "polygons/images").as_posix()
        groups: dict[int, list[Any]] = {}
        for annotation in item.annotations:
            if annotation.type == AnnotationType.polygon:
                groups.setdefault(annotation.group, []).append(annotation)
        for parts in groups.values():
            yield name, labels[parts[0].label].name, fill([part.points for part in parts], item.media.size)


def ultralytics_converter(folder: Path) -> Iterator[Region]:
    """COCO polygons converted to YOLO's outlines."""
    from ultralytics.data.converter import convert_coco

    source, target = folder / "polygons/annotations", folder / "converted"
    convert_coco(str(source), str(target), use_segments=True, cls91to80=False)
    document = json.loads((source / "instances_train.json").read_text(encoding="utf-8"))
    names = [category["name"] for category in document["categories"]]
    for image in document["images"]:
        path = (target / "labels/train" / image["file_name"]).with_suffix(".txt")
        for line in path.read_text().splitlines() if path.exists() else ():
            number, *values = map(float, line.split())
            corners = np.reshape(values, (-1, 2)) * (image["width"], image["height"])
            mask = fill([corners.ravel().tolist()], (image["height"], image["width"]))
            yield image["file_name"], names[int(number)], mask


def ultralytics_dataset(folder: Path) -> Iterator[Region]:
    """Its own check and reading of our YOLO data set."""
    from ultralytics.data.dataset import YOLODataset
    from ultralytics.data.utils import check_det_dataset

    data = check_det_dataset(str(folder / "yolo/data.yaml"), autodownload=False)
    dataset = YOLODataset(img_path=data["train"], data=data, task="segment", imgsz=64, augment=False)
    images = Path(data["train"])
    for label in dataset.labels:
        name = Path(label["im_file"]).relative_to(images).as_posix()
        for number, corners in zip(label["cls"].ravel(), label["segments"], strict=True):
            height, width = label["shape"]
            mask = fill([(corners * (width, height)).ravel().tolist()], (height, width))
            yield name, data["names"][int(number)], mask


def detr(folder: Path) -> Iterator[Region]:
    """Masks from polygons, in the frame of the picture."""
    from PIL import Image
    from transformers import DetrImageProcessor

    processor = DetrImageProcessor(do_resize=False, do_pad=False, do_normalize=False)
    root = folder / "polygons"
    document = json.loads((root / "annotations/instances_train.json").read_text(encoding="utf-8"))
    names = {category["id"]: category["name"] for category in document["categories"]}
    for image in document["images"]:
        annotations = [entry for entry in document["annotations"] if entry["image_id"] == image["id"]]
        with Image.open(root / "images" / image["file_name"]) as picture:
            encoded = processor(
                images=picture.convert("RGB"),
                annotations={"image_id": image["id"], "annotations": annotations},
                return_segmentation_masks=True,
                return_tensors="pt",
            )
        (found,) = encoded["labels"]
        assert tuple(encoded["pixel_values"].shape[-2:]) == (image["height"], image["width"])
        for number, mask in zip(found["class_labels"].tolist(), found["masks"].numpy(), strict=True):
            yield image["file_name"], names[number], mask


def imagefolder(folder: Path) -> Iterator[Region]:
    """Masks and their pictures."""
    from datasets import load_dataset

    dataset = load_dataset("imagefolder", data_dir=str(folder / "png"), split="train")
    for row in dataset:
        mask = np.asarray(row["image"].convert("L")) > 0
        assert (row["picture"].height, row["picture"].width) == mask.shape
        for label in row["labels"]:
            yield row["picture_name"], label, mask


def fill(polygons: list[Any], hw: tuple[int, int]) -> Any:
    rles = coco_mask.frPyObjects([[float(value) for value in polygon] for polygon in polygons], *hw)
    return coco_mask.decode(coco_mask.merge(rles))


TOOLS: dict[str, Callable[[Path], Iterator[Region]]] = {
    tool.__name__: tool
    for tool in (
        supervision,
        supervision_yolo,
        datumaro,
        datumaro_polygons,
        ultralytics_converter,
        ultralytics_dataset,
        detr,
        imagefolder,
    )
}


def main() -> None:
    tool, folder = sys.argv[1], Path(sys.argv[2])
    os.chdir(folder)
    regions = []
    for file_name, label, mask in TOOLS[tool](folder):
        rle = coco_mask.encode(np.asfortranarray(np.asarray(mask) > 0, dtype=np.uint8))
        regions.append([file_name, label, {"size": rle["size"], "counts": rle["counts"].decode()}])
    (folder / f"{tool}.json").write_text(json.dumps(regions), encoding="utf-8")


if __name__ == "__main__":
    main()
