"""What people have asked the worker for on a project's page: its progress and outcome, in words."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from redis import Redis
from rq.command import send_command
from rq.exceptions import InvalidJobOperation, NoSuchJobError
from rq.job import Job, JobStatus

from backend.console.dashboard import ODD_VALUES
from backend.shared_redis import OPERATIONS_KEY, PRELABEL_PROGRESS_KEY, ServiceJob, fetch_job
from backend.state.skipped_items import reason_of
from backend.worker_requests import ADOPT, EXPORT, EXPORTS, MAYBE_FINETUNE, OPERATIONS_KEPT, START_BATCH

MOST_CHUNKS = 2000
"""Jobs of a batch that are looked at: 200,000 tasks."""
PENDING = frozenset({JobStatus.QUEUED, JobStatus.STARTED, JobStatus.SCHEDULED, JobStatus.DEFERRED})
NAMES: Mapping[str, str] = {
    "prelabel": "Pre-label",
    "rank": "Rank tasks",
    "prefetch": "Prefetch images",
    EXPORT: "Export",
    ADOPT: "Adopt a version",
    MAYBE_FINETUNE: "Fine-tune now",
}
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,199}")
PROBLEMS_SHOWN = 5

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Operation:
    """A job that a person has asked for."""

    job_id: str
    name: str
    at: str
    """ISO 8601, UTC."""
    state: str
    """In a word: waiting, running, done, failed or stopped."""
    done: int = 0
    total: int = 0
    """Tasks; 0 if unknown."""
    outcome: str = ""
    problems: Sequence[str] = ()
    file: str = ""
    """Name of a file to download."""

    @property
    def is_pending(self) -> bool:
        return self.state in ("waiting", "running")


def operations(redis: Redis, project: int) -> list[Operation]:
    """A project's operations, the newest first.

    Raises:
        RedisError: Redis does not respond.
    """
    listed = redis.lrange(OPERATIONS_KEY.format(project=project), 0, OPERATIONS_KEPT - 1)
    ids = [entry.decode(errors="replace") for entry in listed if isinstance(entry, bytes)]
    found = ServiceJob.fetch_many(ids, redis)
    return [
        _operation_or_problem(redis, job) for job in found if job is not None and _project(job) == project
    ]


def cancel(redis: Redis, project: int, job_id: str) -> str:
    """Stops an operation of a project: what has not started does not start, what runs is ended.

    Returns:
        What was done, in words.

    Raises:
        RedisError: Redis does not respond.
    """
    listed = redis.lrange(OPERATIONS_KEY.format(project=project), 0, OPERATIONS_KEPT - 1)
    job = find_job(redis, job_id) if job_id.encode() in listed else None
    if job is None:
        return "there is no such job any more"
    jobs = [job_id]
    with suppress(*ODD_VALUES):  # a result that cannot be read names no jobs
        jobs += _names(_result(job).get("jobs"))[-MOST_CHUNKS:]
    stopped = sum(stop_job(redis, name) for name in reversed(jobs))
    return f"{stopped} jobs stopped" if stopped != 1 else "1 job stopped"


def stop_job(redis: Redis, job_id: str) -> bool:
    """Removes a job that has not started, ends one that runs; returns whether it was either.

    Jobs that were to follow are removed as well: RQ would keep them deferred.
    """
    job = find_job(redis, job_id)
    status = job.get_status(refresh=False) if job is not None else None
    if job is None or status not in PENDING:
        return False
    for follower in job.dependent_ids:
        stop_job(redis, follower)
    if status == JobStatus.STARTED:
        if job.worker_name:
            send_command(redis, job.worker_name, "stop-job", job_id=job_id)
        return True
    with suppress(InvalidJobOperation):
        job.cancel()
    return True


def _operation_or_problem(redis: Redis, job: Job) -> Operation:
    """An operation that cannot be shown does not keep the others from the page."""
    try:
        return _operation(redis, job)
    except ODD_VALUES as error:
        logger.warning("operation %.100r cannot be shown: %s", job.id, reason_of(error))
        return Operation(job.id, "Operation", "", "failed", outcome="its entry in Redis cannot be read")


def _operation(redis: Redis, job: Job) -> Operation:
    function, result, kwargs = str(job.func_name), _result(job), dict(job.kwargs or {})
    status = job.get_status(refresh=False)
    name = NAMES.get(str(kwargs.get("command")) if function == START_BATCH else function, function)
    at = job.created_at.isoformat() if job.created_at else ""
    if function == EXPORT:
        name += f" as {kwargs.get('file_format')}"
    if status not in (JobStatus.FINISHED,):
        state = "waiting" if status in PENDING - {JobStatus.STARTED} else "running"
        state = {JobStatus.FAILED: "failed", JobStatus.STOPPED: "stopped", JobStatus.CANCELED: "stopped"}.get(
            status or JobStatus.FAILED, state
        )
        done, total = (int(job.meta.get(key) or 0) for key in ("done", "total"))
        outcome = "see why under Jobs" if state == "failed" else ""
        return Operation(job.id, name, at, state, done, total, outcome)
    if problem := result.get("problem"):
        return Operation(job.id, name, at, "failed", outcome=str(problem))
    if function == START_BATCH:
        return _batch(redis, job.id, name, at, result)
    outcome, problems, file = _outcome(function, result)
    return Operation(job.id, name, at, "done", outcome=outcome, problems=problems, file=file)


def _outcome(function: str, result: Mapping[str, Any]) -> tuple[str, list[str], str]:
    if function == EXPORT:
        text = (
            f"{result.get('masks')} masks on {result.get('images')} images, and {result.get('no_target')} "
            f"phrases without a target; left out: {result.get('problem_count')}"
        )
        return text, _names(result.get("problems"))[:PROBLEMS_SHOWN], str(result.get("file") or "")
    if function == ADOPT:
        version, original = result.get("version"), result.get("parent")
        how = (
            f", a copy of {original}, serves this project"
            if original
            else (" serves this project, as it serves the other, which has no version of its own")
        )
        return f"{version}{how}", [], ""
    return str(result.get("reason") or "done"), [], ""


def _batch(redis: Redis, job_id: str, name: str, at: str, result: Mapping[str, Any]) -> Operation:
    total = int(result.get("tasks") or 0)
    chunks = _names(result.get("chunks"))[:MOST_CHUNKS]
    key = PRELABEL_PROGRESS_KEY.format(run=result.get("run"))
    reports = [_report(value) for value in redis.hmget(key, chunks)] if chunks else []
    done, posted, skipped = (
        sum(int(report.get(field) or 0) for report in reports) for field in ("tasks", "posted", "skipped")
    )
    every = [one.get("problems") or {} for one in reports]
    shown = islice(((task, why) for one in every for task, why in one.items()), PROBLEMS_SHOWN)
    # Pages ask every few seconds; only a batch that has not ended needs the jobs of its chunks.
    names = _names(result.get("jobs"))
    names = names[-MOST_CHUNKS:] if done < total else names[len(_names(result.get("chunks"))) :][-1:]
    jobs = ServiceJob.fetch_many(names, redis)
    states = {one.get_status(refresh=False) for one in jobs if one is not None}
    if JobStatus.STARTED in states:
        state = "running"
    elif states & PENDING:
        state = "running" if done else "waiting"
    elif JobStatus.FAILED in states:
        state = "failed"
    else:
        was_stopped = done < total or states & {JobStatus.STOPPED, JobStatus.CANCELED}
        state = "stopped" if was_stopped else "done"
    outcome = f"{posted} predictions posted, {skipped} tasks skipped, {sum(map(len, every))} with a problem"
    problems = [f"task {task}: {why}" for task, why in shown]
    return Operation(job_id, name, at, state, done, total, outcome, problems)


def _report(value: object) -> Mapping[str, Any]:
    try:
        report = json.loads(value) if isinstance(value, bytes) else {}
    except ValueError:
        return {}
    return report if isinstance(report, dict) else {}


def find_job(redis: Redis, job_id: str) -> Job | None:
    """A job; None if there is none, or its ID cannot be one."""
    with suppress(NoSuchJobError, ValueError):
        return fetch_job(job_id, redis)
    return None


def _result(job: Job) -> Mapping[str, Any]:
    result = job.return_value()
    return result if isinstance(result, dict) else {}


def _names(listed: object) -> list[str]:
    return [str(one) for one in listed] if isinstance(listed, list) else []


def _project(job: Job) -> int | None:
    try:
        number = (job.kwargs or {}).get("project_id")
    except Exception:  # RQ and the serializer share no base class of errors
        return None
    return number if isinstance(number, int) else None


def export_file(model_dir: Path, project: int, name: str) -> Path | None:
    """A finished export on this machine; None if there is no such file."""
    path = model_dir / EXPORTS / str(project) / name
    return path if FILE_NAME.fullmatch(name) and path.is_file() and not path.is_symlink() else None
