"""Masks for whole projects: tasks in chunks, each a job, their predictions posted to Label Studio.

Everything can be done again: a task that has a prediction of the serving version with the wanted phrases is
left alone, so a job that was cut short, or a run that is started anew, only does what is missing. To a
prediction with other phrases, or to an empty one, which Label Studio stores when somebody opens a task, they
are added.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal, get_args

from redis import Redis

from backend.assistant.assistant import Assistant
from backend.errors import LabelStudioNotFound, PrelabelError
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import no_target_phrases, region_texts
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.queries import Task, phrases_in
from backend.shared_redis import PRELABEL_PROGRESS_KEY

CHUNK_TASKS = 100
"""Tasks of one job: a model is loaded for each."""
POST_BATCH = 10
"""Predictions in one request: a ragged mask of 12 megapixels is some megabytes."""
SURELY_READ_BYTES = 74
"""A CLIP token is a byte at least, and three of 77 are not the phrase's: so short a one need not be counted,
for which torch would be loaded."""
PROGRESS_TTL_S = 7 * 24 * 3600

Json = dict[str, Any]
logger = logging.getLogger(__name__)


Kind = Literal["phrases", "column", "labels", "own"]
KINDS: tuple[Kind, ...] = get_args(Kind)


@dataclass(frozen=True)
class PhraseSource:
    """Where the phrases of a task come from."""

    kind: Kind
    phrases: tuple[str, ...] = ()
    """The same for every task; of kind "own", for those that name none themselves."""
    column: str = ""
    """A field of the task's data: a phrase, several with semicolons between them, or a list."""

    def phrases_of(self, data: Mapping[str, Any], config: LabelingConfig) -> list[str]:
        """The phrases to look for, without repetitions; none where the task has none."""
        entries: Iterable[str] = self.phrases
        if self.kind == "column":
            entries = prompt_text.entries(data.get(self.column))
        elif self.kind == "own":
            entries = phrases_in(data) or self.phrases
        elif self.kind == "labels":
            entries = [label.written for tag in config.masks for label in tag.labels]
        return list(prompt_text.distinct(entries).values())

    def to_dict(self) -> Json:
        return {"kind": self.kind, "phrases": list(self.phrases), "column": self.column}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> PhraseSource:
        """Reads what `to_dict` has written.

        Raises:
            PrelabelError: it is something else.
        """
        kind, phrases, column = (values.get(name) for name in ("kind", "phrases", "column"))
        if kind not in KINDS:
            raise PrelabelError(f"phrases come from one of {', '.join(KINDS)}, not {kind!r:.40}")
        if not isinstance(phrases, list) or not all(isinstance(phrase, str) for phrase in phrases):
            raise PrelabelError("phrases are a list of texts")
        return cls(kind, tuple(phrases), str(column or ""))


@dataclass
class ChunkReport:
    """What became of the tasks of a chunk."""

    tasks: int = 0
    """Done with, one way or another."""
    posted: int = 0
    masks: int = 0
    skipped: int = 0
    """Had their prediction, or have no phrase."""
    problems: dict[str, str] = field(default_factory=dict)
    """Task id -> why it got no prediction."""

    def plus(self, other: ChunkReport) -> ChunkReport:
        return ChunkReport(
            self.tasks + other.tasks,
            self.posted + other.posted,
            self.masks + other.masks,
            self.skipped + other.skipped,
            {**self.problems, **other.problems},
        )


class ChunkProgress:
    """What the jobs of a run have done so far, in Redis.

    Args:
        redis: That all workers share.
        run: Names the run.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._key = PRELABEL_PROGRESS_KEY.format(run=run)

    def note(self, chunk: str, report: ChunkReport) -> None:
        self._redis.hset(self._key, chunk, json.dumps(asdict(report)))
        self._redis.expire(self._key, PROGRESS_TTL_S)

    def forget(self, chunk: str) -> None:
        self._redis.hdel(self._key, chunk)

    def report(self, chunks: Iterable[str]) -> ChunkReport:
        """Adds up the reports of chunks; those that have not begun count nothing."""
        total = ChunkReport()
        names = list(chunks)
        values: list[Any] = self._redis.hmget(self._key, names) if names else []
        for value in values:
            if value is not None:
                total = total.plus(ChunkReport(**json.loads(value)))
        return total


def run_name(command: str, project: int, source: PhraseSource) -> str:
    """Names a run by what it asks for: the same command again goes on with it."""
    asked = json.dumps(source.to_dict(), sort_keys=True)
    return f"{command}-{project}-{hashlib.sha256(asked.encode()).hexdigest()[:12]}"


def each_task(task_ids: Iterable[int], work: Callable[[int], None], report: ChunkReport) -> Iterator[None]:
    """Works on tasks, and comes back after each; one that was deleted meanwhile is skipped."""
    for number in task_ids:
        report.tasks += 1
        try:
            work(number)
        except LabelStudioNotFound:
            report.skipped += 1
        yield


def chunks_of(task_ids: Iterable[int], size: int = CHUNK_TASKS) -> Iterator[list[int]]:
    """Cuts task ids into chunks, in order."""
    numbers = iter(task_ids)
    while chunk := list(islice(numbers, size)):
        yield chunk


def chunk_name(task_ids: Sequence[int]) -> str:
    """Names a chunk by the tasks that are in it."""
    content = ",".join(map(str, task_ids))
    return f"{task_ids[0]}-{hashlib.sha256(content.encode()).hexdigest()[:12]}"


class Prelabeler:
    """Answers the tasks of a chunk and posts the predictions.

    Args:
        client: To Label Studio.
        assistant: Answers phrases, as for annotators.
        project: Of the tasks.
        source: Of the phrases.
    """

    def __init__(
        self, client: LabelStudioClient, assistant: Assistant, project: int, source: PhraseSource
    ) -> None:
        self._client = client
        self._assistant = assistant
        self._project = project
        self._source = source
        self._waiting: list[Json] = []
        self._version = ""
        """Whose predictions the tasks have."""

    def run(self, task_ids: Sequence[int]) -> Iterator[ChunkReport]:
        """Works on the tasks; yields the report so far whenever everything in it has been posted.

        Raises:
            LabelStudioError: it does not take predictions, or does not answer; what is posted stays.
            LabelingConfigError: the form has no brush, or no image.
        """
        project = self._client.project(self._project)
        config = LabelingConfig.parse(project["label_config"])
        config.require("mask", "image")
        report = ChunkReport()

        def answer(number: int) -> None:
            self._answer(self._client.task(number), config, report)

        for _ in each_task(task_ids, answer, report):
            if len(self._waiting) >= POST_BATCH:
                self._post(report)
                yield report
        self._post(report)
        self._show(project)
        yield report

    def _answer(self, fields: Json, config: LabelingConfig, report: ChunkReport) -> None:
        task = Task.parse(fields)
        phrases = self._source.phrases_of(task.data, config)
        version = self._assistant.version
        if not phrases:
            report.skipped += 1
            return
        if any(answers(prediction, phrases, version, config) for prediction in task.predictions):
            self._version = version
            report.skipped += 1
            return
        before = next(
            (prediction for prediction in task.predictions if prediction.get("model_version") == version),
            None,
        )
        if before is not None:
            phrases = list(prompt_text.distinct([*_phrases_of(before, config), *phrases]).values())
        outcome = self._assistant.segment_phrases(str(self._project), task, phrases, config)
        if outcome.failed:
            report.problems[task.task_id] = "; ".join(dict.fromkeys(outcome.failed.values()))
            if len(outcome.failed) == len(phrases):
                return
            outcome.failed.clear()
        prediction = self._assistant.write_prediction(str(self._project), task, outcome, config)
        report.masks += len(outcome.regions)
        if before is not None and prediction["model_version"] == version:
            self._replace(before, prediction, report)
        else:
            self._waiting.append({"task": int(task.task_id), **prediction})

    def _replace(self, before: Mapping[str, Any], prediction: Json, report: ChunkReport) -> None:
        """Label Studio begins an annotation with one of a version's predictions: there is to be one.

        The score of one that has been ranked is its place, and stays.
        """
        fields = {"result": prediction["result"]}
        if before.get("score") is None and "score" in prediction:
            fields["score"] = prediction["score"]
        self._client.update_prediction(int(before["id"]), **fields)
        self._version = str(prediction["model_version"])
        report.posted += 1

    def _post(self, report: ChunkReport) -> None:
        if self._waiting:
            self._client.import_predictions(self._project, self._waiting)
            report.posted += len(self._waiting)
            self._version = str(self._waiting[-1]["model_version"])
            self._waiting.clear()

    def _show(self, project: Json) -> None:
        """Has Label Studio begin annotations with the predictions, in the stream of all tasks, too."""
        shown = {"show_collab_predictions": True, "model_version": self._version}
        if self._version and any(project.get(name) != value for name, value in shown.items()):
            self._client.update_project(self._project, **shown)


def check_source(source: PhraseSource, config: LabelingConfig) -> None:
    """Finds out before anything is queued that phrases cannot be used.

    Raises:
        PrelabelError: there is none, or one that the model cannot read.
    """
    if source.kind == "column":
        return
    phrases = source.phrases_of({}, config)
    if not phrases:
        what = "no label of the project's brushes" if source.kind == "labels" else "an empty phrase"
        raise PrelabelError(f"nothing to look for: {what}")
    if all(len(phrase.encode()) <= SURELY_READ_BYTES for phrase in phrases):
        return
    from sspsam import PhraseError
    from sspsam.phrases import tokenize

    try:
        tokenize(phrases)
    except PhraseError as error:
        raise PrelabelError(str(error)) from error


def answers(
    prediction: Mapping[str, Any], phrases: Iterable[str], version: str, config: LabelingConfig
) -> bool:
    """Whether a prediction is the version's answer to all of these phrases."""
    if prediction.get("model_version") != version:
        return False
    found = {prompt_text.phrase_key(phrase) for phrase in _phrases_of(prediction, config)}
    return all(prompt_text.phrase_key(phrase) in found for phrase in phrases)


def _phrases_of(prediction: Mapping[str, Any], config: LabelingConfig) -> list[str]:
    """What a prediction answers, with a mask or without."""
    masked = [phrase for phrase, _ in region_texts(prediction, config).values() if phrase]
    return [*masked, *no_target_phrases(prediction, config)]
