"""Active learning: scores unlabeled tasks so that Label Studio serves the most informative first.

Label Studio's uncertainty sampling serves the task whose prediction has the lowest score, among predictions
of the project's model_version. Each chunk of tasks is a job that posts predictions whose score is the
certainty. Once all chunks are done, a last job ranks all tasks together, moves near-duplicates to the end,
writes the final scores, and sets the project to that order.
"""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any, cast

import numpy as np
import numpy.typing as npt
from redis import Redis

from backend.assistant.assistant import Assistant
from backend.errors import (
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)
from backend.images.store import ImageStore
from backend.labelstudio import prompt_text
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.queries import Task
from backend.serving.batch_queue import Caller
from backend.serving.engine import Engine
from backend.shared_redis import RANK_KEY
from finetune.data.records import RefRecord
from worker.projects.chunks import ChunkReport, each_task
from worker.projects.prelabel import PhraseSource, answers, prediction_of, with_masked

RANK_TTL_S = 7 * 24 * 3600
SAMPLING = "Uncertainty sampling"
"""Label Studio's name for sampling by prediction score."""
COMMON_PHRASES = 5
"""Number of a project's most used phrases that serve tasks without phrases of their own."""
SCORE_DIGITS = 6
CERTAINTY_DIGITS = 5
"""Beyond these, certainties of one picture differ between batches; of equal ones the first task leads."""

Json = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """Score and descriptor of a task."""

    prediction: int
    """Id of the prediction in Label Studio."""
    version: str
    """Version that made the prediction."""
    score: float | None
    """Current score of the prediction."""
    certainty: float
    """0..1, that of the least certain phrase."""
    descriptor: str
    """Descriptor of its image: float16, base64."""

    @property
    def vector(self) -> Floats:
        """(D,)."""
        return np.frombuffer(base64.b64decode(self.descriptor), np.float16).astype(np.float32)


class Scores:
    """Results of a run's jobs, in Redis.

    Args:
        redis: The Redis shared by all workers.
        run: Name of the run.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._key = RANK_KEY.format(run=run)

    def note(self, task: int, scored: Scored) -> None:
        self._redis.hset(self._key, str(task), json.dumps(asdict(scored)))
        self._redis.expire(self._key, RANK_TTL_S)

    def all(self) -> dict[int, Scored]:
        """By task."""
        values = cast("Mapping[bytes, bytes]", self._redis.hgetall(self._key))
        found = {}
        for task, value in values.items():
            with suppress(ValueError, TypeError):  # not in our format
                found[int(task)] = Scored(**json.loads(value))
        return found

    def forget(self, tasks: Iterable[int]) -> None:
        gone = [str(task) for task in tasks]
        if gone:
            self._redis.hdel(self._key, *gone)


def own_phrases(records: Iterable[RefRecord], config: LabelingConfig) -> PhraseSource:
    """A task's own phrases; else those that annotators use most; else the labels."""
    asked = Counter(prompt_text.phrase_key(record.phrase) for record in records)
    common = tuple(phrase for phrase, _ in asked.most_common(COMMON_PHRASES))
    labels = tuple(label.phrase for label in config.labels)
    return PhraseSource("own", common or labels)


class Ranker:
    """Segments the tasks of a chunk and records the certainty of the results.

    Args:
        client: Label Studio client.
        assistant: Answers phrases, as for annotators.
        engine: Computes image descriptors.
        images: Fetches images.
        scores: Stores the results.
        project: Project of the tasks.
        source: Source of the phrases.
        claim: Claims a task for this job; returns False if another job has it.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        assistant: Assistant,
        engine: Engine,
        images: ImageStore,
        scores: Scores,
        project: int,
        source: PhraseSource,
        claim: Callable[[int], bool] = lambda task: True,
    ) -> None:
        self._client = client
        self._assistant = assistant
        self._engine = engine
        self._images = images
        self._scores = scores
        self._project = project
        self._source = source
        self._claim = claim

    def run(self, task_ids: Sequence[int]) -> Iterator[ChunkReport]:
        """Processes the tasks; yields the report so far after each.

        Raises:
            LabelStudioError: it rejects predictions or does not respond; posted predictions are kept.
            LabelingConfigError: the labeling config has no brush or no image.
        """
        config = LabelingConfig.parse(self._client.project(self._project)["label_config"])
        config.require("mask", "image")
        report = ChunkReport()

        def score(number: int) -> tuple[ChunkReport, None]:
            if not self._claim(number):
                return ChunkReport(skipped=1), None
            return self._score(self._client.task(number), config), None

        for _ in each_task(task_ids, score, report):
            yield report

    def _score(self, fields: Json, config: LabelingConfig) -> ChunkReport:
        """In one of several threads."""
        task, report = Task.parse(fields), ChunkReport()
        phrases = self._source.phrases_of(task.data, config)
        if not phrases or task.annotations:
            return ChunkReport(skipped=1)
        meant = self._source.meant_for(task.data)
        before = prediction_of(task, self._assistant.version_of(str(self._project)))
        if before is not None and meant:
            phrases = with_masked(before, phrases, config)
        caller = Caller(f"task {task.task_id}", project=str(self._project))
        outcome = self._assistant.segment_phrases(str(self._project), task, phrases, config, caller)
        if not outcome.certainties:
            report.problems[task.task_id] = "; ".join(dict.fromkeys(outcome.failed.values()))
            return report
        outcome.failed.clear()
        certainty = min(outcome.certainties.values())
        if not meant:  # the phrases of other images only serve to score this one
            outcome.regions.clear()
            outcome.no_match.clear()
        asked = list(dict.fromkeys(region.phrase for region in outcome.regions))
        known = next(
            (
                prediction
                for prediction in task.predictions
                if answers(prediction, asked, outcome.version, config)
            ),
            None,
        )
        if known is None:
            written = self._assistant.write_prediction(str(self._project), task, outcome, config)
            if before is not None and before["model_version"] == outcome.version:
                self._client.update_prediction(int(before["id"]), result=written["result"])
                known = before
            else:
                known = self._client.create_prediction(int(task.task_id), **written)
            report.posted += 1
            report.masks += len(outcome.regions)
        else:
            report.skipped += 1
        descriptor = self._descriptor(task, config)
        scored = Scored(int(known["id"]), outcome.version, known.get("score"), certainty, descriptor)
        self._scores.note(int(task.task_id), scored)
        return report

    def _descriptor(self, task: Task, config: LabelingConfig) -> str:
        assert config.image is not None
        digest = self._images.digest(config.image.of(task.data), task.task_id)
        vector = self._engine.describe(digest, partial(self._images.decode, digest))
        return base64.b64encode(vector.astype(np.float16).tobytes()).decode()


def order_tasks(client: LabelStudioClient, scores: Scores, project: int, version: str) -> int:
    """Writes the final scores of the tasks predicted by a version; sets Label Studio to sample by them.

    Args:
        client: Label Studio client.
        scores: Results of the chunks.
        project: Project of the tasks.
        version: The serving version; results of other versions are not comparable.

    Returns:
        The number of ranked tasks.
    """
    found = {task: scored for task, scored in sorted(scores.all().items()) if scored.version == version}
    if not found:
        return 0
    certainties = np.array(
        [round(scored.certainty, CERTAINTY_DIGITS) for scored in found.values()], np.float32
    )
    finals = learning_scores(certainties, np.stack([scored.vector for scored in found.values()]))
    ordered = 0
    for (task, scored), value in zip(found.items(), finals.tolist(), strict=True):
        score = round(value, SCORE_DIGITS)
        try:
            if scored.score != score:
                client.update_prediction(scored.prediction, score=score)
            scores.note(task, Scored(**{**asdict(scored), "score": score}))
            ordered += 1
        except LabelStudioNotFound:
            scores.forget([task])  # the task or its prediction has been deleted meanwhile
        except (LabelStudioUnavailable, LabelStudioUnauthorized):
            raise
        except LabelStudioError as error:
            logger.warning("task %d is not ranked: %s", task, error)
    if ordered:
        client.update_project(project, sampling=SAMPLING, model_version=version)
    return ordered


Floats = npt.NDArray[np.float32]

MAX_PICKS = 2000
"""Number of tasks ranked one by one; the rest are scored by their gain after these."""

SAMPLED = 512
"""Number of images sampled to estimate the median distance."""

ALIKE = 0.5
"""Fraction of the median distance; an image nearer than that to an earlier one counts proportionally less."""


def learning_scores(certainties: Floats, descriptors: Floats) -> Floats:
    """Scores tasks so that ascending scores give the most informative order.

    The next task always maximizes uncertainty times distance to the nearest chosen task (weighted greedy
    k-centre). This product never grows as more tasks are chosen, so 1 minus the product ascends along the
    order, and near-duplicates of a chosen task come last.

    Args:
        certainties: (N,) estimated quality of the model's answer, 0..1.
        descriptors: (N, D) descriptors of the tasks' images.

    Returns:
        (N,) in 0..1.
    """
    uncertainties = 1 - np.clip(certainties, 0, 1).astype(np.float32)
    scores = np.ones_like(uncertainties)
    spread = _spread(descriptors)
    distances = np.ones_like(uncertainties)
    left = np.ones(len(uncertainties), bool)
    for _ in range(min(MAX_PICKS, len(uncertainties))):
        gains = np.where(left, uncertainties * distances, -1)
        pick = int(gains.argmax())
        scores[pick], left[pick] = 1 - gains[pick], False
        distances = np.minimum(distances, _distances(descriptors, descriptors[pick], spread))
    scores[left] = 1 - (uncertainties * distances)[left]
    return scores


def _distances(descriptors: Floats, to: Floats, spread: float) -> Floats:
    """(N,) distance to one image, clipped to 1 at `spread`; all 1 if the images are identical."""
    if spread == 0:
        return np.ones(len(descriptors), np.float32)
    apart = np.linalg.norm(descriptors - to, axis=1) / spread
    return np.asarray(np.minimum(apart, 1), np.float32)


def _spread(descriptors: Floats) -> float:
    """The distance at which images count as fully different: a fraction of the median distance."""
    step = max(1, len(descriptors) // SAMPLED)
    some = descriptors[::step]
    if len(some) < 2:
        return 0.0
    squares = (some**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))
    return ALIKE * float(np.median(apart[np.triu_indices(len(some), 1)]))
