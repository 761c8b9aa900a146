"""Keeps regions that an annotator has renamed: asking their old phrase again gives another region."""

from __future__ import annotations

import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from backend.assistant.annotation_masks import FRESH_S, AnnotationFinder
from backend.labelstudio.annotations import region_texts
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import ProposedRegion, unused_region_id
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
) -> list[ProposedRegion]:
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
    """
    since_s = time.time() - FRESH_S
    known = {mask.region_id for mask in shown if mask.shown_s >= since_s} | texts_of(
        task.drafts, config
    ).keys()
    again = any(region.region_id in known for region in regions)
    if not again or prompt.get("origin") != FROM_EDITOR:
        return regions
    draft = annotations.draft_with_prompt(task, prompt, caller)
    if draft is None:
        return regions
    texts = texts_of([*task.annotations, draft], config)
    ids = [unused_region_id(project, task.task_id, region.phrase, texts) for region in regions]
    return [replace(region, region_id=new) for region, new in zip(regions, ids, strict=True)]
