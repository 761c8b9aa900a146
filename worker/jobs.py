"""The jobs. Each is a plain function of ids, safe to run twice, and returns a small dict.

The backend enqueues by name: `collect_annotation` and `forget_annotations` for Label Studio's webhook events,
`maybe_finetune` for "Start Training", `reconcile_projects` when it starts. The scheduler enqueues
`check_projects`, `reconcile_projects` and `prefetch_projects`. `reconcile_project` is enqueued by
`reconcile_projects`, `finetune` by `maybe_finetune` alone, `prelabel_chunk` by `sspsam prelabel`,
`rank_chunk` and `order_project` by `sspsam rank`, `prefetch_chunk` by `sspsam prefetch` and
`prefetch_projects`. Event payloads are not trusted: only their ids are used, and annotations are read again
from Label Studio.

If Label Studio does not respond, a job is retried (`LABEL_STUDIO_RETRY`); events missed nevertheless are
found by the next reconciliation.
"""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict
from functools import partial
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, validate_call
from redis import Redis, RedisError
from rq.exceptions import NoSuchJobError
from rq.job import Retry

from backend.errors import (
    BackendError,
    ImageFetchError,
    LabelStudioNotFound,
    LabelStudioUnavailable,
)
from backend.settings import Settings
from backend.shared_redis import PROGRESS_KEY, RECONCILE, TRAINING_LOCK, announce_version, fetch_job
from backend.state.skipped_items import reason_of
from sspsam.version_store.store import VersionError
from worker.corrections import collector
from worker.corrections.deleted_projects import drop_if_deleted, note_existing
from worker.corrections.reconciling import reconcile
from worker.finetuning.decisions import (
    ask_for_decision,
    maybe_start_finetune,
    note_decision,
    startable_version,
)
from worker.finetuning.policy import EXPLICIT_TRIGGERS, Decision, Trigger
from worker.finetuning.runs import (
    Run,
    base_of,
    discard_left_runs,
    discard_run,
    find_version,
    run_folder,
    why_outdated,
)
from worker.finetuning.training import RunError, judge_candidate, perform
from worker.isolation import left_out
from worker.lines import Line
from worker.projects.active_learning import Ranker, Scores, order_tasks
from worker.projects.chunks import ChunkProgress, ChunkReport, TaskClaims
from worker.projects.model import running_engine, running_service
from worker.projects.prefetch import PREFETCH, Prefetched, Prefetcher, queue_next_tasks
from worker.projects.prelabel import PhraseSource, Prelabeler
from worker.queueing.queues import ask_for_reconciliation, redis_lock
from worker.services import Services

logger = logging.getLogger(__name__)

_Job = TypeVar("_Job", bound=Callable[..., Any])
JobResult = dict[str, Any]
Number = Annotated[int, Field(ge=0, lt=2**63)]
"""An id in Label Studio."""
Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]{0,199}$")]
"""Name of a run; also the name of its folder."""
checked: Callable[[_Job], _Job] = validate_call(config=ConfigDict(strict=True))
"""Validates arguments from Redis: a job with invalid ones fails before it starts."""

LABEL_STUDIO_RETRY_S = (5, 15, 60, 120, 300, 600)
LABEL_STUDIO_RETRY = Retry(max=len(LABEL_STUDIO_RETRY_S), interval=list(LABEL_STUDIO_RETRY_S))
"""Covers 15 minutes and more: a restart or an upgrade."""
TRAINING_BUSY_RETRY = Retry(max=10_000, interval=20)
"""For a fine-tune that waits for another project's fine-tune."""
CONTINUE_RETRY = Retry(max=10_000, interval=0)
"""For a reconciliation that has used up its time: it goes to the end of the queue."""
DECIDE = "decide"
"""Kind of work under which projects without a decision are recorded."""
ODD_DATA = (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, RecursionError)
"""Errors of data that are not what they should be."""
PROGRESS_EVERY_S = 2.0
PROGRESS_TTL_S = 120


@checked
def collect_annotation(
    project_id: Number, annotation_id: Number, task_id: Number | None = None
) -> JobResult | Retry:
    """Makes the records of an annotation from its current state in Label Studio.

    Args:
        project_id: Project named by the event; the one stored in Label Studio is authoritative.
        annotation_id: Id of the annotation.
        task_id: Task named by the event; not used.
    """
    services = Services(Settings())
    try:
        collected = collector.collect(services, project_id, annotation_id)
    except (LabelStudioUnavailable, ImageFetchError, collector.BusyError) as error:
        logger.warning("annotation %d will be retried: %s", annotation_id, error)
        return LABEL_STUDIO_RETRY
    except ODD_DATA as error:
        services.skipped.note(project_id, collector.COLLECT, f"annotation {annotation_id}", error)
        return asdict(collector.Collected(project_id, annotation_id, problem=reason_of(error)))
    if collected.corrected:
        ask_for_decision(services.redis, collected.project, "annotation")
    return asdict(collected)


@checked
def forget_annotations(project_id: Number, annotation_ids: list[Number]) -> JobResult | Retry:
    """Removes the records of deleted annotations, unless Label Studio still has them."""
    services = Services(Settings())
    try:
        gone = [number for number in annotation_ids if not collector.exists(services.label_studio, number)]
    except LabelStudioUnavailable as error:
        logger.warning("deleted annotations will be looked for again: %s", error)
        return LABEL_STUDIO_RETRY
    return {"project": project_id, "forgotten": collector.forget(services, project_id, gone)}


def reconcile_projects() -> JobResult:
    """Queues a reconciliation of every known project."""
    services = Services(Settings())
    return {
        str(project): ask_for_reconciliation(services.redis, project) for project in services.known_projects()
    }


@checked
def reconcile_project(project_id: Number) -> JobResult | Retry:
    """Brings a project's records up to date; goes on after the other projects if it takes long."""
    services = Services(Settings())
    try:
        result = reconcile(services, project_id)
    except LabelStudioUnavailable as error:
        logger.warning("project %d was not reconciled: %s", project_id, error)
        return {"project": project_id, "problem": str(error)}
    except LabelStudioNotFound as error:
        if (forgotten := drop_if_deleted(services, project_id)) is not None:
            return {"project": project_id, "deleted": True, "forgotten": forgotten}
        services.skipped.note(project_id, RECONCILE, "project", error)
        return {"project": project_id, "problem": reason_of(error)}
    except (BackendError, *ODD_DATA) as error:
        services.skipped.note(project_id, RECONCILE, "project", error)
        return {"project": project_id, "problem": reason_of(error)}
    services.skipped.clear(project_id, RECONCILE, ["project"])
    note_existing(services, project_id)
    return asdict(result) if result.complete else CONTINUE_RETRY


def check_projects() -> JobResult:
    """Decides on a fine-tune for the line of every known project: one decision per line."""
    services = Services(Settings())
    decisions: dict[str, Decision] = {}

    def check(project: int) -> JobResult:
        for number in services.collection(project).damaged():
            item, reason = f"annotation {number}", "its records were damaged and are collected again"
            services.skipped.note(project, collector.COLLECT, item, reason)
            ask_for_reconciliation(services.redis, project)
        line = services.line(project).name
        if line not in decisions:
            decisions[line] = _decide(services, project, "schedule")
        return asdict(decisions[line])

    return _each_project(services, DECIDE, check)


def _decide(services: Services, project: int, trigger: Trigger, start_version: str = "") -> Decision:
    """A decision. If none can be made, as with a damaged file, the reason is shown in its place.

    Raises:
        RedisError, LabelStudioUnavailable: see `CONCERN_ALL`.
    """
    with left_out(services.skipped, project, DECIDE, "project") as outcome:
        decision = maybe_start_finetune(services, project, trigger, start_version=start_version)
        services.skipped.clear(project, DECIDE, ["project"])
    if outcome.reason:
        decision = Decision(False, f"no decision is possible: {outcome.reason}")
        with suppress(VersionError, OSError):  # the store names the line
            note_decision(services.redis, services.line(project), trigger, decision)
    return decision


@checked
def maybe_finetune(project_id: Number, trigger: Trigger, start_version: str = "") -> JobResult:
    """Decides whether to fine-tune on the labels of a project's line now, and enqueues the fine-tune if so.

    For an explicit request, labels are first read from Label Studio, since events may still be in transit.

    Args:
        project_id: Id of the project.
        trigger: Source of the request.
        start_version: Version that training is to start from, or `base`; default: the serving version.
    """
    services = Services(Settings())
    try:
        start_version = startable_version(services, project_id, start_version)
    except VersionError as error:
        return asdict(Decision(False, str(error)))
    if trigger in EXPLICIT_TRIGGERS:
        for project in services.line(project_id).projects:
            try:
                reconcile(services, project)
            except (BackendError, *ODD_DATA) as error:
                logger.warning(
                    "project %d: deciding on the labels collected so far: %s", project, reason_of(error)
                )
    return asdict(_decide(services, project_id, trigger, start_version))


@checked
def finetune(project_id: Number, run_id: Name) -> JobResult | Retry:
    """Performs a prepared run: train, evaluate, publish, promote or reject. The only long job."""
    services = Services(Settings())
    settings, line = services.settings, services.line(project_id)
    lock = TRAINING_LOCK.format(preset=settings.preset)
    with redis_lock(services.redis, lock, wait_s=0, owner=run_id) as locked:
        if not locked:
            return TRAINING_BUSY_RETRY
        result = _finetune(services, line, run_id)
    services.redis.delete(PROGRESS_KEY.format(line=line.key))
    if result.get("status") == "promoted":
        announce_version(services.redis, line.name, services.store.current(line.name))
    discard_run(settings.model_dir, run_id)
    discard_left_runs(settings.model_dir, partial(_is_job, services.redis))
    ask_for_decision(services.redis, project_id, "after-finetune")
    return result


@checked
def prelabel_chunk(
    project_id: Number, run: str, chunk: str, source: JobResult, task_ids: list[Number]
) -> JobResult:
    """Segments phrases in the images of tasks and posts the masks as predictions.

    Args:
        project_id: Project of the tasks.
        run: Name of the run, under which progress is recorded.
        chunk: Name of the chunk.
        source: Source of the phrases, as written by `PhraseSource.to_dict`.
        task_ids: Ids of the tasks.
    """
    services = Services(Settings())
    progress, report = ChunkProgress(services.redis, run), ChunkReport()
    with running_service(services) as service:
        phrases = PhraseSource.from_dict(source)
        claim = TaskClaims(services.redis, run, chunk).take
        prelabeler = Prelabeler(services.label_studio, service.assistant, project_id, phrases, claim)
        for report in prelabeler.run(task_ids):
            progress.note(chunk, report)
    return asdict(report)


@checked
def prefetch_chunk(project_id: Number, run: str, chunk: str, task_ids: list[Number]) -> JobResult:
    """Embeds the images of tasks ahead of time.

    Args:
        project_id: Project of the tasks.
        run: Name of the run, under which progress is recorded.
        chunk: Name of the chunk.
        task_ids: Ids of the tasks.
    """
    services = Services(Settings())
    progress, report = ChunkProgress(services.redis, run), ChunkReport()
    prefetched = Prefetched(services.redis, services.settings, project_id)
    prefetcher = Prefetcher(services.label_studio, services.images, prefetched, services.skipped, project_id)
    for report in prefetcher.run(task_ids, partial(running_engine, services)):
        progress.note(chunk, report)
    return asdict(report)


@checked
def rank_chunk(
    project_id: Number, run: str, chunk: str, source: JobResult, task_ids: list[Number]
) -> JobResult:
    """Segments phrases in tasks without an annotation and records the certainty of the results.

    Args:
        project_id: Project of the tasks.
        run: Name of the run, under which progress and scores are recorded.
        chunk: Name of the chunk.
        source: Source of the phrases, as written by `PhraseSource.to_dict`.
        task_ids: Ids of the tasks.
    """
    services = Services(Settings())
    progress, report = ChunkProgress(services.redis, run), ChunkReport()
    with running_service(services) as service:
        ranker = Ranker(
            services.label_studio,
            service.assistant,
            service.engine,
            services.images,
            Scores(services.redis, run),
            project_id,
            PhraseSource.from_dict(source),
            TaskClaims(services.redis, run, chunk).take,
        )
        for report in ranker.run(task_ids):
            progress.note(chunk, report)
    return asdict(report)


@checked
def order_project(project_id: Number, run: str) -> JobResult:
    """Orders the tasks of a run once its chunks are done."""
    services = Services(Settings())
    scores, version = Scores(services.redis, run), services.store.current(services.store.line_of(project_id))
    return {"ordered": order_tasks(services.label_studio, scores, project_id, version)}


def prefetch_projects() -> JobResult:
    """Queues the images of every known project's next tasks that are not embedded yet."""
    services = Services(Settings())
    settings = services.settings
    if not settings.prefetch_tasks or settings.embeddings_dir is None:
        return {}
    return _each_project(services, PREFETCH, partial(queue_next_tasks, services))


def _each_project(services: Services, work: str, do: Callable[[int], Any]) -> JobResult:
    """Does something for every known project; one that fails is recorded and stops no other."""
    results: JobResult = {}
    for project in services.known_projects():
        try:
            with left_out(services.skipped, project, work, "project") as outcome:
                results[str(project)] = do(project)
            if outcome.reason:
                results[str(project)] = outcome.reason
        except LabelStudioUnavailable as error:
            results[str(project)] = str(error)
    return results


def _finetune(services: Services, line: Line, run_id: str) -> JobResult:
    """The run's result; a run interrupted after it was published resumes there."""
    store, settings = services.store, services.settings
    card = find_version(store, run_id)
    if card is None:
        run = Run.read(run_folder(settings.model_dir, run_id))
        if outdated := why_outdated(run, line, base_of(store, line)):
            return {"status": "outdated", "reason": outdated}
        try:
            card = perform(run, store, settings, _progress_noter(services.redis, line, run_id))
        except RunError as error:
            note_decision(services.redis, line, "fine-tune", Decision(False, str(error)))
            return {"status": "failed", "reason": str(error)}
        except Exception as error:
            reason = f"the fine-tune failed ({reason_of(error)}); see the worker's log"
            note_decision(services.redis, line, "fine-tune", Decision(False, reason))
            raise
    card = judge_candidate(store, card, services.line(line.projects[0]))
    return {"version": card.version_id, "status": card.status, "reason": card.reason}


def _is_job(connection: Redis, job_id: str) -> bool:
    try:
        fetch_job(job_id, connection)
    except NoSuchJobError:
        return False
    return True


def _progress_noter(connection: Redis, line: Line, run_id: str) -> Callable[[int, int], None]:
    key, last_s = PROGRESS_KEY.format(line=line.key), -PROGRESS_EVERY_S
    began: tuple[int, float] | None = None
    """Of this attempt: its first step and when that was done. An interrupted one goes on where it was."""

    def note(step: int, steps: int) -> None:
        nonlocal last_s, began
        began = began or (step, time.monotonic())
        if time.monotonic() - last_s < PROGRESS_EVERY_S and step < steps:
            return
        last_s = time.monotonic()
        values: JobResult = {"run": run_id, "step": step, "steps": steps}
        if step > began[0]:
            values["left_s"] = (steps - step) * (last_s - began[1]) / (step - began[0])
        with suppress(RedisError):  # progress is only displayed
            connection.set(key, json.dumps(values), ex=PROGRESS_TTL_S)

    return note
