"""Answers phrases: from the content of an annotator's form to the prediction that Label Studio shows.

Interactive answers never fail: Label Studio hides errors from the annotator, so errors are written on the
form. A phrase with a mask moves from the prompt box to its region. One for which the model found nothing
stays in the box, with a note, until the annotator paints the object or confirms that it is absent: then it
moves to the box of confirmed absences. One that could not be answered stays with the reason behind it and is
retried with the next phrase. Clicks and boxes are handled by `backend.assistant.interactive`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping
from functools import partial
from typing import Any

from backend.assistant.annotation_masks import AnnotationFinder, DraftSource
from backend.assistant.colours import with_colours
from backend.assistant.interactive import Refiner, internal_error
from backend.assistant.object_regions import drawn_in, leftover_regions, regions_of, unedited_regions
from backend.assistant.outcomes import Outcome, Prediction, result_of, write_answer
from backend.assistant.photograph_notice import PhotographNotice
from backend.assistant.prompt_box import PromptBox, read_box
from backend.assistant.renamed_regions import beside_renamed, texts_of
from backend.errors import (
    BackendError,
    ImageFetchError,
    LabelingConfigError,
    LabelStudioError,
    ModelUnavailableError,
    PhraseRefusedError,
)
from backend.images.store import ImageStore
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import absent_entries, prompt_entries
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.interactions import read_interactions
from backend.labelstudio.predictions import (
    ProposedRegion,
    as_held,
    prediction,
    region_results,
)
from backend.metrics import Metrics
from backend.queries import PredictQuery, Results, Task, instances_together, least_presence
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from backend.serving.shared_model import ReadImage
from backend.state.displayed_masks import DisplayedMask
from backend.state.redis_store import RedisStore, WrittenBox
from sspsam import mask_to_coco_rle

BATCH_PART = 0.85
"""Fraction of Label Studio's timeout for a batch; tasks not reached by then are requested again."""
PASSING = (ImageFetchError, LabelStudioError, ModelUnavailableError)
"""Transient errors: a batch then stores nothing, so that Label Studio retries."""
EMPTY_PHRASE = "the phrase is empty: type what to look for, such as: the dog on the left"
MAX_PHRASES = 500
"""Of one task in one request: tokenising them holds up other requests."""
TOO_MANY_PHRASES = f"there are more than {MAX_PHRASES} phrases: ask for the others afterwards"

logger = logging.getLogger(__name__)


class Assistant:
    """Answers predict requests.

    Args:
        engine: Runs the model.
        images: Fetches images.
        redis_store: Stores earlier answers.
        metrics: Counts phrases.
        timeout_s: How long Label Studio waits for an answer.
        label_studio: Label Studio's API, for the drafts that clicks are in.
        photographs: Warns of pictures that the weights do not know.
    """

    def __init__(
        self,
        engine: Engine,
        images: ImageStore,
        redis_store: RedisStore,
        metrics: Metrics,
        timeout_s: float,
        label_studio: DraftSource,
        photographs: PhotographNotice,
    ) -> None:
        self._engine = engine
        self._images = images
        self._redis_store = redis_store
        self._metrics = metrics
        self._timeout_s = timeout_s
        self._photographs = photographs
        self._annotations = AnnotationFinder(label_studio)
        self._refiner = Refiner(engine, images, redis_store, metrics, self._annotations)

    def answer(self, query: PredictQuery) -> list[Prediction | list[Prediction]]:
        """Returns at most one prediction per task, in order, or an empty list for all."""
        try:
            config = LabelingConfig.parse(query.label_config)
        except LabelingConfigError as error:
            logger.warning("project %s: %s", query.project_id, error)
            return [{"result": []} for _ in query.tasks]
        since_s = time.monotonic()
        if query.context is None:
            until_s = since_s + BATCH_PART * self._timeout_s
            return self._answer_batch(query, config, Caller(query.project_id, until_s, query.project_id))
        context, until_s = query.context, since_s + self._timeout_s
        return [
            self._answer_annotator(
                query.project_id,
                task,
                context,
                config,
                Caller(f"{query.project_id}/{task.task_id}/{task.annotator}", until_s, query.project_id),
            )
            for task in query.tasks
        ]

    def report_failure(self, query: PredictQuery) -> list[Prediction | list[Prediction]]:
        """Answers instead of `answer` if that, or encoding its answer as JSON, has failed.

        Annotators see the reason in their form. A batch gets no predictions, so Label Studio retries.
        """
        if query.context is None:
            return [[] for _ in query.tasks]
        try:
            config = LabelingConfig.parse(query.label_config)
        except LabelingConfigError:
            return [{"result": []} for _ in query.tasks]
        context, project = query.context, query.project_id
        return [self._failure_of(project, task, context, config) for task in query.tasks]

    def _failure_of(self, project: str, task: Task, context: Results, config: LabelingConfig) -> Prediction:
        self._redis_store.note_problem(project, task.task_id, internal_error())
        prompt = result_of(context, config.prompt)
        if prompt is not None:
            entries = [_valid_text(entry) for entry in prompt_entries([prompt], config)]
            box = read_box(entries, deniable=False)
            outcome = Outcome(
                self._engine.version_of(project), failed=dict.fromkeys(box.asked, internal_error())
            )
            self._metrics.phrases.labels("failed").inc(len(box.asked))
            return write_answer(outcome, box, prompt, context, config)
        if read_interactions(context, config):
            return self._refiner.report_failure(project, task, config)
        return {"result": []}

    def version_of(self, project: str) -> str:
        """The version that serves a project."""
        return self._engine.version_of(project)

    def _answer_annotator(
        self, project: str, task: Task, context: Results, config: LabelingConfig, caller: Caller
    ) -> Prediction:
        prompt = result_of(context, config.prompt)
        if prompt is None:  # clicks, other changes of the form, or the call after each submit
            interactions = read_interactions(context, config)
            if not interactions:
                return {"result": []}
            return self._refiner.answer(project, task, interactions, config, caller)
        entries = prompt_text.entries(prompt["value"].get("text")) if _has_text(prompt) else []
        if not entries:
            return self._answer_blank(project, prompt, context, config)
        box = read_box(
            entries,
            prompt_text.distinct(absent_entries(context, config)),
            drawn_in(task.drafts, entries, config),
            deniable=config.absent is not None,
        )
        if not box.asked and not box.denied:  # another control has sent the request
            return {"result": []}
        outcome = Outcome(self._engine.version_of(project))
        if box.asked:
            outcome = self.segment_phrases(project, task, list(box.asked), config, caller, for_annotator=True)
            shown = self._redis_store.shown(project, task.task_id)
            outcome.regions, outcome.texts, draft = beside_renamed(
                outcome.regions,
                project,
                task,
                prompt,
                shown,
                self._annotations,
                config,
                caller,
                outcome.no_match,
            )
            outcome.regions = with_colours(outcome.regions, shown, len(config.colours), task.annotator)
            leftover = self._leftover(project, task, draft, outcome, config)
            outcome.leftover = with_colours(leftover, shown, len(config.colours), task.annotator)
        self._metrics.phrases.labels("denied").inc(len(box.denied))
        self._note(project, task, outcome)
        answer = write_answer(outcome, box, prompt, context, config)
        written = result_of(answer["result"], config.prompt)
        if written is not None and config.status is None:  # a click's failure is then shown in the box
            content = WrittenBox(str(written["id"]), written["value"]["text"], task.draft_version)
            for place in (task.task_id, f"{task.task_id}/{task.annotator}"):
                self._redis_store.note_box(project, place, content)
        return answer

    def _leftover(
        self, project: str, task: Task, draft: Mapping[str, Any], outcome: Outcome, config: LabelingConfig
    ) -> list[ProposedRegion]:
        """Regions of earlier answers that are replaced by nothing."""
        phrases = [*outcome.no_match, *(region.phrase for region in outcome.regions)]
        unedited = unedited_regions(
            draft, dict.fromkeys(phrases), project, task.task_id, config, self._redis_store.proposals
        )
        return leftover_regions(
            outcome.regions, outcome.no_match, project, task.task_id, outcome.texts, unedited
        )

    def _answer_blank(
        self, project: str, prompt: Mapping[str, Any], context: Results, config: LabelingConfig
    ) -> Prediction:
        """An empty prompt box needs no answer; a blank phrase in it gets a message."""
        if not _has_text(prompt):
            return {"result": []}
        outcome = Outcome(self._engine.version_of(project), failed={"": EMPTY_PHRASE})
        return write_answer(outcome, PromptBox(), prompt, context, config)

    def _answer_batch(
        self, query: PredictQuery, config: LabelingConfig, caller: Caller
    ) -> list[Prediction | list[Prediction]]:
        known = self._redis_store.projects.get(query.project_id)
        extra_params = known.extra_params if known else None
        answers: list[Prediction | list[Prediction]] = []
        for task in query.tasks:
            phrases = task.phrases(extra_params)
            if phrases:
                answers.append(self._prelabel(query.project_id, task, phrases, config, caller))
                continue
            answers.append(prediction([], self._engine.version_of(query.project_id)))
            if len(query.tasks) == 1:  # the task was opened, so phrases will follow
                self._embed_ahead(task, config)
        return answers

    def _prelabel(
        self, project: str, task: Task, phrases: list[str], config: LabelingConfig, caller: Caller
    ) -> Prediction | list[Prediction]:
        if not caller.left_s:
            return []
        outcome = self.segment_phrases(project, task, phrases, config, caller)
        if outcome.passing:
            return []
        try:
            return self.write_prediction(project, task, outcome, config)
        except Exception:  # the other tasks of the batch keep their answers
            logger.exception("project %s, task %s", project, task.task_id)
            self._redis_store.note_problem(project, task.task_id, internal_error())
            return []

    def _embed_ahead(self, task: Task, config: LabelingConfig) -> None:
        """Starts embedding a task's image in the background."""
        if config.image is None:
            return
        value = config.image.of(task.data)

        def find() -> tuple[str, ReadImage]:
            digest = self._images.digest(value, task.task_id)
            return digest, partial(self._images.decode, digest)

        self._engine.prefetch(find)

    def write_prediction(
        self, project: str, task: Task, outcome: Outcome, config: LabelingConfig
    ) -> Prediction:
        """Writes the masks of a task's phrases as a prediction, and records what was proposed and not found.

        Annotations start from predictions, and one Submit saves all of it: phrases without a mask are left
        out, since no person has looked for them.
        """
        self._note(project, task, outcome)
        results = [result for region in outcome.regions for result in region_results(region, config)]
        return prediction(results, outcome.version, list(outcome.certainties.values()))

    def segment_phrases(
        self,
        project: str,
        task: Task,
        phrases: list[str],
        config: LabelingConfig,
        caller: Caller | None = None,
        for_annotator: bool = False,
    ) -> Outcome:
        """Segments phrases in a task's image by the project's version; errors are reported in the outcome.

        Unsure masks are for annotators, who are told. A prediction's mask may be unseen.
        """
        try:
            outcome = self._find(
                project, task, phrases, config, caller or Caller(project=project), for_annotator
            )
        except BackendError as error:
            logger.warning("project %s, task %s: %s", project, task.task_id, error)
            self._redis_store.note_problem(project, task.task_id, str(error))
            reasons = dict.fromkeys(phrases, str(error))
            outcome = Outcome(
                self._engine.version_of(project), failed=reasons, passing=isinstance(error, PASSING)
            )
        except Exception:  # our message is the only sign that an annotator sees
            logger.exception("project %s, task %s", project, task.task_id)
            self._redis_store.note_problem(project, task.task_id, internal_error())
            reasons = dict.fromkeys(phrases, internal_error())
            outcome = Outcome(self._engine.version_of(project), failed=reasons, passing=True)
        self._metrics.phrases.labels("mask").inc(len({region.phrase for region in outcome.regions}))
        self._metrics.phrases.labels("no_match").inc(len(outcome.no_match))
        self._metrics.phrases.labels("failed").inc(len(outcome.failed))
        return outcome

    def _find(
        self,
        project: str,
        task: Task,
        phrases: list[str],
        config: LabelingConfig,
        caller: Caller,
        for_annotator: bool,
    ) -> Outcome:
        config.require("image", "mask")
        assert config.image is not None
        digest = self._images.digest(config.image.of(task.data), task.task_id)
        refused = phrases[MAX_PHRASES:]
        phrases = phrases[:MAX_PHRASES]
        known = self._redis_store.projects.get(project)
        together = instances_together(known.extra_params if known else None)
        read_image = partial(self._images.decode, digest)
        least = least_presence(known.extra_params) if known and for_annotator else None
        answer = self._engine.predict(digest, read_image, phrases, caller, not together, least)
        shown = self._redis_store.shown(project, task.task_id)
        outcome = Outcome(answer.version, failed=dict.fromkeys(refused, TOO_MANY_PHRASES))
        if for_annotator:
            outcome.notice = self._photographs.of(project, task.task_id, digest, answer.version)
        texts = texts_of([*task.annotations, *task.drafts], config)
        for phrase, referent in zip(phrases, answer.referents, strict=True):
            if isinstance(referent, PhraseRefusedError):
                outcome.failed[phrase] = str(referent)
                continue
            outcome.certainties[phrase] = referent.certainty
            outcome.readings[phrase] = referent.reading
            if referent.is_unsure:
                outcome.unsure[phrase] = referent.certainty
            if referent.no_target:
                outcome.no_match.append(phrase)
            else:
                regions = regions_of(referent, project, task.task_id, texts, shown, together)
                outcome.regions += [as_held(region, config) for region in regions]
        outcome.regions = with_colours(outcome.regions, shown, len(config.colours), task.annotator)
        return outcome

    def _note(self, project: str, task: Task, outcome: Outcome) -> None:
        """Records the served masks, for the worker's detection of corrections and for clicks."""
        proposed = [(region, mask_to_coco_rle(region.mask)) for region in outcome.regions]
        emptied = [(region, mask_to_coco_rle(region.mask)) for region in outcome.leftover]
        self._redis_store.note_served(proposed, outcome.version, project, task.task_id)
        found = [region.phrase for region in outcome.regions]
        self._redis_store.note_nothing_found(project, task.task_id, outcome.no_match, found, outcome.version)
        shown = [
            DisplayedMask(
                region.region_id,
                region.phrase,
                rle,
                annotator=task.annotator,
                draft=task.draft_version,
                shown_s=time.time(),
                colour=region.colour,
            )
            for region, rle in [*proposed, *emptied]
        ]
        self._redis_store.note_shown(project, task.task_id, shown)

    def nothing_found(self, project: str, task_id: str) -> dict[str, str]:
        """Keys of the phrases for which the model found nothing on a task, with the version asked."""
        return self._redis_store.nothing_found(project, task_id)


def _valid_text(text: str) -> str:
    """Replaces each lone surrogate, valid in JSON but not in UTF-8, by a question mark."""
    return text.encode("utf-8", "replace").decode()


def _has_text(prompt: Mapping[str, Any]) -> bool:
    value = prompt.get("value")
    return isinstance(value, Mapping) and bool(value.get("text"))
