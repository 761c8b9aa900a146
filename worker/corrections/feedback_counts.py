"""Compares a saved annotation with the proposed masks: counts accepted, edited, deleted and added ones."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from backend.corrections import Tally, merged
from backend.labelstudio.annotations import AnnotationContent, Region
from backend.labelstudio.config import LabelingConfig
from sspsam import mask_to_coco_rle
from sspsam.images.masks import coco_rle_iou
from worker.records import ServedMask

NO_LABEL = "object"
SLACK_S = 60.0
"""Tolerated difference between the clocks of Label Studio and the backend."""


def tally_annotation(
    annotation: Mapping[str, Any],
    content: AnnotationContent,
    served: Callable[[str], ServedMask | None],
    served_on_task: Iterable[str],
    config: LabelingConfig,
    serving: str,
) -> list[Tally]:
    """Counts the feedback in an annotation.

    Args:
        annotation: As returned by Label Studio.
        content: The parsed annotation.
        served: Maps a region id to the mask proposed under it.
        served_on_task: Ids of all regions ever proposed on its task, to any annotator.
        config: The project's labeling config.
        serving: The serving version; masks that were not proposed are counted under it.
    """
    tallies = [_region(region, served(region.region_id), serving) for region in content.regions]
    gone = set(served_on_task) - {region.region_id for region in content.regions}
    for proposed in map(served, sorted(gone)):
        if proposed is not None and _was_seen(proposed, annotation):
            label = config.brush_for(proposed.phrase).label if config.masks else None
            tallies.append(Tally(proposed.version, label or NO_LABEL, deleted=1))
    return merged(tallies)


def _region(region: Region, proposed: ServedMask | None, serving: str) -> Tally:
    label = region.label or NO_LABEL
    if proposed is None:
        return Tally(serving, label, added=1)
    rle = mask_to_coco_rle(region.mask)
    if rle == dict(proposed.rle):
        return Tally(proposed.version, label, accepted=1, iou=1)
    return Tally(proposed.version, label, edited=1, iou=coco_rle_iou(rle, proposed.rle))


def _was_seen(proposed: ServedMask, annotation: Mapping[str, Any]) -> bool:
    """Whether a proposed mask was in the form that the annotator saved.

    Others may work on the same task, so only masks proposed while this annotation was made count. For an
    annotation made from a prediction, the predicted masks count too.
    """
    if proposed.served_at is None:
        return False
    saved = _time(annotation.get("updated_at"))
    if saved is not None and proposed.served_at > saved - timedelta(seconds=10):
        return False
    began = _time(annotation.get("created_at"))
    if began is None or annotation.get("parent_prediction") is not None:
        return True
    lead_s = float(annotation.get("lead_time") or 0) + SLACK_S
    return proposed.served_at >= began - timedelta(seconds=lead_s)


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None
