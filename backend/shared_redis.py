"""The Redis that backend and worker share: keys, queues and channels, the retry schedule, the connection.

All data here can be deleted: Label Studio and the version store are the sources of truth.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import suppress
from typing import Any

from redis import Redis
from redis.backoff import NoBackoff
from redis.retry import Retry as ConnectionRetry
from rq import Queue
from rq.exceptions import NoSuchJobError
from rq.executions import Execution
from rq.job import Job, Retry
from rq.serializers import JSONSerializer

logger = logging.getLogger(__name__)

TRIES = 3
"""Attempts to delete a job whose executions end meanwhile."""

EVENTS = "events"
"""Short jobs: collect an annotation, decide about a fine-tune."""
RECONCILE = "reconcile"
"""One job per project: compares its labels with Label Studio, which may take minutes."""
TRAINING = "training"
"""Fine-tunes, one at a time per worker."""
PRELABEL = "prelabel"
"""Masks for many tasks at once, with a model of the worker's own."""
QUEUES = (EVENTS, RECONCILE, TRAINING, PRELABEL)

RECONCILE_TIMEOUT_S = 600
"""More than twice what a reconciliation gives itself; see `worker.corrections.reconciling`."""
JOB_RETRY = Retry(max=3, interval=[10, 60, 300])
"""After a job failed or its worker died; long enough for a restart of Label Studio."""
FAILURE_TTL_S = 14 * 24 * 3600
"""How long a failed job is kept, as the page of jobs says."""

VERSIONS_CHANNEL = "sspsam:versions"
"""Channel: each promotion and rollback, as JSON of the `line` and the `version` that now serves it."""

# Written by the backend for its answers.
SERVED_KEY = "sspsam:served:{region}"
"""Hash: rle (COCO RLE as JSON), version, phrase. The remaining time to live tells when it was served."""
SERVED_OF_KEY = "sspsam:served-of:{project}:{task}"
"""Sorted set: IDs of the regions that were served on a task, by time."""
NOTHING_FOUND_KEY = "sspsam:nothing-found:{project}:{task}"
"""Hash: key of a phrase for which the model found nothing -> the version that was asked."""
SHOWN_KEY = "sspsam:shown:{project}:{task}"
"""Hash: <region id>/<annotator, if known> -> JSON of DisplayedMask."""
MESSAGE_SENT_KEY = "sspsam:said:{project}:{task}"
"""Set while the form shows a message about a click."""
ANSWERED_KEY = "sspsam:answered:{project}:{task}"
"""Set once a task has had an answer that may bring a notice about its picture."""
PROMPT_BOX_KEY = "sspsam:box:{project}:{task}"
"""JSON of the contents of the prompt box: id, entries."""
PROBLEMS_KEY = "sspsam:problems:{project}"
"""List of JSON of Problem, the newest first."""
LAST_WEBHOOK_KEY = "sspsam:heard"
"""Hash: project id -> time of its last webhook event, ISO 8601."""
PROJECTS_KEY = "sspsam:projects"
"""Hash: project id -> JSON of KnownProject."""

SESSION_ENDED_KEY = "sspsam:signed-out:{session}"
"""Set from the end of a console session until its cookie would have expired."""

OPERATIONS_KEY = "sspsam:operations:{project}"
"""List: IDs of the jobs that people have asked for on the page of a project, the newest first."""
REMOVED_RUN_KEY = "sspsam:removed-run:{run}"
"""Set while a fine-tune whose failed job a person has removed starts only if a person asks for it."""

# Written by the worker. `{line}` is the key of a line of versions: `sspsam.version_store.lines.line_key`.
CORRECTIONS_KEY = "sspsam:corrections:{project}"
"""Hash: annotation id -> JSON of its counts."""
SUBMITTED_KEY = "sspsam:submitted:{project}"
"""Hash: annotation id -> JSON list of the ids of proposed masks that were ever submitted in it."""
CORRECTION_SUMS_KEY = "sspsam:corrections:sums"
"""Hash: JSON of [project, version, label, name of a count] -> number."""
CORRECTION_DAYS_KEY = "sspsam:corrections:days:{project}"
"""Hash: JSON of [day, name of a count] -> number, by the day on which the annotations were last saved."""
EVENT_COUNT_KEY = "sspsam:events:{project}:{minute}"
"""Number of jobs that the events of a project have queued within a minute."""
COLLECTED_KEY = "sspsam:collected:{project}"
"""Hash: annotation id -> "<updated_at> <task id>" of its collected state."""
RECONCILED_KEY = "sspsam:reconciled:{project}"
"""JSON of how far the reconciliation of a project has come."""
SKIPPED_KEY = "sspsam:skipped:{project}"
"""Hash: <work>/<item> -> JSON of SkippedItem."""
SKIPPED_COUNTS_KEY = "sspsam:skipped-counts"
"""Hash: work -> number of items that it has left out."""
PREFETCH_FAILED_KEY = "sspsam:prefetch-failed:{project}"
"""Hash: task id -> JSON of its failed attempts."""
PREFETCHED_KEY = "sspsam:prefetched:{project}"
"""Hash: task id -> digest of the model's name and the image's address."""
DECISION_KEY = "sspsam:decision:{line}"
"""JSON of the last decision about a fine-tune: {"at", "trigger", "start", "reason", "deferred"}."""
WANTED_KEY = "sspsam:wanted:{line}"
"""Trigger of a fine-tune that was asked for and deferred, and after a colon the version that it is to start
from, if not the serving one; deleted once it is decided."""
PROGRESS_KEY = "sspsam:progress:{line}"
"""JSON of the running fine-tune: {"run", "step", "steps"}; deleted at its end."""
PRELABEL_PROGRESS_KEY = "sspsam:prelabel:{run}"
"""Hash: chunk -> JSON of its ChunkReport."""
PRELABEL_CLAIMS_KEY = "sspsam:prelabel:{run}:claims"
"""Hash: task -> chunk whose job processes it."""
RANK_KEY = "sspsam:rank:{run}"
"""Hash: task -> JSON of its Scored."""
RECORDS_LOCK = "sspsam:lock:records:{annotation}"
DECISION_LOCK = "sspsam:lock:decision"
RECONCILE_LOCK = "sspsam:lock:reconcile:{project}"
TRAINING_LOCK = "sspsam:lock:training:{preset}"

SOCKET_TIMEOUT_S = 10
REDIS_CONNECT_TIMEOUT_S = 2.0
REDIS_TIMEOUT_S = 10.0


def connect(redis_url: str) -> Redis:
    """Makes a client for redis://, rediss:// or unix:// URLs; it connects at the first command."""
    return Redis.from_url(redis_url, socket_connect_timeout=SOCKET_TIMEOUT_S)


def connect_for_requests(url: str) -> Redis:
    """A client that connects when first used, and gives up on a silent Redis."""
    client: Redis = Redis.from_url(
        url,
        socket_connect_timeout=REDIS_CONNECT_TIMEOUT_S,
        socket_timeout=REDIS_TIMEOUT_S,
        retry=ConnectionRetry(NoBackoff(), 1),  # annotators wait
    )
    return client


def announce_version(connection: Redis, line: str, version_id: str) -> None:
    """Notifies running backends that another version serves a line.

    Raises:
        RedisError: Redis does not respond; backends then notice at their next poll of the store.
    """
    connection.publish(VERSIONS_CHANNEL, json.dumps({"line": line, "version": version_id}))


class ForeignFunctionError(Exception):
    """A job names a function that this process does not run."""


class ServiceJob(Job):
    """A job as read from Redis, which is not trusted to name code.

    Stored callbacks and webhooks are dropped, so neither a worker nor RQ's cleanup of abandoned jobs imports
    or calls them. The function is imported only after a worker has allowed its module. A job that cannot be
    read counts as deleted: RQ would let its worker exit.
    """

    FOREIGN_FIELDS = frozenset(
        f"{when}_callback_{what}"
        for when in ("success", "failure", "stopped")
        for what in ("name", "timeout")
    ) | {"webhooks"}

    dropped: tuple[str, ...] = ()
    """Names of the fields that were dropped."""
    modules: Collection[str] = ()
    """Modules whose functions may be imported; set by the worker for each job."""

    @property
    def func(self) -> Callable[..., Any]:
        module = str(self.func_name).rpartition(".")[0]
        if module not in self.modules:
            raise ForeignFunctionError(f"{self.func_name!r:.100} is not a job of this process")
        function: Callable[..., Any] = super().func
        return function

    def restore(self, raw_data: Mapping[bytes, bytes]) -> None:
        names = {key: key.decode(errors="replace") for key in raw_data}
        self.dropped = tuple(
            sorted(name for key, name in names.items() if name in self.FOREIGN_FIELDS and raw_data[key])
        )
        try:
            super().restore(
                {key: value for key, value in raw_data.items() if names[key] not in self.FOREIGN_FIELDS}
            )
        except NoSuchJobError:
            raise
        except Exception as error:  # RQ's parsing of the fields raises many kinds
            logger.error("job %.100r cannot be read and is skipped: %s", self.id, type(error).__name__)
            raise NoSuchJobError(f"job {self.id!r:.100} cannot be read ({type(error).__name__})") from error

    @classmethod
    def fetch_many(
        cls, job_ids: Iterable[str], connection: Redis, serializer: Any = JSONSerializer
    ) -> list[Job | None]:
        """Reads jobs; None for each that does not exist, cannot be read, or whose ID cannot be one."""
        named = [cls._named(job_id, connection, serializer) for job_id in job_ids]
        found = [job for job in named if job is not None]
        with connection.pipeline(transaction=False) as pipeline:
            for job in found:
                pipeline.hgetall(job.key)
            stored = dict(zip(found, pipeline.execute(), strict=True))
        return [job if job is not None and job._is_restored(stored[job]) else None for job in named]

    @classmethod
    def _named(cls, job_id: str, connection: Redis, serializer: Any) -> ServiceJob | None:
        """The job with an ID; None if RQ does not accept the ID."""
        with suppress(ValueError):
            return cls(job_id, connection=connection, serializer=serializer)
        return None

    def delete(self, *args: Any, **options: Any) -> None:
        """Deletes the job, also while an execution of it ends.

        RQ reads all executions that the job's registry lists, and raises a ValueError if one is gone by then,
        or has expired.
        """
        for _ in range(TRIES):
            with suppress(ValueError):
                super().delete(*args, **options)
                return
            self._forget_ended_executions()
        super().delete(*args, **options)

    def _forget_ended_executions(self) -> None:
        registry = self.execution_registry
        for execution_id in registry.get_execution_ids():
            key = Execution(execution_id, self.id, connection=self.connection).key
            if not self.connection.exists(key):
                self.connection.zrem(registry.key, execution_id)

    def _is_restored(self, fields: Mapping[bytes, bytes]) -> bool:
        try:
            self.restore(fields)
        except NoSuchJobError:
            return False
        return True


class ServiceQueue(Queue):
    """A queue of JSON jobs, read as ServiceJob."""

    MAINTENANCE_LOCK_S = 30
    """Lifetime of the lock of a worker killed during maintenance; RQ's own is a quarter of an hour."""

    job_class = ServiceJob

    def __init__(self, name: str, connection: Redis, **options: Any) -> None:
        options = {"serializer": JSONSerializer, "job_class": ServiceJob} | options
        super().__init__(name, connection=connection, **options)

    def acquire_maintenance_lock(self) -> bool:
        key, expiry_s = self.registry_cleaning_key, self.MAINTENANCE_LOCK_S
        return bool(self.connection.set(key, 1, nx=True, ex=expiry_s))


UNDER_WAY = ("queued", "started", "scheduled", "deferred")
"""States of jobs that are running, or going to."""


def fetch_job(job_id: str, connection: Redis) -> Job:
    """Reads a job.

    Raises:
        NoSuchJobError: it does not exist, or cannot be read.
    """
    return ServiceJob.fetch(job_id, connection=connection, serializer=JSONSerializer)


def job_under_way(connection: Redis, job_id: str) -> bool:
    """Whether a job is running, or going to."""
    try:
        return fetch_job(job_id, connection).get_status() in UNDER_WAY
    except NoSuchJobError:
        return False
