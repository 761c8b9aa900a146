"""Decides on fine-tunes and enqueues them: one decision at a time, one fine-tune per line and data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from redis import Redis
from rq.exceptions import DuplicateJobError
from rq.job import JobStatus

from backend.shared_redis import (
    DECISION_KEY,
    DECISION_LOCK,
    FAILURE_TTL_S,
    JOB_RETRY,
    REMOVED_RUN_KEY,
    WANTED_KEY,
    fetch_job,
)
from finetune.data.records import RefRecord, records_digest
from sspsam.version_store.lines import DEFAULT_LINE
from sspsam.version_store.store import VersionStateError
from worker.finetuning.policy import (
    EXPLICIT_TRIGGERS,
    Decision,
    Evidence,
    Trigger,
    assign_sides,
    decide,
)
from worker.finetuning.runs import (
    Run,
    find_version,
    is_of_line,
    last_version,
    learned_samples,
    prepare_run,
    run_id_for,
)
from worker.lines import Line, Side, load_split
from worker.queueing.queues import (
    RESULT_TTL_S,
    TRAINING_TIMEOUT_S,
    events_queue,
    redis_lock,
    training_queue,
)
from worker.records import sample_key
from worker.services import Services

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0
DECISION_TTL_S = 60
"""Expiry of a queued decision; every annotation and every minute enqueues another."""
BASE = "base"
"""Names the base weights where a version is asked for."""
UNDER_WAY = frozenset({JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED})


@dataclass(frozen=True)
class Request:
    """A request for a fine-tune."""

    trigger: Trigger
    start_version: str = ""
    """The version that training is to start from; empty for the serving version."""

    def to_text(self) -> str:
        """Value of WANTED_KEY."""
        return f"{self.trigger}:{self.start_version}" if self.start_version else self.trigger

    @classmethod
    def parse(cls, kept: object) -> Request | None:
        """Inverse of `to_text`; None if it is not a person's request."""
        name, _, version = (kept.decode(errors="replace") if isinstance(kept, bytes) else "").partition(":")
        return next((cls(trigger, version) for trigger in EXPLICIT_TRIGGERS if trigger == name), None)


def ask_for_decision(connection: Redis, project: int, trigger: Trigger) -> None:
    """Enqueues a decision on a fine-tune, unless one is already queued."""
    with suppress(DuplicateJobError):
        events_queue(connection).enqueue_call(
            "worker.jobs.maybe_finetune",
            kwargs={"project_id": project, "trigger": trigger},
            job_id=f"decide-{project}",
            unique=True,
            ttl=DECISION_TTL_S,
            result_ttl=0,
            failure_ttl=DECISION_TTL_S,
        )


def maybe_start_finetune(
    services: Services,
    project: int,
    trigger: Trigger,
    now: datetime | None = None,
    start_version: str = "",
) -> Decision:
    """Applies the policy to a project's line, enqueues the fine-tune if it starts, and stores the decision.

    A person's request that is deferred is stored too: later triggers then count as explicit requests.

    Args:
        services: The process's services.
        project: Label Studio's project id.
        trigger: Source of the request.
        now: Time with a zone; defaults to the current time.
        start_version: The version that training is to start from; default: the serving version.
    """
    line = services.line(project)
    request, wanted_key = Request(trigger, start_version), WANTED_KEY.format(line=line.key)
    if trigger in EXPLICIT_TRIGGERS:
        services.redis.set(wanted_key, request.to_text(), nx=trigger != "now")
    with redis_lock(services.redis, DECISION_LOCK, LOCK_WAIT_S) as locked:
        if not locked:
            return Decision(
                False, "another decision is still running; this one is made within a minute", True
            )
        asked = Request.parse(services.redis.get(wanted_key)) or request
        decision = _decide(services, line, asked, now or datetime.now(UTC))
        if not decision.deferred:
            services.redis.delete(wanted_key)
    if decision.start or trigger != "schedule":  # the schedule's "not yet" would hide a reply to a person
        note_decision(services.redis, line, asked.trigger, decision)
    return decision


def startable_version(services: Services, project: int, version_id: str) -> str:
    """The version that a fine-tune may start from.

    Raises:
        VersionError: it is unknown, or of another line.
    """
    if not version_id:
        return ""
    if version_id == BASE:
        return services.store.base_version
    line, card = services.store.line_of(project), services.store.get(version_id)
    if card.line not in (line, DEFAULT_LINE):
        raise VersionStateError(f"{version_id} belongs to {card.line}, not to {line}")
    return card.version_id


def _decide(services: Services, line: Line, request: Request, now: datetime) -> Decision:
    records = [record for project in line.projects for record in services.collection(project).records()]
    sides = _sides(services, line, records)
    decision = decide(_evidence(services, line, request, records, sides, now))
    if not decision.start:
        return decision
    unanswered = [it for project in line.projects for it in services.collection(project).unanswered()]
    run = prepare_run(
        services.settings.model_dir, services.store, line, records, sides, request.start_version, unanswered
    )
    return _enqueue_finetune(services.redis, run, request.trigger, decision)


def note_decision(connection: Redis, line: Line, trigger: str, decision: Decision) -> None:
    """Stores the last decision on a line, which explains why no fine-tune runs."""
    logger.info("%s, %s: %s", line.described, trigger, decision.reason)
    values = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "trigger": trigger, **asdict(decision)}
    connection.set(DECISION_KEY.format(line=line.key), json.dumps(values))


def _sides(services: Services, line: Line, records: Sequence[RefRecord]) -> dict[str, Side]:
    """Sides of the line's images: each project holds out its share."""
    sides = load_split(services.settings.model_dir, line.name)
    for project in line.projects:
        own = [record for record in records if record.project == project]
        corrected = {record.image_sha256 for record in own if record.has_corrected_mask}
        sides = assign_sides(sides, corrected, {record.image_sha256 for record in own} - corrected)
    return sides


def _evidence(
    services: Services,
    line: Line,
    request: Request,
    records: Sequence[RefRecord],
    sides: Mapping[str, Side],
    now: datetime,
) -> Evidence:
    corrected = [record for record in records if record.has_corrected_mask]
    images = {record.image_sha256 for record in corrected}
    store, settings = services.store, services.settings
    learned, last, digest = learned_samples(store, line), last_version(store, line), records_digest(records)
    run_id = run_id_for(line, digest, store.current(line.name), request.start_version)
    same = find_version(store, run_id)
    running = next(iter(_finetunes_under_way(services.redis, line)), None)
    return Evidence(
        trigger=request.trigger,
        corrected_masks=len(corrected),
        new_corrected_masks=sum(sample_key(record) not in learned for record in corrected),
        training_images=sum(sides[image] == "train" for image in images),
        held_out_images=sum(sides[image] == "held-out" for image in images),
        finetune_after=settings.finetune_after,
        trained_as=same.version_id if same else None,
        running=running,
        running_same=running == run_id,
        now=now,
        quiet_hours=settings.finetune_pause,
        last_ended=None if last is None else _moment(last.created_at),
        min_interval=timedelta(minutes=settings.finetune_interval_min),
    )


def _moment(text: str) -> datetime | None:
    """Parses an ISO 8601 time with a zone; None for anything else."""
    try:
        moment = datetime.fromisoformat(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else None


def _finetunes_under_way(connection: Redis, line: Line) -> list[str]:
    """Ids of a line's fine-tunes that are queued, running, or waiting for a retry."""
    queue = training_queue(connection)
    registries = (queue.started_job_registry, queue.scheduled_job_registry)
    numbers = [
        *queue.get_job_ids(),
        *(number for registry in registries for number in registry.get_job_ids()),
    ]
    return [number for number in numbers if is_of_line(number, line)]


def _enqueue_finetune(connection: Redis, run: Run, trigger: Trigger, decision: Decision) -> Decision:
    """Enqueues a run under its own id. A failed or removed run is retried only on an explicit request."""
    queue = training_queue(connection)
    if trigger not in EXPLICIT_TRIGGERS and connection.exists(REMOVED_RUN_KEY.format(run=run.run_id)):
        return Decision(
            False, "the fine-tune of exactly these labels was removed; Start Training starts it again"
        )

    def enqueue() -> None:
        queue.enqueue_call(
            "worker.jobs.finetune",
            kwargs={"project_id": run.projects[0], "run_id": run.run_id},
            job_id=run.run_id,
            unique=True,
            timeout=TRAINING_TIMEOUT_S,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            retry=JOB_RETRY,
        )

    try:
        enqueue()
    except DuplicateJobError:
        job = fetch_job(run.run_id, connection)
        if job.get_status() in UNDER_WAY:  # between queue and registry: a worker is taking it
            return Decision(False, f"a fine-tune is already queued or running: {run.run_id}")
        if trigger not in EXPLICIT_TRIGGERS:
            return Decision(
                False, "the fine-tune of exactly these labels has failed; Start Training retries it"
            )
        job.delete()
        enqueue()
    return decision
