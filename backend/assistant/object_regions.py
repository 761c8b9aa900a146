"""The regions of a phrase: one per object, or one for all. Pure functions.

Objects keep their IDs when the phrase is asked again: the ID follows the object that overlaps most with what
was displayed under it. IDs that are left over go to new objects; regions that are then still left over are
emptied, since an answer of an ML backend can replace regions but not remove them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING

from backend.labelstudio.predictions import ProposedRegion, emptied, ids_of, unused_region_ids
from backend.labelstudio.prompt_text import phrase_key
from backend.labelstudio.regions.parts import part_ids
from backend.state.displayed_masks import DisplayedMask
from sspsam import mask_to_coco_rle
from sspsam.images.masks import coco_rle_iou

if TYPE_CHECKING:
    from sspsam import Instance, Referent

MOST_REGIONS = 64
"""IDs of a phrase on a task that are considered."""


def regions_of(
    referent: Referent,
    project: str,
    task: str,
    texts: Mapping[str, str],
    shown: Sequence[DisplayedMask] = (),
    together: bool = False,
) -> list[ProposedRegion]:
    """The regions of a phrase's answer, objects from the left.

    Args:
        referent: The answer.
        project: Project of the task.
        task: The task.
        texts: Phrase of each region of the form by ID.
        shown: Masks displayed on the task.
        together: One region for all objects.
    """
    from sspsam import Instance  # with torch, which must not be loaded before OpenMP's settings

    phrase = referent.phrase
    instances = [Instance(referent.mask, referent.score)] if together else referent.instances[:MOST_REGIONS]
    unused = unused_region_ids(project, task, phrase, texts)
    ids = _assigned(instances, list(islice(unused, MOST_REGIONS)), shown)
    return [
        ProposedRegion(region_id, phrase, instance.mask, instance.score)
        for region_id, instance in zip(ids, instances, strict=True)
    ]


def leftover_regions(
    regions: Sequence[ProposedRegion], project: str, task: str, texts: Mapping[str, str]
) -> list[ProposedRegion]:
    """Regions on the form of an earlier answer to the same phrases that have no object or part now, emptied.

    Args:
        regions: The answer's regions, as the form holds them.
        project: Project of the task.
        task: The task.
        texts: Phrase of each region of the annotator's draft by ID.
    """
    firsts = {phrase_key(region.phrase): region for region in reversed(regions)}
    answered = {part_id for region in regions for part_id in ids_of(region, texts)}
    leftover = []
    for key, first in firsts.items():
        objects = islice(unused_region_ids(project, task, first.phrase, {}), MOST_REGIONS)
        ids = (part_id for object_id in objects for part_id in part_ids(object_id))
        on_form = (each for each in ids if each in texts and each not in answered)
        leftover += emptied(first, [each for each in on_form if phrase_key(texts[each]) == key])
    return leftover


def _assigned(
    instances: Sequence[Instance], unused: Sequence[str], shown: Sequence[DisplayedMask]
) -> list[str]:
    """An ID for each object."""
    before = [mask for mask in shown if mask.region_id in unused and mask.rle]
    rles = [mask_to_coco_rle(instance.mask) for instance in instances] if before else []
    pairs = [
        (coco_rle_iou(rle, mask.rle), -unused.index(mask.region_id), place)
        for place, rle in enumerate(rles)
        for mask in before
    ]
    found: dict[int, str] = {}
    for iou, order, place in sorted(pairs, reverse=True):
        if iou > 0 and place not in found and unused[-order] not in found.values():
            found[place] = unused[-order]
    left = iter([region_id for region_id in unused if region_id not in found.values()])
    return [found.get(place) or next(left) for place in range(len(instances))]
