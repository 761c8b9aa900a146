"""A saved annotation beside what was proposed on its task: taken, changed, thrown away, added."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from datetime import datetime, timedelta
from typing import Any

from backend.corrections import Tally, merged
from backend.labelstudio.annotations import AnnotationContent, Region
from backend.labelstudio.config import LabelingConfig
from sspsam import mask_to_coco_rle
from sspsam.images.masks import coco_rle_iou
from worker.records import UNSUBMITTED_WINDOW_S, ServedMask

NO_LABEL = "object"
SLACK_S = 60.0
"""The clocks of Label Studio and of the backend may differ by so much."""


def tally_annotation(
    annotation: Mapping[str, Any],
    content: AnnotationContent,
    served: Callable[[str], ServedMask | None],
    served_on_task: Iterable[str],
    config: LabelingConfig,
    serving: str,
) -> list[Tally]:
    """Counts an annotation.

    Args:
        annotation: As Label Studio gives it.
        content: What it says.
        served: Region id to what had been proposed for a phrase under it.
        served_on_task: Ids of all regions that were ever proposed on its task, to anybody.
        config: Of its project.
        serving: The version that serves, under which masks are counted that nobody proposed.
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
    """Whether an annotator had a mask on the form that they saved.

    Others may work on the same task, so only what was proposed while this annotation was made counts; in one
    made from a prediction, what was predicted does too.
    """
    if proposed.served_at is None:
        return False
    saved = _time(annotation.get("updated_at"))
    if saved is not None and proposed.served_at > saved - timedelta(seconds=UNSUBMITTED_WINDOW_S):
        return False
    began = _time(annotation.get("created_at"))
    if began is None or annotation.get("parent_prediction") is not None:
        return True
    lead_s = float(annotation.get("lead_time") or 0) + SLACK_S
    return proposed.served_at >= began - timedelta(seconds=lead_s)


def _time(text: Any) -> datetime | None:
    return datetime.fromisoformat(text) if isinstance(text, str) and text else None
