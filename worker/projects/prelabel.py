"""Pre-labeling of projects: one job per chunk of tasks posts their predictions to Label Studio.

Idempotent: a task whose prediction by the serving version covers the requested phrases is skipped, so an
interrupted job or a restarted run only does the missing tasks. If a prediction exists with other phrases, or
an empty one, which Label Studio stores when a task is opened, the requested phrases are added to it.

A prediction contains masks only: annotations start from it, and one Submit saves them. The phrases for which
the model found nothing are in Redis.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

from backend.assistant.assistant import Assistant
from backend.errors import PrelabelError
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import region_texts
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.queries import Task, phrases_in
from backend.serving.batch_queue import Caller
from worker.projects.chunks import ChunkReport, each_task

POST_BATCH = 10
"""Predictions per request: a ragged mask of 12 megapixels takes several megabytes."""
SURELY_READ_BYTES = 74
"""A CLIP token is at least one byte, and 3 of the 77 are not the phrase's: a phrase this short always fits,
so torch need not be loaded to count its tokens."""

Json = dict[str, Any]
logger = logging.getLogger(__name__)


Kind = Literal["phrases", "column", "labels", "own"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class PhraseSource:
    """Source of a task's phrases."""

    kind: Kind
    phrases: tuple[str, ...] = ()
    """Phrases for every task; for kind "own", for the tasks without phrases of their own."""
    column: str = ""
    """A field of the task's data: a phrase, several with semicolons between them, or a list."""

    def phrases_of(self, data: Mapping[str, Any], config: LabelingConfig) -> list[str]:
        """The task's distinct phrases; empty if it has none."""
        entries: Iterable[str] = self.phrases
        if self.kind == "column":
            entries = prompt_text.entries(data.get(self.column))
        elif self.kind == "own":
            entries = phrases_in(data) or self.phrases
        elif self.kind == "labels":
            entries = [label.phrase for label in config.labels]
        return list(prompt_text.distinct(entries).values())

    def meant_for(self, data: Mapping[str, Any]) -> bool:
        """Whether a person gave the phrases for the task itself, or for every task of the project."""
        return self.kind != "own" or bool(phrases_in(data))

    def to_dict(self) -> Json:
        return {"kind": self.kind, "phrases": list(self.phrases), "column": self.column}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PhraseSource:
        """Parses the output of `to_dict`.

        Raises:
            PrelabelError: it is invalid.
        """
        kind, phrases, column = (values.get(name) for name in ("kind", "phrases", "column"))
        if kind not in KINDS:
            raise PrelabelError(
                f"the kind of phrase source must be one of {', '.join(KINDS)}, not {kind!r:.40}"
            )
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise PrelabelError("phrases must be a list of strings")
        return cls(kind, tuple(phrases), str(column or ""))


def run_name(command: str, project: int, source: PhraseSource) -> str:
    """Derives a run's name from its arguments: repeating the command resumes the run."""
    asked = json.dumps(source.to_dict(), sort_keys=True)
    return f"{command}-{project}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


@dataclass(frozen=True)
class TaskAnswer:
    """What is done with a task."""

    version: str = ""
    """The version of its prediction; empty if it has none."""
    prediction: Json | None = None
    """To be posted."""


class Prelabeler:
    """Segments the tasks of a chunk and posts the predictions.

    Args:
        client: Label Studio client.
        assistant: Segments phrases, as for annotators.
        project: Project of the tasks.
        source: Source of the phrases.
        claim: Claims a task for this job; returns False if another job has it.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        assistant: Assistant,
        project: int,
        source: PhraseSource,
        claim: Callable[[int], bool] = lambda task: True,
    ) -> None:
        self._client = client
        self._assistant = assistant
        self._project = project
        self._source = source
        self._claim = claim
        self._waiting: list[Json] = []
        self._version = ""
        """The version of the tasks' predictions."""

    def run(self, task_ids: Sequence[int]) -> Iterator[ChunkReport]:
        """Processes the tasks; yields the report so far whenever everything in it has been posted.

        Raises:
            LabelStudioError: it rejects predictions or does not respond; posted predictions are kept.
            LabelingConfigError: the labeling config has no brush or no image.
        """
        project = self._client.project(self._project)
        config = LabelingConfig.parse(project["label_config"])
        config.require("mask", "image")
        report = ChunkReport()

        def answer(number: int) -> tuple[ChunkReport, TaskAnswer]:
            return self._answer(number, config)

        for answered in each_task(task_ids, answer, report):
            if answered is None:
                continue
            self._version = answered.version or self._version
            if answered.prediction is not None:
                self._waiting.append(answered.prediction)
            if len(self._waiting) >= POST_BATCH:
                self._post(report)
                yield report
        self._post(report)
        self._show(project)
        yield report

    def _answer(self, number: int, config: LabelingConfig) -> tuple[ChunkReport, TaskAnswer]:
        """In one of several threads."""
        if not self._claim(number):
            return ChunkReport(skipped=1), TaskAnswer()
        task = Task.parse(self._client.task(number))
        phrases = self._source.phrases_of(task.data, config)
        version = self._assistant.version_of(str(self._project))
        if not phrases:
            return ChunkReport(skipped=1), TaskAnswer()
        nothing = self._nothing_found(task, version)
        if any(answers(prediction, phrases, version, config, nothing) for prediction in task.predictions):
            return ChunkReport(skipped=1), TaskAnswer(version)
        before = prediction_of(task, version)
        if before is not None:
            phrases = with_masked(before, phrases, config)
        caller = Caller(f"task {task.task_id}", project=str(self._project))
        outcome = self._assistant.segment_phrases(str(self._project), task, phrases, config, caller)
        report = ChunkReport()
        if outcome.failed:
            report.problems[task.task_id] = "; ".join(dict.fromkeys(outcome.failed.values()))
            if len(outcome.failed) == len(phrases):
                return report, TaskAnswer()
            outcome.failed.clear()
        prediction = self._assistant.write_prediction(str(self._project), task, outcome, config)
        report.masks = len(outcome.regions)
        if before is None or prediction["model_version"] != version:
            return report, TaskAnswer(prediction={"task": int(task.task_id), **prediction})
        self._replace(before, prediction)
        report.posted = 1
        return report, TaskAnswer(str(prediction["model_version"]))

    def _nothing_found(self, task: Task, version: str) -> set[str]:
        found = self._assistant.nothing_found(str(self._project), task.task_id)
        return {phrase for phrase, asked in found.items() if asked == version}

    def _replace(self, before: Mapping[str, Any], prediction: Json) -> None:
        """Updates the existing prediction: Label Studio uses only one per version to start an annotation.

        The score of a ranked prediction is its rank and is kept.
        """
        fields = {"result": prediction["result"]}
        if before.get("score") is None and "score" in prediction:
            fields["score"] = prediction["score"]
        self._client.update_prediction(int(before["id"]), **fields)

    def _post(self, report: ChunkReport) -> None:
        if self._waiting:
            self._client.import_predictions(self._project, self._waiting)
            report.posted += len(self._waiting)
            self._version = str(self._waiting[-1]["model_version"])
            self._waiting.clear()

    def _show(self, project: Json) -> None:
        """Makes Label Studio start annotations from the predictions, also in the "Label All Tasks" stream."""
        shown = {"show_collab_predictions": True, "model_version": self._version}
        if self._version and any(project.get(name) != value for name, value in shown.items()):
            self._client.update_project(self._project, **shown)


def check_source(source: PhraseSource, config: LabelingConfig) -> None:
    """Checks the phrases before anything is queued.

    Raises:
        PrelabelError: there is none, or the model cannot read one.
    """
    if source.kind == "column":
        return
    phrases = source.phrases_of({}, config)
    if not phrases:
        what = "the project's brushes have no labels" if source.kind == "labels" else "an empty phrase"
        raise PrelabelError(f"no phrase to segment: {what}")
    if all(len(phrase.encode()) <= SURELY_READ_BYTES for phrase in phrases):
        return
    from sspsam import PhraseError
    from sspsam.phrases import tokenize

    try:
        tokenize(phrases)
    except PhraseError as error:
        raise PrelabelError(str(error)) from error


def prediction_of(task: Task, version: str) -> Mapping[str, Any] | None:
    """The prediction of a version: Label Studio uses only one per version to start an annotation."""
    return next((one for one in task.predictions if one.get("model_version") == version), None)


def with_masked(prediction: Mapping[str, Any], phrases: Iterable[str], config: LabelingConfig) -> list[str]:
    """Phrases, after those of a prediction's masks, which it is to keep."""
    return list(prompt_text.distinct([*_masked_phrases(prediction, config), *phrases]).values())


def answers(
    prediction: Mapping[str, Any],
    phrases: Iterable[str],
    version: str,
    config: LabelingConfig,
    nothing_found: Collection[str] = (),
) -> bool:
    """Whether a prediction by this version covers all of these phrases.

    Args:
        prediction: The prediction.
        phrases: The phrases.
        version: The version.
        config: The project's labeling config.
        nothing_found: Keys of the phrases for which this version found nothing on the task.
    """
    if prediction.get("model_version") != version:
        return False
    masked = {prompt_text.phrase_key(phrase) for phrase in _masked_phrases(prediction, config)}
    return all(prompt_text.phrase_key(phrase) in masked.union(nothing_found) for phrase in phrases)


def _masked_phrases(prediction: Mapping[str, Any], config: LabelingConfig) -> list[str]:
    """The phrases of a prediction's masks."""
    return [phrase for phrase, _ in region_texts(prediction, config).values() if phrase]
