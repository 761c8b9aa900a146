"""Keeps regions that an annotator has renamed: asking their old phrase again gives another region."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.assistant.annotation_masks import FRESH_S, AnnotationFinder
from backend.labelstudio.annotations import region_texts
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, is_free, region_ids_of, unused_region_ids
from backend.queries import Task
from backend.serving.batch_queue import Caller
from backend.state.displayed_masks import DisplayedMask

FROM_EDITOR = "manual"
"""Origin of the entries that Label Studio's editor sends."""


def texts_of(annotations: Iterable[Mapping[str, Any]], config: LabelingConfig) -> dict[str, str]:
    """Phrase of each region by ID; the last of several."""
    return {
        region_id: text or ""
        for annotation in annotations
        for region_id, (text, _) in region_texts(annotation, config).items()
    }


def beside_renamed(
    regions: list[ProposedRegion],
    project: str,
    task: Task,
    prompt: Mapping[str, Any],
    shown: Sequence[DisplayedMask],
    annotations: AnnotationFinder,
    config: LabelingConfig,
    caller: Caller,
    unmatched: Sequence[str] = (),
) -> tuple[list[ProposedRegion], dict[str, str], Mapping[str, Any]]:
    """Gives the masks of phrases that were asked before another ID if their region has been renamed since.

    The request's draft may lack the new name. The draft with the entry has it: the editor is about to save
    it, and only phrases asked again wait for it.

    Args:
        regions: Masks of the phrases.
        project: Project of the task.
        task: The task, as requested.
        prompt: The prompt box, as requested.
        shown: Masks displayed on the task.
        annotations: Finds the draft.
        config: The form.
        caller: Limits the time.
        unmatched: Phrases of the request for which nothing was found.

    Returns:
        The regions; the phrase of each region in the annotator's drafts; the draft, empty if there is none
        or it is not known which of several it is.
    """
    since_s = time.time() - FRESH_S
    drafted = texts_of(task.drafts, config)
    known = {mask.region_id for mask in shown if mask.shown_s >= since_s} | drafted.keys()
    ids = {region.region_id for region in regions}.union(
        *(region_ids_of(project, task.task_id, phrase) for phrase in unmatched)
    )
    before = task.drafts[0] if len(task.drafts) == 1 else {}
    if not ids & known or prompt.get("origin") != FROM_EDITOR:
        return regions, drafted, before
    draft = annotations.draft_with_prompt(task, prompt, caller)
    if draft is None:
        return regions, drafted, before
    texts = texts_of([*task.annotations, draft], config)
    return _with_unused_ids(regions, project, task.task_id, texts), texts_of([draft], config), draft


def _with_unused_ids(
    regions: list[ProposedRegion], project: str, task_id: str, texts: Mapping[str, str]
) -> list[ProposedRegion]:
    """Each region under its ID, unless a region of another phrase has it."""
    kept: list[ProposedRegion] = []
    taken = {region.region_id for region in regions if is_free(region.region_id, region.phrase, texts)}
    for region in regions:
        region_id = region.region_id
        if region_id not in taken:
            unused = unused_region_ids(project, task_id, region.phrase, texts)
            region_id = next(candidate for candidate in unused if candidate not in taken)
            taken.add(region_id)
            region = replace(region, region_id=region_id, colour=None)
        kept.append(region)
    return kept
