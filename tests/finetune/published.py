"""Small data sets in their published layouts."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image
from pycocotools import mask as coco_mask

Mask = npt.NDArray[np.bool_]

HEIGHT, WIDTH = 40, 60
FIRST, SECOND = 98304, 581857
"""Ids of pictures."""


def rectangle(top: int, left: int, height: int, width: int) -> Mask:
    mask = np.zeros((HEIGHT, WIDTH), dtype=bool)
    mask[top : top + height, left : left + width] = True
    return mask


RING = rectangle(5, 5, 20, 20) & ~rectangle(10, 10, 8, 8)
LEFT, RIGHT = rectangle(4, 2, 10, 12), rectangle(20, 30, 10, 20)


def polygon(top: int, left: int, height: int, width: int) -> list[float]:
    """A rectangle as COCO writes it; pycocotools fills it to `rectangle` of the same numbers."""
    bottom, right = top + height, left + width
    return [float(value) for value in (left, top, right, top, right, bottom, left, bottom)]


def compressed(mask: Mask) -> dict[str, Any]:
    rle = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(mask.shape), "counts": rle["counts"].decode()}


def uncompressed(mask: Mask) -> dict[str, Any]:
    """Runs of a column-major mask, starting with what is outside."""
    flat = mask.ravel(order="F").astype(np.int8)
    bounds = np.concatenate(([0], np.flatnonzero(np.diff(flat)) + 1, [flat.size]))
    counts = np.diff(bounds).tolist()
    return {"size": list(mask.shape), "counts": [0, *counts] if flat[0] else counts}


def annotation(
    number: int, image_id: int, segmentation: object, box_xywh: list[float], crowd: int = 0
) -> dict[str, Any]:
    return {
        "id": number, "image_id": image_id, "segmentation": segmentation, "bbox": box_xywh,
        "iscrowd": crowd, "category_id": 18, "area": box_xywh[2] * box_xywh[3],
    }  # fmt: skip


def ref(
    number: int, image_id: int, ann_id: object, phrases: list[str], split: str = "train"
) -> dict[str, Any]:
    sentences = [
        {"tokens": phrase.split(), "raw": phrase.upper(), "sent_id": 10 * number + i, "sent": phrase}
        for i, phrase in enumerate(phrases)
    ]
    return {
        "ref_id": number, "image_id": image_id, "ann_id": ann_id, "split": split, "sentences": sentences,
        "sent_ids": [sentence["sent_id"] for sentence in sentences], "category_id": 18,
        "file_name": f"COCO_train2014_{image_id:012d}_{number}.jpg",
    }  # fmt: skip


def picture(seed: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 255, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def coco_name(image_id: int) -> str:
    return f"COCO_train2014_{image_id:012d}.jpg"


COCO_NAMES = {FIRST: coco_name(FIRST), SECOND: coco_name(SECOND)}


def write_pictures(folder: Path, names: list[str]) -> None:
    folder.mkdir(parents=True)
    for seed, name in enumerate(names):
        Image.fromarray(picture(seed)).save(folder / name, quality=95)


def write_instances(folder: Path, annotations: list[dict[str, Any]], names: dict[int, str]) -> None:
    images = [
        {"id": number, "file_name": name, "height": HEIGHT, "width": WIDTH} for number, name in names.items()
    ]
    folder.mkdir(parents=True, exist_ok=True)
    values = {
        "info": {"version": "1.0"}, "images": images, "licenses": [], "annotations": annotations,
        "categories": [{"id": 18, "name": "dog", "supercategory": "animal"}],
    }  # fmt: skip
    (folder / "instances.json").write_text(json.dumps(values))


def write_refs(path: Path, refs: list[dict[str, Any]], protocol: int = 2) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(python2_pickle(refs) if protocol < 0 else pickle.dumps(refs, protocol))


def python2_pickle(value: object) -> bytes:
    """What Python 2's `pickle.dumps(value, 0)` writes: text as byte strings, line by line."""
    return _python2(value) + b"."


def _python2(value: object) -> bytes:
    if value is None:
        return b"N"
    if isinstance(value, bool):
        return b"I01\n" if value else b"I00\n"
    if isinstance(value, int):
        return b"I%d\n" % value
    if isinstance(value, float):
        return b"F%r\n".replace(b"%r", repr(value).encode())
    if isinstance(value, str):
        escaped = "".join(chr(byte) if 32 <= byte < 127 and byte not in b"'\\" else f"\\x{byte:02x}"
                          for byte in value.encode())  # fmt: skip
        return f"S'{escaped}'\n".encode()
    if isinstance(value, list):
        return b"(l" + b"".join(_python2(item) + b"a" for item in value)
    assert isinstance(value, dict)
    return b"(d" + b"".join(_python2(key) + _python2(item) + b"s" for key, item in value.items())
