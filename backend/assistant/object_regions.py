"""The regions of a phrase: one per object, or one for all. Pure functions.

Objects keep their IDs when the phrase is asked again: the ID follows the object that overlaps most with what
was displayed under it. IDs that are left over go to new objects; regions that are then still left over are
emptied, since an answer of an ML backend can replace regions but not remove them. Those that an annotator has
edited since stay as they are.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

import numpy as np

from backend.labelstudio.annotations import (
    Region,
    drawn_phrases,
    empty_regions,
    read_annotation,
    regions_by_id,
)
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import (
    MOST_REGIONS,
    ProposedRegion,
    emptied,
    ids_of,
    region_ids_of,
    unused_region_ids,
)
from backend.labelstudio.prompt_text import distinct, found_nothing, phrase_key
from backend.labelstudio.regions.parts import object_id_of, part_ids
from backend.state.displayed_masks import DisplayedMask
from backend.state.redis_store import Served
from sspsam import coco_rle_to_mask, mask_to_coco_rle
from sspsam.images.masks import coco_rle_iou

if TYPE_CHECKING:
    from sspsam import Instance, Referent


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


def drawn_in(drafts: Sequence[Mapping[str, Any]], entries: Sequence[str], config: LabelingConfig) -> set[str]:
    """Keys of the phrases that have a region in an annotator's only draft; an emptied region does not count.

    Args:
        drafts: The annotator's drafts; of several, it is not known which is open.
        entries: The prompt box: only masks of its open phrases are read.
        config: The form.
    """
    if len(drafts) != 1:
        return set()
    open_phrases = distinct(filter(found_nothing, entries))
    return drawn_phrases(drafts[0], config, empty_regions(drafts[0], config, open_phrases))


def leftover_regions(
    regions: Sequence[ProposedRegion],
    unmatched: Sequence[str],
    project: str,
    task: str,
    texts: Mapping[str, str],
    unedited: Mapping[str, Region],
) -> list[ProposedRegion]:
    """Regions on the form of an earlier answer to the same phrases that have no object or part now, emptied.

    Args:
        regions: The answer's regions, as the form holds them.
        unmatched: Phrases for which nothing was found.
        project: Project of the task.
        task: The task.
        texts: Phrase of each region of the annotator's draft by ID.
        unedited: Objects of the draft that are as they were proposed, by ID.
    """
    kept = {region.region_id for region in regions}
    answered = {part_id for region in regions for part_id in ids_of(region, texts)}
    firsts = {phrase_key(region.phrase): region for region in reversed(regions)}
    leftover = []
    for key, phrase in {phrase_key(phrase): phrase for phrase in [*unmatched, *firsts]}.items():
        for object_id in region_ids_of(project, task, firsts[key].phrase if key in firsts else phrase):
            if object_id not in kept and object_id not in unedited:
                continue
            on_form = [each for each in part_ids(object_id) if each in texts and each not in answered]
            of_phrase = [each for each in on_form if phrase_key(texts[each]) == key]
            shape = firsts.get(key) or ProposedRegion(object_id, phrase, unedited[object_id].mask, 0.0)
            leftover += emptied(shape, of_phrase)
    return leftover


def unedited_regions(
    draft: Mapping[str, Any],
    phrases: Iterable[str],
    project: str,
    task: str,
    config: LabelingConfig,
    proposals: Callable[[str], Sequence[Served]],
) -> dict[str, Region]:
    """Objects of earlier answers to phrases that are in a draft as they were proposed, by ID.

    Args:
        draft: The annotator's draft.
        phrases: Phrases of the request.
        project: Project of the task.
        task: The task.
        config: The form.
        proposals: The last proposals under an ID.
    """
    ids = {region_id for phrase in phrases for region_id in region_ids_of(project, task, phrase)}
    results = [each for each in regions_by_id(draft).items() if object_id_of(each[0]) in ids]
    content = read_annotation({"result": [result for _, group in results for result in group]}, config)
    return {
        region.region_id: region
        for region in [*content.regions, *content.boxes]
        if any(_is_same(region, proposed) for proposed in proposals(region.region_id))
    }


def _is_same(region: Region, proposed: Served) -> bool:
    mask = region.mask
    return tuple(proposed.rle["size"]) == mask.shape and bool(
        np.array_equal(coco_rle_to_mask(proposed.rle), mask)
    )


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
