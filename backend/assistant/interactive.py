"""Answers to clicks and boxes: corrects the mask under them, or creates a new one.

A request contains neither phrases nor masks of the form. `backend.assistant.annotation_masks` says which
masks are in the annotation, `backend.assistant.click_rules` what a gesture does to one:

- A click applies to the smallest mask that it is on, a box to the mask that it overlaps most. Any other
  gesture creates a new object.
- With Auto-Accept off, gestures come as a series: each request repeats the earlier ones. A click on or near a
  mask of the series applies to it; another box or a far click is about another mask. The answer contains
  every mask of the series, because the editor drops the pending ones.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

from backend.assistant.annotation_masks import AnnotationFinder, AnnotationMasks
from backend.assistant.click_series import Series, Work
from backend.assistant.colours import with_colours
from backend.assistant.messages import leftover_message, message_of_box
from backend.assistant.renamed_regions import texts_of
from backend.errors import BackendError
from backend.images.store import ImageStore
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import is_of, prompt_entries
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.interactions import Interaction
from backend.labelstudio.predictions import (
    ProposedRegion,
    Result,
    as_held,
    emptied,
    fresh_id,
    ids_of,
    is_free,
    prediction,
    region_results,
    status_line,
    text_result,
)
from backend.labelstudio.regions.parts import object_id_of
from backend.logs import request_id
from backend.metrics import Metrics
from backend.queries import Task
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from backend.serving.shared_model import ANONYMOUS, Clicks, ReadImage
from backend.state.displayed_masks import DisplayedMask, new_region_id
from backend.state.redis_store import RedisStore
from sspsam import mask_to_coco_rle
from sspsam.images.masks import BoolMask

Prediction = dict[str, Any]

MOST_GESTURES = 32
"""Clicks and boxes of one request: a series that has not been accepted."""
INTERNAL_ERROR = "an error inside the backend: see its log for request {request_id}"
TOO_MANY = (
    f"the click was not used: more than {MOST_GESTURES} clicks and boxes wait to be accepted. "
    "Accept or reject the suggestion first"
)

logger = logging.getLogger(__name__)


def internal_error() -> str:
    """Message about an internal error, with the request ID for the operator."""
    return INTERNAL_ERROR.format(request_id=request_id.get())


@dataclass
class _Form:
    """An annotator's form on a task, as far as it is known."""

    project: str
    task: Task
    config: LabelingConfig
    view: AnnotationMasks | None = None

    @property
    def annotator(self) -> str:
        return self.task.annotator if self.view is None else self.view.annotator

    @property
    def draft(self) -> str:
        """`Task.draft_version` of the annotator's draft."""
        return self.task.draft_version if self.view is None else self.view.draft

    @property
    def viewer(self) -> str:
        """Task and annotator: what one annotator is told is no business of another."""
        return f"{self.task.task_id}/{self.annotator}"

    @property
    def has_unknown_box(self) -> bool:
        """Whether the content of the prompt box is not known: the annotation has no draft yet."""
        return self.view is None or self.view.results is None

    def displayed(self, work: Work, held: ProposedRegion) -> DisplayedMask:
        """The record of a mask in this form, after the gestures of the request.

        Args:
            work: The mask and its gestures.
            held: The mask as the form holds it.
        """
        return replace(
            work.target,
            rle=mask_to_coco_rle(held.mask),
            before=work.target.rle,
            current=tuple(work.gestures),
            annotator=self.annotator,
            draft=self.draft,
            shown_s=time.time(),
            colour=held.colour,
        )

    def texts(self) -> dict[str, str]:
        """Phrase of each region in the annotator's draft by ID."""
        results = self.view.results if self.view else None
        return texts_of([{"result": list(results or ())}], self.config)

    def former_parts(self, work: Work, held: ProposedRegion, texts: Mapping[str, str]) -> list[str]:
        """IDs of the parts on the form that a mask no longer has, in a form of polygons.

        Args:
            work: The mask and its gestures.
            held: The mask as the form holds it.
            texts: Phrase of each region in the annotator's draft by ID.
        """
        kind = self.config.choice_for(held.phrase, held.label, held.control).control.kind
        if kind != "polygon" or work.is_new:
            return []
        before = as_held(replace(held, mask=work.target.mask, shapes=()), self.config)
        drafted = [each for each in texts if object_id_of(each) == held.region_id]
        known = {each for each in drafted if is_free(each, held.phrase, texts)} | set(ids_of(before, texts))
        return sorted(known - set(ids_of(held, texts)))

    @property
    def shows_status(self) -> bool:
        """Whether the status line in the annotator's draft has a message."""
        results = self.view.results if self.view else None
        return any(
            result["value"].get("text")
            for result in results or ()
            if is_of(result, self.config.status) and isinstance(result.get("value"), Mapping)
        )

    def box(self) -> tuple[str, list[str]] | None:
        """ID and entries of the prompt box in the annotator's draft."""
        results = self.view.results if self.view else None
        for result in results or ():
            if is_of(result, self.config.prompt):
                return str(result.get("id")), prompt_entries([result], self.config)
        return None


@dataclass
class _Model:
    """The model on the image of a task, and what it said of its last answer."""

    engine: Engine
    digest: str
    read_image: ReadImage
    caller: Caller
    version: str = ""
    score: float = 0.0
    certainty: float = 0.0

    def segment(self, phrase: str, clicks: Clicks) -> BoolMask:
        """As `click_rules.Segment`."""
        answer = self.engine.refine(self.digest, self.read_image, phrase, clicks, self.caller)
        referent = answer.referents[0]
        assert not isinstance(referent, BackendError)
        self.version, self.score, self.certainty = answer.version, referent.score, referent.certainty
        return referent.mask


class Refiner:
    """Answers gestures.

    Args:
        engine: Runs the model.
        images: Provides the images.
        redis_store: Stores displayed masks.
        metrics: Counts gestures.
        annotations: Finds the annotation of a gesture.
    """

    def __init__(
        self,
        engine: Engine,
        images: ImageStore,
        redis_store: RedisStore,
        metrics: Metrics,
        annotations: AnnotationFinder,
    ) -> None:
        self._engine = engine
        self._images = images
        self._redis_store = redis_store
        self._metrics = metrics
        self._annotations = annotations

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
            Each mask that they correct, under its previous ID and with its phrase, or create; and a message
            to the annotator if the last one changed nothing.
        """
        form = _Form(project, task, config)
        try:
            if len(interactions) > MOST_GESTURES:
                return self._say(form, TOO_MANY, "failed")
            return self._refine(form, interactions, caller)
        except BackendError as error:
            logger.warning("project %s, task %s: %s", project, task.task_id, error)
            self._redis_store.note_problem(project, task.task_id, str(error))
            return self._say(form, f"the click was not used: {error}", "failed")
        except Exception:  # the annotator sees no other sign of the error
            logger.exception("project %s, task %s", project, task.task_id)
            self._redis_store.note_problem(project, task.task_id, internal_error())
            return self.report_failure(project, task, config)

    def report_failure(self, project: str, task: Task, config: LabelingConfig) -> Prediction:
        """Reports an internal error during a click to the annotator."""
        message = f"the click was not used: {internal_error()}"
        return self._say(_Form(project, task, config), message, "failed")

    def _refine(self, form: _Form, interactions: Sequence[Interaction], caller: Caller) -> Prediction:
        config, task = form.config, form.task
        config.require("image", "mask")
        assert config.image is not None
        digest = self._images.digest(config.image.of(task.data), task.task_id)
        shown = self._redis_store.shown(form.project, task.task_id)
        form.view = view = self._annotations.find(task, shown, interactions, config)
        model = _Model(self._engine, digest, partial(self._images.decode, digest), caller)

        def confirm() -> AnnotationMasks:
            return self._annotations.confirmed(view, task, shown, interactions, config, caller)

        new_id = partial(new_region_id, form.project, task.task_id)
        series = Series(view, shown, confirm, model.segment, new_id)
        series.apply(interactions)
        form.view = series.view
        return self._written(form, series, model, shown)

    def _written(
        self, form: _Form, series: Series, model: _Model, shown: Sequence[DisplayedMask]
    ) -> Prediction:
        works = series.finished()
        if series.complaint and not works:
            return self._say(form, series.complaint, "nothing")
        displayed: list[DisplayedMask] = []
        results: list[Result] = []
        left: list[ProposedRegion] = []
        texts = form.texts()
        for work in works:
            assert work.mask is not None
            target = work.target
            region = ProposedRegion(
                target.region_id, target.phrase, work.mask, model.score, target.label, target.control
            )
            # A region that was never displayed, such as one drawn by hand, has the colour of its ID.
            if work.is_new or any(mask.region_id == target.region_id for mask in shown):
                seen, count = [*shown, *displayed], len(form.config.colours)
                [region] = with_colours([region], seen, count, form.annotator)
            held = as_held(region, form.config)
            gone = emptied(held, form.former_parts(work, held, texts))
            for written in (held, *gone):
                results += region_results(written, form.config, texts)
            displayed.append(form.displayed(work, held))
            left += gone
        is_new = series.last is not None and series.last.is_new and len(series.last.gestures) == 1
        outcome = "nothing" if series.complaint else "new" if is_new else "corrected"
        self._metrics.clicks.labels(outcome).inc()
        self._redis_store.note_shown(form.project, form.task.task_id, displayed)
        if series.complaint:
            results += self._message(form, series.complaint)
        elif left:
            results += self._message(form, leftover_message([region.phrase for region in left]).rstrip("."))
        elif (message := self._current_message(form)) is not None:
            results += self._told(form, message)
        return prediction(results, model.version or self._engine.version_of(form.project), [model.certainty])

    def _current_message(self, form: _Form) -> str | None:
        """What the form says once a click has been used; None to leave it as it is.

        What was said of a click ends; what is said of phrases ends with the last of them.
        """
        box = form.box()
        message = message_of_box(box[1] if box else [], form.config) if form.config.status else ""
        if self._was_told(form):
            return message
        return "" if form.shows_status and not message else None

    def _was_told(self, form: _Form) -> bool:
        """Whether the form shows a message about a click, perhaps from before its first draft."""
        viewers = {form.viewer, f"{form.task.task_id}/"}
        return any([self._redis_store.pop_message_sent(form.project, viewer) for viewer in viewers])

    def _say(self, form: _Form, message: str, outcome: str) -> Prediction:
        """Returns a message to the annotator, without masks."""
        self._metrics.clicks.labels(outcome).inc()
        told = self._message(form, message)
        return prediction(told, self._engine.version_of(form.project)) if told else {"result": []}

    def _message(self, form: _Form, message: str) -> list[Result]:
        told = self._told(form, f"{message[0].upper()}{message[1:]}.")
        if told:
            self._redis_store.mark_message_sent(form.project, form.viewer)
        return told

    def _told(self, form: _Form, message: str) -> list[Result]:
        """Writes the status line; in a form without one, the prompt box, below its phrases.

        An empty message clears it. The box is left alone if its phrases are not known.
        """
        config = form.config
        if config.status is not None:
            return [status_line(config.status, message)]
        if config.prompt is None:
            return []
        box = form.box()
        written = self._redis_store.box(form.project, form.viewer) if form.annotator else None
        if written is not None and (box is None or written.draft == form.draft):
            box = written.result_id, written.entries  # the draft has not been saved since
        if box is None and form.has_unknown_box and self._redis_store.box(form.project, form.task.task_id):
            return []  # it holds phrases, of this annotator or of another
        box_id, entries = box or (fresh_id(), [])
        phrases = [entry for entry in entries if prompt_text.plain_phrase(entry)]
        said = [prompt_text.with_failure("", message.rstrip("."))] if message else []
        return [text_result(config.prompt, box_id, [*phrases, *said])]
