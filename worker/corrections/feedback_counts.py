"""Compares a saved annotation with the model's answers: accepted, edited, deleted, added, missed masks."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

from backend.corrections import Tally, merged
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import AnnotationContent, Region
from backend.labelstudio.config import LabelingConfig
from sspsam import mask_to_coco_rle
from sspsam.images.masks import coco_rle_iou
from worker.records import ServedMask

NO_LABEL = "object"


def tally_annotation(
    content: AnnotationContent,
    served: Callable[[str], ServedMask | None],
    submitted_before: Iterable[str],
    nothing_found: Mapping[str, str],
    config: LabelingConfig,
    serving: str,
) -> list[Tally]:
    """Counts the feedback in an annotation.

    Args:
        content: The parsed annotation.
        served: Maps a region id to the mask proposed under it.
        submitted_before: Ids of the proposed masks in earlier saves of the annotation.
        nothing_found: Keys of the phrases for which the model found nothing, with the version that was asked.
        config: The project's labeling config.
        serving: The serving version; masks that were not proposed are counted under it.
    """
    regions = [*content.regions, *content.boxes]
    tallies = [_region(region, served(region.region_id), nothing_found, serving) for region in regions]
    gone = set(submitted_before) - {region.region_id for region in regions}
    for proposed in map(served, sorted(gone)):
        if proposed is not None:
            label = config.choice_for(proposed.phrase).label if config.masks else None
            tallies.append(Tally(proposed.version, label or NO_LABEL, deleted=1))
    return merged(tallies)


def _region(
    region: Region, proposed: ServedMask | None, nothing_found: Mapping[str, str], serving: str
) -> Tally:
    label = region.label or NO_LABEL
    if proposed is None:
        version = nothing_found.get(prompt_text.phrase_key(region.phrase or ""))
        return Tally(version, label, missed=1) if version else Tally(serving, label, added=1)
    rle = mask_to_coco_rle(region.mask)
    if rle == dict(proposed.rle):
        return Tally(proposed.version, label, accepted=1, iou=1)
    return Tally(proposed.version, label, edited=1, iou=coco_rle_iou(rle, proposed.rle))
