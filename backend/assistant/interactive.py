"""Answers to clicks and boxes: corrects the mask under them, or creates a new one.

A request contains neither phrases nor masks of the form. Displayed masks of a task are therefore stored in
Redis with their clicks; older masks come from the annotator's draft and the task's predictions. Only the
draft identifies the annotator: if it does, masks of others are left alone.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TYPE_CHECKING, Any

from backend.errors import BackendError
from backend.images.store import ImageStore
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import Region, prompt_entries, read_annotation, region_texts
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.interactions import Interaction
from backend.labelstudio.predictions import (
    ProposedRegion,
    Result,
    fresh_id,
    prediction,
    region_results,
    status_line,
    text_result,
)
from backend.logs import request_id
from backend.metrics import Metrics
from backend.queries import Task
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from backend.serving.shared_model import ANONYMOUS
from backend.state.displayed_masks import DisplayedMask, new_mask, seen_by, target_of
from backend.state.redis_store import RedisStore
from sspsam import mask_to_coco_rle

if TYPE_CHECKING:
    from sspsam import Referent

Prediction = dict[str, Any]

INTERNAL_ERROR = "an error inside the backend: see its log for request {request_id}"
NOTHING_LEFT = "this click would remove the whole mask: click elsewhere, or use the brush"
NOTHING_THERE = "no object found there: click elsewhere, or draw a box"

logger = logging.getLogger(__name__)


def internal_error() -> str:
    """Message about an internal error, with the request ID for the operator."""
    return INTERNAL_ERROR.format(request_id=request_id.get())


class Refiner:
    """Answers gestures.

    Args:
        engine: Runs the model.
        images: Provides the images.
        memory: Stores displayed masks.
        metrics: Counts gestures.
    """

    def __init__(self, engine: Engine, images: ImageStore, redis_store: RedisStore, metrics: Metrics) -> None:
        self._engine = engine
        self._images = images
        self._redis_store = redis_store
        self._metrics = metrics

    def answer(
        self,
        project: str,
        task: Task,
        interactions: Sequence[Interaction],
        config: LabelingConfig,
        caller: Caller = ANONYMOUS,
    ) -> Prediction:
        """Answers the gestures of one request; never raises.

        Returns:
            The mask under its previous ID, with its phrase; or a message to the annotator.
        """
        try:
            return self._refine(project, task, interactions, config, caller)
        except BackendError as error:
            logger.warning("project %s, task %s: %s", project, task.task_id, error)
            self._redis_store.note_problem(project, task.task_id, str(error))
            return self._say(project, task, f"The click was not used: {error}.", config, "failed")
        except Exception:  # the annotator sees no other sign of the error
            logger.exception("project %s, task %s", project, task.task_id)
            self._redis_store.note_problem(project, task.task_id, internal_error())
            return self.report_failure(project, task, config)

    def report_failure(self, project: str, task: Task, config: LabelingConfig) -> Prediction:
        """Reports an internal error during a click to the annotator."""
        return self._say(project, task, f"The click was not used: {internal_error()}.", config, "failed")

    def _refine(
        self,
        project: str,
        task: Task,
        interactions: Sequence[Interaction],
        config: LabelingConfig,
        caller: Caller,
    ) -> Prediction:
        config.require("image", "mask")
        assert config.image is not None
        digest = self._images.digest(task.data.get(config.image.value), task.task_id)
        shown = _known_masks(self._redis_store.shown(project, task.task_id), task, config)
        target = target_of(interactions, shown)
        wanted = target or new_mask(project, task.task_id, interactions, interactions[0].label)
        wanted = replace(wanted.joined(interactions), annotator=task.annotator or wanted.annotator)
        answer = self._engine.refine(
            digest, partial(self._images.decode, digest), wanted.phrase, wanted.clicks(), caller
        )
        referent = answer.referents[0]
        assert not isinstance(referent, BackendError)
        if referent.no_target:
            reason = NOTHING_THERE if target is None else NOTHING_LEFT
            return self._say(project, task, f"{reason[0].upper()}{reason[1:]}.", config, "nothing")
        self._metrics.clicks.labels("new" if target is None else "corrected").inc()
        return self._written(project, task, wanted, referent, answer.version, config)

    def _written(
        self,
        project: str,
        task: Task,
        wanted: DisplayedMask,
        referent: Referent,
        version: str,
        config: LabelingConfig,
    ) -> Prediction:
        region = ProposedRegion(wanted.region_id, wanted.phrase, referent.mask, referent.score, wanted.label)
        self._redis_store.note_shown(
            project, task.task_id, [replace(wanted, rle=mask_to_coco_rle(referent.mask))]
        )
        results = region_results(region, config)
        if self._redis_store.pop_message_sent(project, task.task_id):
            results += self._told(project, task, "", config)
        return prediction(results, version, [referent.certainty])

    def _say(
        self, project: str, task: Task, message: str, config: LabelingConfig, outcome: str
    ) -> Prediction:
        """Returns a message to the annotator, without masks."""
        self._metrics.clicks.labels(outcome).inc()
        told = self._told(project, task, message, config)
        if not told:
            return {"result": []}
        self._redis_store.mark_message_sent(project, task.task_id)
        return prediction(told, self._engine.version_of(project))

    def _told(self, project: str, task: Task, message: str, config: LabelingConfig) -> list[Result]:
        """Writes the status line; in a form without one, the prompt box, below its phrases.

        An empty message clears it.
        """
        if config.status is not None:
            return [status_line(config.status, message)]
        if config.prompt is None:
            return []
        box_id, entries = (
            _box_in(task, config) or self._redis_store.box(project, task.task_id) or (fresh_id(), [])
        )
        phrases = [entry for entry in entries if prompt_text.plain_phrase(entry)]
        said = [prompt_text.with_failure("", message.rstrip("."))] if message else []
        return [text_result(config.prompt, box_id, [*phrases, *said])]


def _box_in(task: Task, config: LabelingConfig) -> tuple[str, list[str]] | None:
    """ID and entries of the prompt box in the requesting annotator's draft."""
    name = config.prompt.name if config.prompt else None
    for draft in task.drafts:
        results = draft.get("result")
        for result in results if isinstance(results, list) else []:
            if isinstance(result, Mapping) and result.get("from_name") == name:
                return str(result.get("id")), prompt_entries([result], config)
    return None


def _known_masks(shown: Sequence[DisplayedMask], task: Task, config: LabelingConfig) -> list[DisplayedMask]:
    """Displayed masks, with phrase and label from the draft, and masks found only in draft or prediction."""
    texts = {key: text for draft in task.drafts for key, text in region_texts(draft, config).items()}
    owners = {
        region_id: _user_id(annotation.get("completed_by"))
        for annotation in task.annotations
        for region_id in region_texts(annotation, config)
        if region_id not in texts  # the annotator's own draft
    }
    own = seen_by(task.annotator, shown, owners)
    known = {mask.region_id: _relabelled(mask, texts.get(mask.region_id)) for mask in own}
    for saved in (*task.drafts, *task.predictions):
        for region in _regions_beside(saved, known, config):
            rle = mask_to_coco_rle(region.mask)
            known[region.region_id] = DisplayedMask(region.region_id, region.phrase or "", rle, region.label)
    return list(known.values())


def _user_id(completed_by: object) -> str:
    """Label Studio writes the ID, or in some places an object with an ID."""
    return str(completed_by.get("id", "")) if isinstance(completed_by, Mapping) else str(completed_by or "")


def _relabelled(mask: DisplayedMask, text: tuple[str | None, str | None] | None) -> DisplayedMask:
    if text is None:
        return mask
    phrase, label = text
    return replace(mask, phrase=phrase or mask.phrase, label=label or mask.label)


def _regions_beside(
    saved: Mapping[str, Any], known: Mapping[str, DisplayedMask], config: LabelingConfig
) -> Iterator[Region]:
    """Regions of a draft or a prediction that are not known otherwise; only these are decoded."""
    results = saved.get("result")
    items = results if isinstance(results, list) else []
    unknown = [item for item in items if isinstance(item, Mapping) and str(item.get("id")) not in known]
    yield from read_annotation({"result": unknown}, config).regions
