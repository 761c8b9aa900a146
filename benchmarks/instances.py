"""Splitting of phrases' masks into objects, on sticker scenes with phrases about several objects.

Two masks are split: the model's answer, as served with its second look, and the true union of the objects,
which shows the splitting alone. Two ways: by the rules of `sspsam.objects` (of the true union by its
`splitting` alone), which prompt SAM within the mask, and plain connected components (touching at corners;
those of less than 50 px of 512 x 512 left out). Scenes are those of nouns that the weights know, none of
which was trained on.

    right    share of scenes with the right number of objects
    PQ       panoptic quality of the objects: IoU of the matched ones (IoU above 0.5), summed, divided by
             matched plus half of the unmatched ones on both sides
    AP       COCO's AP over IoU 0.5 to 0.95, one category, by pycocotools

    touching scenes: two of the objects share a connected part; occluded: one object has several parts

    python benchmarks/instances.py [--scenes 500] [--results instances.jsonl]
    python benchmarks/instances.py --scenes 30
"""

from __future__ import annotations

import argparse
import contextlib
import hashlib
import io
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
from common.results import Result, Results
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from finetune.data.stickers.dataset import StickerDataset
from sspsam import Instance, Predictor, mask_to_coco_rle
from sspsam.checkpoints.bundles import frozen_weights
from sspsam.images.frames import BoolMask
from sspsam.images.masks import coco_rle_iou
from sspsam.objects import phrase_objects, splitting
from sspsam.reading import several
from sspsam.reading.several import number_of_targets
from sspsam.results import NO_TARGET_MIN_FRACTION

PRESET = "ssp-sam-demo"
SEED = 21
TARGET = 0.75
MASKS = ("answer", "true union")
WAYS = ("objects", "components")
MATCHED = 0.5
WIDTHS = (7, 10, 10, 7, 7)

Json = dict[str, Any]


def components(mask: BoolMask, score: float) -> list[Instance]:
    """Plain connected components."""
    count, parts, statistics, _ = cv2.connectedComponentsWithStats(mask.astype(np.uint8), connectivity=8)
    large = statistics[:, cv2.CC_STAT_AREA] >= NO_TARGET_MIN_FRACTION * mask.size
    return [Instance(parts == part, score) for part in range(1, count) if large[part]]


def has_touching(truth: Sequence[BoolMask]) -> bool:
    """Whether two of the objects share a connected part of their union."""
    _, parts = cv2.connectedComponents(np.any(truth, axis=0).astype(np.uint8), connectivity=8)
    owned = [set(np.unique(parts[mask])) for mask in truth]
    return sum(map(len, owned)) > len(set().union(*owned))


def has_occluded(truth: Sequence[BoolMask]) -> bool:
    """Whether one of the objects consists of several parts, specks left out."""
    return any(len(components(mask, 1)) > 1 for mask in truth)


def measure(predictor: Predictor, data: StickerDataset, number: int) -> Json:
    """Splits both masks of a scene in both ways."""
    scene, phrases = data.scene(number)
    phrase = phrases[0]
    truth = [scene.objects[index].mask for index in phrase.targets]
    embedding = predictor.embed(scene.image)
    [referent] = predictor.predict(embedding, [phrase.phrase], image=scene.image)
    union = scene.mask_of(phrase.targets)
    split = {
        ("answer", "objects"): referent.instances,
        ("answer", "components"): components(referent.mask, referent.score),
        ("true union", "objects"): splitting.split_mask(
            embedding, union, 1, predictor.decode, number_of_targets(phrase.phrase)
        ),
        ("true union", "components"): components(union, 1),
    }
    return {
        "scene": number,
        "phrase": phrase.phrase,
        "touching": has_touching(truth),
        "occluded": has_occluded(truth),
        "truth": [mask_to_coco_rle(mask) for mask in truth],
        **{
            " ".join(name): [[mask_to_coco_rle(entry.mask), entry.score] for entry in instances]
            for name, instances in split.items()
        },
    }


def is_right(result: Result, name: str) -> bool:
    return len(result[name]) == len(result["truth"])


def panoptic_quality(results: Sequence[Result], name: str) -> float:
    """PQ over all scenes, 0..1. At most one object of each side exceeds an IoU of 0.5 with another."""
    total, matched, found, true = 0.0, 0, 0, 0
    for result in results:
        ious = [coco_rle_iou(rle, thing) for rle, _ in result[name] for thing in result["truth"]]
        good = [iou for iou in ious if iou > MATCHED]
        total, matched = total + sum(good), matched + len(good)
        found, true = found + len(result[name]), true + len(result["truth"])
    return total / max(matched + (found - matched + true - matched) / 2, 1)


def average_precision(results: Sequence[Result], name: str) -> float:
    """COCO's AP, 0..1."""
    truth = COCO()
    truth.dataset = {
        "info": {},
        "images": [_image(result) for result in results],
        "categories": [{"id": 1, "name": "object"}],
        "annotations": [
            {"id": number, **_annotation(result, rle), "iscrowd": 0}
            for number, (result, rle) in enumerate(
                ((result, rle) for result in results for rle in result["truth"]), start=1
            )
        ],
    }
    found = [
        {**_annotation(result, rle), "score": score} for result in results for rle, score in result[name]
    ]
    if not found:
        return 0.0
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        evaluation = COCOeval(truth, truth.loadRes(found), "segm")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    return float(evaluation.stats[0])


def _image(result: Result) -> Json:
    height, width = result["truth"][0]["size"]
    return {"id": result["scene"], "height": height, "width": width}


def _annotation(result: Result, rle: Mapping[str, Any]) -> Json:
    encoded = {"size": rle["size"], "counts": rle["counts"].encode()}
    return {
        "image_id": result["scene"],
        "category_id": 1,
        "segmentation": rle,
        "area": float(coco_mask.area(encoded)),
        "bbox": coco_mask.toBbox(encoded).tolist(),
    }


def report(results: Sequence[Result]) -> Iterator[str]:
    """The table, and whether the target is met."""
    touching = [result for result in results if result["touching"]]
    occluded = [result for result in results if result["occluded"]]
    yield f"{len(results)} scenes: {len(touching)} with touching objects, {len(occluded)} with occluded ones"
    head = ("right", "touching", "occluded", "PQ", "AP")
    names = "".join(f"{name:>{width}}" for name, width in zip(head, WIDTHS, strict=True))
    yield f"{'mask':<12}{'split by':<12}{names}   percent"
    for mask in MASKS:
        for way in WAYS:
            name = f"{mask} {way}"
            shares = [_share(some, name) for some in (results, touching, occluded)]
            quality, precision = panoptic_quality(results, name), average_precision(results, name)
            row = [*shares, quality, precision]
            yield f"{mask:<12}{way:<12}" + "".join(
                f"{100 * value:>{width}.1f}" for value, width in zip(row, WIDTHS, strict=True)
            )
    for mask in MASKS:
        share = _share(results, f"{mask} objects")
        verdict = "met" if share >= TARGET else "missed"
        yield f"{mask}: the target of {100 * TARGET:.0f} % with the right number of objects is {verdict}"


def _share(results: Sequence[Result], name: str) -> float:
    return float(np.mean([is_right(result, name) for result in results])) if results else float("nan")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--scenes", type=int, default=500)
    parser.add_argument("--results", type=Path, help="Keeps results; an interrupted run is resumed.")
    options = parser.parse_args()
    predictor = Predictor.from_preset(PRESET, device="cpu")
    rules = [Path(str(module.__file__)).read_bytes() for module in (splitting, phrase_objects, several)]
    rule = hashlib.sha256(b"".join(rules)).hexdigest()
    conditions = {"weights": frozen_weights(PRESET), "rule": rule, "seed": SEED}
    results = Results(options.results, conditions, ["scene"])
    data = StickerDataset(
        "val", options.scenes, seed=SEED, families=["several"], nouns=["core"], phrases_per_scene=1
    )
    numbers: list[int] = []
    for number in range(options.scenes):
        if (number,) not in results:
            try:
                results.add(measure(predictor, data, number))
            except ValueError:  # a scene without repeated nouns
                continue
        numbers.append(number)
    print("\n".join(report([results[number,] for number in numbers])))


if __name__ == "__main__":
    main()
