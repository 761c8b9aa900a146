"""The worker's jobs in words: what runs, waits and has failed, and the course of a running fine-tune."""

from __future__ import annotations

import json
import logging
import math
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from redis import Redis
from rq.exceptions import InvalidJobOperation
from rq.job import Job, JobStatus
from rq.registry import BaseRegistry

from backend.console.dashboard import ODD_VALUES
from backend.console.fine_tunes import LOG, LOSS, Curve, curve
from backend.console.operations import find_job, stop_job
from backend.logs import Redacting, secrets_of, shortened
from backend.settings import Settings
from backend.shared_redis import FAILURE_TTL_S, QUEUES, REMOVED_RUN_KEY, ServiceJob, ServiceQueue
from backend.state.skipped_items import reason_of
from sspsam.printable import printable

SHOWN = 25
"""Of each state of a queue."""
LOG_CHARACTERS = 6000
"""The end of a traceback."""
LOG_MAX_BYTES = 2**21
"""Of the log of a running fine-tune."""
ENDED_BADLY = (JobStatus.FAILED, JobStatus.STOPPED)
RUN_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
STATES = ("running", "waiting", "failed")
FINETUNE = "worker.jobs.finetune"
COMPARING = "Comparing both versions on the held-out labels"

Words = Callable[[Mapping[str, Any]], str]
WORDS: Mapping[str, Words] = {
    "worker.jobs.collect_annotation": lambda of: f"Collect annotation {of['annotation_id']}, {_project(of)}",
    "worker.jobs.forget_annotations": lambda of: (
        f"Remove {len(of['annotation_ids'])} deleted annotations, {_project(of)}"
    ),
    "worker.jobs.maybe_finetune": lambda of: f"Decide about a fine-tune, {_project(of)}",
    FINETUNE: lambda of: f"Fine-tune, {_project(of)}",
    "worker.jobs.reconcile_projects": lambda of: "Compare the labels of all projects with Label Studio",
    "worker.jobs.reconcile_project": lambda of: f"Compare labels with Label Studio, {_project(of)}",
    "worker.jobs.check_projects": lambda of: "Decide about fine-tunes, all projects",
    "worker.jobs.prefetch_projects": lambda of: "Look for images to embed, all projects",
    "worker.jobs.prelabel_chunk": lambda of: f"Pre-label {len(of['task_ids'])} tasks, {_project(of)}",
    "worker.jobs.prefetch_chunk": lambda of: (
        f"Embed the images of {len(of['task_ids'])} tasks, {_project(of)}"
    ),
    "worker.jobs.rank_chunk": lambda of: f"Score {len(of['task_ids'])} tasks, {_project(of)}",
    "worker.jobs.order_project": lambda of: f"Order tasks by rank, {_project(of)}",
    "worker.requested_jobs.start_batch": lambda of: f"Queue the jobs of {of['command']}, {_project(of)}",
    "worker.requested_jobs.export_project": lambda of: f"Export as {of['file_format']}, {_project(of)}",
    "worker.requested_jobs.adopt_version": lambda of: (
        f"Adopt the version of project {of['source_id']}, {_project(of)}"
    ),
}

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RunningFineTune:
    """The course of a fine-tune."""

    stage: str
    step: int
    steps: int
    """0 before the first step."""
    left_s: float | None
    """Estimate for the remaining steps."""
    loss: Curve | None


@dataclass(frozen=True)
class JobRow:
    """A job."""

    job_id: str
    words: str
    queue: str
    state: str
    at: str
    """When it was queued, started or ended; ISO 8601."""
    reason: str = ""
    """Why it failed, in one line."""
    log: str = ""
    """Its traceback, without secrets."""
    fine_tune: RunningFineTune | None = None


@dataclass(frozen=True)
class JobLists:
    """Jobs by state, and how many there are of each."""

    rows: Mapping[str, Sequence[JobRow]]
    counts: Mapping[str, int]


def job_lists(redis: Redis, settings: Settings, progress: Callable[[int], Mapping[str, Any]]) -> JobLists:
    """Reads the newest jobs of each state.

    Args:
        redis: The Redis shared by all workers.
        settings: Secrets to hide, and MODEL_DIR.
        progress: Progress of the fine-tune of a project's line.

    Raises:
        RedisError: Redis does not respond.
    """
    rows: dict[str, list[JobRow]] = {state: [] for state in STATES}
    counts = dict.fromkeys(STATES, 0)
    hide = Redacting(logging.Formatter(), secrets_of(settings)).redact
    for name in QUEUES:
        queue = ServiceQueue(name, redis)
        later = (queue.scheduled_job_registry, queue.deferred_job_registry)
        ids = {
            "running": _newest(queue.started_job_registry),
            "waiting": [*queue.get_job_ids(0, SHOWN), *(one for part in later for one in _newest(part))][
                :SHOWN
            ],
            "failed": _newest(queue.failed_job_registry),
        }
        counts["running"] += queue.started_job_registry.get_job_count(cleanup=False)
        counts["waiting"] += queue.count + sum(part.get_job_count(cleanup=False) for part in later)
        counts["failed"] += queue.failed_job_registry.get_job_count(cleanup=False)
        for state, listed in ids.items():
            found = ServiceJob.fetch_many(listed, redis)
            rows[state] += [_row_or_problem(job, name, state, hide) for job in found if job is not None]
    rows["running"] = [_with_course(row, redis, settings, progress) for row in rows["running"]]
    rows["failed"].sort(key=lambda row: row.at, reverse=True)
    return JobLists(rows, counts)


def retry_failed(redis: Redis, job_id: str) -> str:
    """Queues a failed job again; returns what was done, in words.

    Raises:
        RedisError: Redis does not respond.
    """
    job = _failed(redis, job_id)
    if job is None:
        return "this job has not failed, or does not exist any more"
    with suppress(InvalidJobOperation):
        ServiceQueue(str(job.origin), redis).failed_job_registry.requeue(job)
    return f"{in_words(job)}: queued again"


def dismiss_failed(redis: Redis, job_id: str) -> str:
    """Removes a failed job; returns what was done, in words. A fine-tune then starts only if a person asks.

    Raises:
        RedisError: Redis does not respond.
    """
    job = _failed(redis, job_id)
    if job is None:
        return "this job has not failed, or does not exist any more"
    words = in_words(job)
    if job.func_name == FINETUNE:  # before the deletion: the schedule starts what has neither job nor mark
        redis.set(REMOVED_RUN_KEY.format(run=job.id), 1, ex=FAILURE_TTL_S)
    job.delete()
    return f"{words}: removed"


def stop(redis: Redis, job_id: str) -> str:
    """Stops a job that waits or runs; returns what was done, in words.

    Raises:
        RedisError: Redis does not respond.
    """
    return "the job was stopped" if stop_job(redis, job_id) else "this job neither waits nor runs"


def in_words(job: Job) -> str:
    """What a job does."""
    try:
        return WORDS[str(job.func_name)](dict(job.kwargs or {}))
    except Exception:  # of another release, or not in our format: RQ's parsing raises many kinds
        return f"Job {job.id[:100]}"


def _project(of: Mapping[str, Any]) -> str:
    return f"project {of['project_id']}"


def _newest(registry: BaseRegistry) -> list[str]:
    """Without RQ's clean-up, which is the workers' task, and its parsing, which an odd entry would end."""
    entries = registry.connection.zrevrange(registry.key, 0, SHOWN - 1)
    names = (entry.decode(errors="replace") for entry in entries if isinstance(entry, bytes))
    return [name.partition(":")[0] for name in names]


def _failed(redis: Redis, job_id: str) -> Job | None:
    job = find_job(redis, job_id)
    if job is None or job.origin not in QUEUES or job.get_status(refresh=False) not in ENDED_BADLY:
        return None
    return job


def _row_or_problem(job: Job, queue: str, state: str, hide: Callable[[str], str]) -> JobRow:
    """A job that cannot be shown does not keep the others from the page."""
    try:
        return _row(job, queue, state, hide)
    except ODD_VALUES as error:
        logger.warning("job %.100r cannot be shown: %s", job.id, reason_of(error))
        return JobRow(job.id, in_words(job), queue, state, "", "its entry in Redis cannot be read")


def _row(job: Job, queue: str, state: str, hide: Callable[[str], str]) -> JobRow:
    moment = {"running": job.started_at, "waiting": job.enqueued_at or job.created_at}.get(
        state, job.ended_at
    )
    at = moment.isoformat() if moment else ""
    if state != "failed":
        return JobRow(job.id, in_words(job), queue, state, at)
    latest = job.latest_result()
    text = hide(shortened(str(latest.exc_string or ""))) if latest else ""
    lines = [printable(line) for line in text.strip().split("\n")]
    return JobRow(
        job.id, in_words(job), queue, state, at, lines[-1][:400], "\n".join(lines)[-LOG_CHARACTERS:]
    )


def _with_course(
    row: JobRow, redis: Redis, settings: Settings, progress: Callable[[int], Mapping[str, Any]]
) -> JobRow:
    if row.queue != "training" or not RUN_NAME.fullmatch(row.job_id):
        return row
    job = find_job(redis, row.job_id)
    project = (job.kwargs or {}).get("project_id") if job is not None else None
    reported = progress(project) if isinstance(project, int) else {}
    try:
        return replace(row, fine_tune=_course(settings.model_dir / "runs" / row.job_id, reported))
    except ODD_VALUES as error:
        logger.warning("the course of %s cannot be shown: %s", row.job_id, reason_of(error))
        return row


def _course(folder: Path, reported: Mapping[str, Any]) -> RunningFineTune:
    """Where a run is: its log is in MODEL_DIR, its step in Redis."""
    lines = _log_lines(folder / "training" / LOG)
    step, steps = (int(reported.get(name) or 0) for name in ("step", "steps"))
    losses = [(one["step"], float(one[LOSS])) for one in lines if _is_number(one.get(LOSS))]
    left_s = float(lines[-1]["left_s"]) if lines and _is_number(lines[-1].get("left_s")) else None
    if not steps:
        stage = COMPARING if lines else "Reading images and labels"
    else:
        stage = "Training" if step < steps else COMPARING
    return RunningFineTune(stage, step, steps, left_s if step < steps else None, curve(losses))


def _log_lines(path: Path) -> list[dict[str, Any]]:
    """Lines with a step; empty if there is no log yet, or on another machine."""
    try:
        with path.open("rb") as file:
            text = file.read(LOG_MAX_BYTES).decode(errors="replace")
    except OSError:
        return []
    found = []
    for line in text.splitlines():
        with suppress(ValueError):
            values = json.loads(line)
            if isinstance(values, dict) and isinstance(values.get("step"), int):
                found.append(values)
    return found


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
