"""The order of the work: unlabeled tasks scored so that Label Studio serves first what teaches most.

Label Studio's uncertainty sampling serves the task whose prediction has the lowest score, among predictions
of the project's model_version. Each chunk of tasks is a job that answers them and posts predictions whose
score is the certainty; when all chunks are done, a last job sees all tasks together, puts near-duplicates
behind, writes the final scores, and sets the project to that order.
"""

from __future__ import annotations

import base64
import json
import logging
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from redis import Redis

from backend.assistant.assistant import Assistant
from backend.errors import LabelStudioNotFound
from backend.images.store import ImageStore
from backend.labelstudio import prompt_text
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.queries import Task
from backend.serving.engine import Engine
from backend.shared_redis import RANK_KEY
from finetune.data.records import RefRecord
from worker.projects.prelabel import ChunkReport, PhraseSource, answers, each_task

RANK_TTL_S = 7 * 24 * 3600
SAMPLING = "Uncertainty sampling"
"""Label Studio's name for its order by prediction score."""
COMMON_PHRASES = 5
"""Of those that a project's annotators have used most, looked for in tasks that name none themselves."""
SCORE_DIGITS = 6

Json = dict[str, Any]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Scored:
    """What is known about a task."""

    prediction: int
    """Label Studio's id of it."""
    version: str
    """Who answered."""
    score: float | None
    """That the prediction has now."""
    certainty: float
    """0..1, of the least certain phrase."""
    descriptor: str
    """Of its picture: float16, base64."""

    @property
    def vector(self) -> Floats:
        """(D,)."""
        return np.frombuffer(base64.b64decode(self.descriptor), np.float16).astype(np.float32)


class Scores:
    """What the jobs of a run have found, in Redis.

    Args:
        redis: That all workers share.
        run: Names the run.
    """

    def __init__(self, redis: Redis, run: str) -> None:
        self._redis = redis
        self._key = RANK_KEY.format(run=run)

    def note(self, task: int, scored: Scored) -> None:
        self._redis.hset(self._key, str(task), json.dumps(asdict(scored)))
        self._redis.expire(self._key, RANK_TTL_S)

    def all(self) -> dict[int, Scored]:
        """By task."""
        values: Mapping[bytes, bytes] = self._redis.hgetall(self._key)  # type: ignore[assignment]
        return {int(task): Scored(**json.loads(value)) for task, value in values.items()}

    def forget(self, tasks: Iterable[int]) -> None:
        gone = [str(task) for task in tasks]
        if gone:
            self._redis.hdel(self._key, *gone)


def own_phrases(records: Iterable[RefRecord], config: LabelingConfig) -> PhraseSource:
    """Looks for a task's own phrases; where it has none, for what annotators ask most, or else the labels."""
    asked = Counter(prompt_text.phrase_key(record.phrase) for record in records)
    common = tuple(phrase for phrase, _ in asked.most_common(COMMON_PHRASES))
    labels = tuple(label.written for tag in config.masks for label in tag.labels)
    return PhraseSource("own", common or labels)


class Ranker:
    """Answers the tasks of a chunk, and notes how certain the answers are.

    Args:
        client: To Label Studio.
        assistant: Answers phrases, as for annotators.
        engine: Describes pictures.
        images: Fetches them.
        scores: Where it is noted.
        project: Of the tasks.
        source: Of the phrases.
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
    ) -> None:
        self._client = client
        self._assistant = assistant
        self._engine = engine
        self._images = images
        self._scores = scores
        self._project = project
        self._source = source

    def run(self, task_ids: Sequence[int]) -> Iterator[ChunkReport]:
        """Works on the tasks; yields the report so far after each.

        Raises:
            LabelStudioError: it does not take predictions, or does not answer; what is posted stays.
            LabelingConfigError: the form has no brush, or no image.
        """
        config = LabelingConfig.parse(self._client.project(self._project)["label_config"])
        config.require("mask", "image")
        report = ChunkReport()

        def score(number: int) -> None:
            self._score(self._client.task(number), config, report)

        for _ in each_task(task_ids, score, report):
            yield report

    def _score(self, fields: Json, config: LabelingConfig, report: ChunkReport) -> None:
        task = Task.parse(fields)
        phrases = self._source.phrases_of(task.data, config)
        if not phrases or task.annotations:
            report.skipped += 1
            return
        outcome = self._assistant.segment_phrases(str(self._project), task, phrases, config)
        if not outcome.certainties:
            report.problems[task.task_id] = "; ".join(dict.fromkeys(outcome.failed.values()))
            return
        outcome.failed.clear()
        known = next(
            (
                prediction
                for prediction in task.predictions
                if answers(prediction, phrases, outcome.version, config)
            ),
            None,
        )
        if known is None:
            written = self._assistant.write_prediction(str(self._project), task, outcome, config)
            known = self._client.create_prediction(int(task.task_id), **written)
            report.posted += 1
            report.masks += len(outcome.regions)
        else:
            report.skipped += 1
        certainty = min(outcome.certainties.values())
        descriptor = self._descriptor(task, config)
        scored = Scored(int(known["id"]), outcome.version, known.get("score"), certainty, descriptor)
        self._scores.note(int(task.task_id), scored)

    def _descriptor(self, task: Task, config: LabelingConfig) -> str:
        assert config.image is not None
        digest = self._images.digest(task.data.get(config.image.value), task.task_id)
        vector = self._engine.describe(digest, partial(self._images.decode, digest))
        return base64.b64encode(vector.astype(np.float16).tobytes()).decode()


def order_tasks(client: LabelStudioClient, scores: Scores, project: int, version: str) -> int:
    """Writes the final scores of the tasks that a version has answered, and has Label Studio serve by them.

    Args:
        client: To Label Studio.
        scores: What the chunks have found.
        project: Of the tasks.
        version: That serves: answers of others are not compared with its own.

    Returns:
        How many tasks are in order.
    """
    found = {task: scored for task, scored in scores.all().items() if scored.version == version}
    if not found:
        return 0
    certainties = np.array([scored.certainty for scored in found.values()], np.float32)
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
            scores.forget([task])  # the task or its prediction was deleted meanwhile
    if ordered:
        client.update_project(project, sampling=SAMPLING, model_version=version)
    return ordered


Floats = npt.NDArray[np.float32]

MAX_PICKS = 2000
"""Tasks that are ordered one by one; those behind them are scored by what they would add after these."""

SAMPLED = 512
"""Pictures that say how far pictures are apart on the whole."""

ALIKE = 0.5
"""Of the median distance: pictures that are nearer to an earlier one teach less, in proportion."""


def learning_scores(certainties: Floats, descriptors: Floats) -> Floats:
    """Scores tasks so that, lowest first, they are in the order in which they teach most.

    The next task is always the one of the largest uncertainty times distance to the nearest that was chosen
    (greedy k-centre, weighted). That product never grows while more are chosen, so that 1 minus it ascends
    along the order, and near-duplicates of a chosen task come last.

    Args:
        certainties: (N,) how good the model's answer probably is, 0..1.
        descriptors: (N, D) of the tasks' pictures.

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
    """(N,) distance to one picture, 1 from `spread` on; all 1 where pictures do not differ at all."""
    if spread == 0:
        return np.ones(len(descriptors), np.float32)
    apart = np.linalg.norm(descriptors - to, axis=1) / spread
    return np.asarray(np.minimum(apart, 1), np.float32)


def _spread(descriptors: Floats) -> float:
    """The distance from which on pictures count as different: a part of the median distance."""
    step = max(1, len(descriptors) // SAMPLED)
    some = descriptors[::step]
    if len(some) < 2:
        return 0.0
    squares = (some**2).sum(1)
    apart = np.sqrt(np.maximum(squares[:, None] + squares - 2 * some @ some.T, 0))
    return ALIKE * float(np.median(apart[np.triu_indices(len(some), 1)]))
