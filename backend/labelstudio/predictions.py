"""Masks to Label Studio results, in the kind of region that the form has."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count, islice
from types import MappingProxyType
from typing import Any
from zlib import crc32

import numpy as np

from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.regions.controls import Tag
from backend.labelstudio.regions.parts import object_id_of, part_ids
from backend.labelstudio.regions.shapes import Shape, shapes_of
from sspsam.images.masks import BoolMask

Result = dict[str, Any]
MOST_REGIONS = 64
"""IDs of a phrase on a task that are considered."""
NO_TEXTS: Mapping[str, str] = MappingProxyType({})


@dataclass(frozen=True)
class ProposedRegion:
    """A proposed mask for a phrase: one object."""

    region_id: str
    phrase: str
    """Empty for clicks without a phrase."""
    mask: BoolMask
    """(H, W) in the original frame."""
    score: float
    """0..1."""
    label: str | None = None
    """None: chosen by the phrase."""
    control: str = ""
    """Name of the region control of a mask that is on the form; empty: chosen by label or phrase."""
    shapes: tuple[Shape, ...] = ()
    """The mask as the form's regions hold it, the largest part first: see `as_held`."""
    colour: int | None = None
    """Number of its colour in the form; None: by its ID."""


def region_id_for(project: str, task: str, phrase: str) -> str:
    """ID of a phrase's region, and of the first of several: the same for the same phrase on the same task, so
    that a repeated request replaces the mask instead of adding a second one.
    """
    return hashlib.sha256(f"{project}/{task}/{prompt_text.phrase_key(phrase)}".encode()).hexdigest()[:12]


def unused_region_ids(project: str, task: str, phrase: str, texts: Mapping[str, str]) -> Iterator[str]:
    """IDs for a phrase's regions, in order, without end, on a form where annotators may have given a region
    of the phrase another phrase: the region that has it keeps it.

    Args:
        project: Project of the task.
        task: The task.
        phrase: Phrase of the new masks.
        texts: Phrase of each region of the form by ID.
    """
    candidates = chain([task], (f"{task}/{number}" for number in count(2)))
    ids = (region_id_for(project, candidate, phrase) for candidate in candidates)
    return (region_id for region_id in ids if is_free(region_id, phrase, texts))


def region_ids_of(project: str, task: str, phrase: str) -> list[str]:
    """IDs that the regions of a phrase may have, in order."""
    return list(islice(unused_region_ids(project, task, phrase, {}), MOST_REGIONS))


def as_held(region: ProposedRegion, config: LabelingConfig) -> ProposedRegion:
    """A proposed region as the form holds it: with the mask that its results will be read as.

    A form of polygons holds a mask in several parts as several shapes, others as one.

    Raises:
        LabelingConfigError: the config has no region control, or no image.
    """
    if region.shapes:
        return region
    config.require("image")
    control = config.choice_for(region.phrase, region.label, region.control).control
    shapes = tuple(shapes_of(region.mask, control.kind, control.cuts_holes))
    mask = shapes[0].mask if len(shapes) == 1 else np.any([shape.mask for shape in shapes], axis=0)
    return replace(region, mask=mask, shapes=shapes)


def emptied(region: ProposedRegion, region_ids: Iterable[str]) -> list[ProposedRegion]:
    """Regions without pixels, with which earlier ones of a region's phrase are replaced."""
    nothing = replace(region, mask=np.zeros_like(region.mask), score=0.0, shapes=())
    return [replace(nothing, region_id=region_id, colour=None) for region_id in region_ids]


def ids_of(region: ProposedRegion, texts: Mapping[str, str] = NO_TEXTS) -> list[str]:
    """IDs of the regions that hold a region, as `as_held` returns it.

    Args:
        region: The region.
        texts: Phrase of each region of the form by ID: a part that has been given another phrase keeps it.
    """
    region_id, *further = part_ids(region.region_id)
    free = (each for each in further if is_free(each, region.phrase, texts))
    return [region_id, *islice(free, len(region.shapes) - 1)]


def colour_by_id(region_id: str) -> int:
    """Number of a region's colour, if no other is known."""
    return crc32(object_id_of(region_id).encode())


def is_free(region_id: str, phrase: str, texts: Mapping[str, str]) -> bool:
    """Whether no region of another phrase has an ID."""
    return prompt_text.phrase_key(texts.get(region_id, "")) in ("", prompt_text.phrase_key(phrase))


def region_results(
    region: ProposedRegion, config: LabelingConfig, texts: Mapping[str, str] = NO_TEXTS
) -> list[Result]:
    """Writes a region: for each part the mask, its label, if a <Labels> has it, and its phrase, if any, under
    the part's ID.

    The order matters: the editor creates the area from the first result of an ID.

    Args:
        region: The region.
        config: The form.
        texts: As in `ids_of`.

    Raises:
        LabelingConfigError: the config has no region control, or no image.
    """
    held = as_held(region, config)
    parts = zip(ids_of(held, texts), held.shapes, strict=False)
    return [result for part_id, shape in parts for result in _results_of(part_id, shape, held, config)]


def _results_of(region_id: str, shape: Shape, region: ProposedRegion, config: LabelingConfig) -> list[Result]:
    choice = config.choice_for(region.phrase, region.label, region.control)
    colour = colour_by_id(region_id) if region.colour is None else region.colour
    is_kept = choice.control.name == region.control
    control = choice.control if is_kept else config.coloured(choice.control, colour)
    height, width = region.mask.shape
    mask: Result = {
        "id": region_id,
        "from_name": control.name,
        "to_name": control.to_name or (config.image.name if config.image else ""),
        "type": control.result_type,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": round(region.score, 4),
        "value": {**shape.value, **control.write_labels(None if choice.label_of else choice.label)},
    }
    results = [mask]
    if choice.label_of is not None:  # as the editor writes a label of another control
        value = {**shape.value, **choice.label_of.write_labels(choice.label)}
        name, kind = choice.label_of.name, choice.label_of.result_type
        results.append({**mask, "from_name": name, "type": kind, "value": value})
    elif control.labels_tag and choice.label:
        value = {**shape.value, "labels": [choice.label]}
        results.append({**mask, "from_name": control.labels_tag, "type": "labels", "value": value})
    if not region.phrase:
        return results
    if config.phrase is None:
        return [{**result, "meta": {"text": [region.phrase]}} for result in results]
    return [*results, text_result(config.phrase, region_id, [region.phrase])]


def text_result(tag: Tag, result_id: str, texts: Sequence[str]) -> Result:
    """Writes the content of a TextArea; the editor replaces its previous content."""
    return {
        "id": result_id,
        "from_name": tag.name,
        "to_name": tag.to_name,
        "type": "textarea",
        "value": {"text": list(texts)},
    }


def status_line(tag: Tag, message: str, result_id: str | None = None) -> Result:
    """Writes the status line; an empty message clears it."""
    return text_result(tag, result_id or fresh_id(), [message] if message else [])


def fresh_id() -> str:
    """An ID for a new result."""
    return uuid.uuid4().hex[:10]


def prediction(results: Sequence[Result], model_version: str, scores: Sequence[float] = ()) -> dict[str, Any]:
    """Writes one prediction of a task.

    Args:
        results: Its results.
        model_version: Version that produced it.
        scores: Estimated quality of each phrase's answer, 0..1; the prediction's score is the minimum.
    """
    score = {"score": round(min(scores), 4)} if scores else {}
    return {"result": list(results), "model_version": model_version, **score}
