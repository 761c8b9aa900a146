"""Masks to Label Studio results, in the kind of region that the form has."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import chain, count
from typing import Any

from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.regions.controls import Tag
from backend.labelstudio.regions.shapes import Shape, shapes_of
from sspsam.images.masks import BoolMask

Result = dict[str, Any]


@dataclass(frozen=True)
class ProposedRegion:
    """A proposed mask for a phrase."""

    region_id: str
    phrase: str
    """Empty for clicks without a phrase."""
    mask: BoolMask
    """(H, W) in the original frame."""
    score: float
    """0..1."""
    label: str | None = None
    """None: chosen by the phrase."""
    shape: Shape | None = None
    """The mask as the form's region holds it: see `as_held`."""


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
    key = prompt_text.phrase_key(phrase)
    candidates = chain([task], (f"{task}/{number}" for number in count(2)))
    ids = (region_id_for(project, candidate, phrase) for candidate in candidates)
    return (region_id for region_id in ids if prompt_text.phrase_key(texts.get(region_id, "")) in ("", key))


def as_held(region: ProposedRegion, config: LabelingConfig) -> list[ProposedRegion]:
    """A proposed region as the form holds it: with the mask that its result will be read as.

    Returns:
        One region; for a mask in several parts, in a form of polygons, one for each part, the largest first
        and under the region's ID.

    Raises:
        LabelingConfigError: the config has no region control, or no image.
    """
    if region.shape is not None:
        return [region]
    config.require("image")
    control = config.choice_for(region.phrase, region.label).control
    shapes = shapes_of(region.mask, control.kind, control.cuts_holes)
    return [
        replace(region, region_id=_part_id(region.region_id, number), mask=shape.mask, shape=shape)
        for number, shape in enumerate(shapes)
    ]


def _part_id(region_id: str, number: int) -> str:
    """ID of a part of a region, the same whenever the region is proposed."""
    if not number:
        return region_id
    return hashlib.sha256(f"{region_id}/part {number}".encode()).hexdigest()[:12]


def region_results(region: ProposedRegion, config: LabelingConfig) -> list[Result]:
    """Writes a region: the mask, its label, if a <Labels> has it, and its phrase, if any, under the region's
    ID. A mask in several parts may become several regions: see `as_held`.

    The order matters: the editor creates the area from the first result of an ID.

    Raises:
        LabelingConfigError: the config has no region control, or no image.
    """
    return [result for held in as_held(region, config) for result in _results_of(held, config)]


def _results_of(region: ProposedRegion, config: LabelingConfig) -> list[Result]:
    assert region.shape is not None
    choice = config.choice_for(region.phrase, region.label)
    control = choice.control
    height, width = region.mask.shape
    mask: Result = {
        "id": region.region_id,
        "from_name": control.name,
        "to_name": control.to_name or (config.image.name if config.image else ""),
        "type": control.result_type,
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": round(region.score, 4),
        "value": {**region.shape.value, **control.write_labels(choice.label)},
    }
    results = [mask]
    if control.labels_tag and choice.label:
        value = {**region.shape.value, "labels": [choice.label]}
        results.append({**mask, "from_name": control.labels_tag, "type": "labels", "value": value})
    if not region.phrase:
        return results
    if config.phrase is None:
        return [{**result, "meta": {"text": [region.phrase]}} for result in results]
    return [*results, text_result(config.phrase, region.region_id, [region.phrase])]


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
