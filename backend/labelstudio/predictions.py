"""Masks -> the results that Label Studio draws."""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from backend.labelstudio import notes
from backend.labelstudio.config import LabelingConfig, Tag
from sspsam.masks import BoolMask, mask_to_brush_rle

Result = dict[str, Any]


@dataclass(frozen=True)
class ProposedRegion:
    """A mask that we propose for a phrase."""

    region_id: str
    phrase: str
    """Empty for what was pointed at without one."""
    mask: BoolMask
    """(H, W) in the original frame."""
    score: float
    """0..1."""
    label: str | None = None
    """None lets the phrase choose."""


def region_id_for(project: str, task: str, phrase: str) -> str:
    """Names the region of a phrase: the same phrase on the same task is the same region, so that asking again
    replaces its mask instead of adding a second one.
    """
    return hashlib.sha256(f"{project}/{task}/{notes.phrase_key(phrase)}".encode()).hexdigest()[:12]


def region_results(region: ProposedRegion, config: LabelingConfig) -> list[Result]:
    """Writes a region: the mask first, then its phrase, if it has one, both under the region's id.

    The order matters: the editor makes the area from the first result of an id.

    Raises:
        LabelingConfigError: the config has no brush, or no image.
    """
    config.require("image")
    brush = config.brush_for(region.phrase, region.label)
    height, width = region.mask.shape
    labels = [brush.label] if brush.label else []
    value = {"format": "rle", "rle": mask_to_brush_rle(region.mask), "brushlabels": labels}
    mask: Result = {
        "id": region.region_id,
        "from_name": brush.tag.name,
        "to_name": brush.tag.to_name,
        "type": "brushlabels",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
        "score": round(region.score, 4),
        "value": value,
    }
    if not region.phrase:
        return [mask]
    if config.phrase is None:
        return [{**mask, "meta": {"text": [region.phrase]}}]
    return [mask, text_result(config.phrase, region.region_id, [region.phrase])]


def text_result(tag: Tag, result_id: str, texts: Sequence[str]) -> Result:
    """Writes what a TextArea holds; the editor replaces all that it held before."""
    return {
        "id": result_id,
        "from_name": tag.name,
        "to_name": tag.to_name,
        "type": "textarea",
        "value": {"text": list(texts)},
    }


def status_line(tag: Tag, message: str, result_id: str | None = None) -> Result:
    """Writes the status line; an empty message takes back what it said."""
    return text_result(tag, result_id or fresh_id(), [message] if message else [])


def fresh_id() -> str:
    """An id for a result that has none yet."""
    return uuid.uuid4().hex[:10]


def prediction(results: Sequence[Result], model_version: str, scores: Sequence[float] = ()) -> dict[str, Any]:
    """Writes one prediction of a task.

    Args:
        results: What it shows.
        model_version: Whose it is.
        scores: How good the answer to each phrase probably is, 0..1; the prediction's score is the least.
    """
    score = {"score": round(min(scores), 4)} if scores else {}
    return {"result": list(results), "model_version": model_version, **score}
