"""Decides about fine-tunes and enqueues them: one decision at a time, one fine-tune per project and data."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict
from datetime import UTC, datetime

from redis import Redis
from rq.exceptions import DuplicateJobError
from rq.job import Job, Retry
from rq.registry import ScheduledJobRegistry, StartedJobRegistry
from rq.serializers import JSONSerializer

from finetune.records import RefRecord, records_digest
from worker.collection import sample_key
from worker.policy import EXPLICIT_TRIGGERS, Decision, Evidence, Side, Trigger, assign_sides, decide
from worker.queues import (
    DECISION_KEY,
    DECISION_LOCK,
    FAILURE_TTL_S,
    RESULT_TTL_S,
    TRAINING_TIMEOUT_S,
    events_queue,
    held,
    training_queue,
)
from worker.runs import Run, find_version, last_run, load_sides, prepare_run, run_id_for
from worker.services import Services

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0
DECISION_TTL_S = 60
"""How long a wish to decide waits in the queue; it comes again with every annotation and every minute."""
TRAINING_RETRY = Retry(max=3, interval=[10, 60, 300])
"""For a training that failed or whose worker died."""


def ask_for_decision(connection: Redis, project: int, trigger: Trigger) -> None:
    """Enqueues a decision about a fine-tune, unless one waits already."""
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


def consider(services: Services, project: int, trigger: Trigger) -> Decision:
    """Applies the policy to a project; enqueues the fine-tune if it says so, and keeps the decision."""
    with held(services.redis, DECISION_LOCK, LOCK_WAIT_S) as locked:
        if not locked:
            return Decision(False, "another decision takes its time; try again in a minute")
        records = services.collection(project).records()
        sides = _sides(services, records)
        decision = decide(_evidence(services, project, trigger, records, sides))
        if decision.go:
            run = prepare_run(services.settings.model_dir, services.store, project, records, sides)
            decision = _enqueue_finetune(services.redis, run, trigger, decision)
    if decision.go or trigger != "schedule":  # the schedule's "not yet" would hide what a person was told
        note_decision(services.redis, project, trigger, decision)
    return decision


def note_decision(connection: Redis, project: int, trigger: str, decision: Decision) -> None:
    """Keeps the last decision about a project, for those who wonder why nothing happens."""
    logger.info("project %d, %s: %s", project, trigger, decision.reason)
    values = {"at": datetime.now(UTC).isoformat(timespec="seconds"), "trigger": trigger, **asdict(decision)}
    connection.set(DECISION_KEY.format(project=project), json.dumps(values))


def _sides(services: Services, records: Sequence[RefRecord]) -> dict[str, Side]:
    corrected = {record.image_sha256 for record in records if record.corrected}
    images = {record.image_sha256 for record in records}
    return assign_sides(load_sides(services.settings.model_dir), corrected, images - corrected)


def _evidence(
    services: Services,
    project: int,
    trigger: Trigger,
    records: Sequence[RefRecord],
    sides: Mapping[str, Side],
) -> Evidence:
    corrected = [record for record in records if record.corrected]
    images = {record.image_sha256 for record in corrected}
    run, store = last_run(services.store, project), services.store
    learned = set(run.samples) if run else set()
    same = find_version(store, run_id_for(project, records_digest(records), store.current()))
    return Evidence(
        trigger=trigger,
        corrected_masks=len(corrected),
        new_corrected_masks=sum(sample_key(record) not in learned for record in corrected),
        training_images=sum(sides[image] == "train" for image in images),
        held_out_images=sum(sides[image] == "held-out" for image in images),
        finetune_after=services.settings.finetune_after,
        trained_as=same.version_id if same else None,
        running=next(iter(_finetunes_under_way(services.redis, project)), None),
    )


def _finetunes_under_way(connection: Redis, project: int) -> list[str]:
    """Ids of the fine-tunes of a project that wait, run, or wait to be tried again."""
    queue = training_queue(connection)
    registries = (StartedJobRegistry(queue=queue), ScheduledJobRegistry(queue=queue))
    numbers = [*queue.get_job_ids(), *(number for it in registries for number in it.get_job_ids())]
    return [number for number in numbers if number.startswith(f"finetune-{project}-")]


def _enqueue_finetune(connection: Redis, run: Run, trigger: Trigger, decision: Decision) -> Decision:
    """Enqueues a run under its own id. One that failed before is only tried again when a person asks."""
    queue = training_queue(connection)

    def enqueue() -> None:
        queue.enqueue_call(
            "worker.jobs.finetune",
            kwargs={"project_id": run.project, "run_id": run.run_id},
            job_id=run.run_id,
            unique=True,
            timeout=TRAINING_TIMEOUT_S,
            result_ttl=RESULT_TTL_S,
            failure_ttl=FAILURE_TTL_S,
            retry=TRAINING_RETRY,
        )

    try:
        enqueue()
    except DuplicateJobError:
        if trigger not in EXPLICIT_TRIGGERS:
            return Decision(
                False, "the fine-tune of just these labels has failed; Start Training tries it again"
            )
        Job.fetch(run.run_id, connection=connection, serializer=JSONSerializer).delete()
        enqueue()
    return decision
