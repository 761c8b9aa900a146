"""Batch jobs over tasks: deduplicated when queued, and watched until they end."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from sspsam.cli.output import echo
from sspsam.printable import printable

if TYPE_CHECKING:
    from redis import Redis
    from rq import Queue
    from rq.job import Job

    from worker.projects.chunks import ChunkProgress, ChunkReport

POLL_S = 0.5
NO_WORKER_S = 20.0
"""Time without a worker taking a job, after which a notice is printed."""
SHOWN_PROBLEMS = 20

ProjectOption = Annotated[int, typer.Option(help="Number of the Label Studio project.", min=1)]
PhrasesOption = Annotated[
    list[str] | None,
    typer.Option(help="Phrase to segment in every image. Repeatable; `;` separates several."),
]
ColumnOption = Annotated[
    str, typer.Option(metavar="NAME", help="Read the phrases of each task from this field of its data.")
]
DetachOption = Annotated[bool, typer.Option("--detach", help="Queue the jobs and do not wait.")]


def enqueue_chunks(
    redis: Redis, function: str, run: str, task_ids: Sequence[int], kwargs: Mapping[str, Any]
) -> list[str]:
    """Queues a job for each chunk of tasks unless it is queued or running; returns the chunks' names.

    Args:
        redis: The Redis shared by all workers.
        function: Function of the jobs. Called with `run`, `chunk`, `task_ids` and `kwargs`.
        run: Name under which progress is recorded; a job's id is `<run>-<chunk>`.
        task_ids: All task ids.
        kwargs: Further keyword arguments.
    """
    from worker.projects.chunks import ChunkProgress, chunk_name, chunks_of
    from worker.queueing.queues import prelabel_queue

    queue, progress, names = prelabel_queue(redis), ChunkProgress(redis, run), []
    for ids in chunks_of(task_ids):
        name = chunk_name(ids)
        job = {**kwargs, "run": run, "chunk": name, "task_ids": ids}
        if enqueue_once(queue, function, f"{run}-{name}", job):
            progress.forget(name)
        names.append(name)
    return names


def enqueue_once(
    queue: Queue, function: str, job_id: str, kwargs: Mapping[str, Any], at_front: bool = False
) -> bool:
    """Queues a job unless it is already queued or running; returns whether it did."""
    from rq.exceptions import NoSuchJobError

    from backend.shared_redis import UNDER_WAY, fetch_job

    with suppress(NoSuchJobError):
        job = fetch_job(job_id, queue.connection)
        if job.get_status() in UNDER_WAY:
            return False
        job.delete()
    _enqueue(queue, function, job_id, kwargs, at_front=at_front)
    return True


def enqueue_after(
    queue: Queue, function: str, job_id: str, kwargs: Mapping[str, Any], jobs: Sequence[str]
) -> str:
    """Queues a job to run after others have succeeded or failed, replacing a queued one; returns its id."""
    from rq.exceptions import NoSuchJobError
    from rq.job import Dependency

    from backend.shared_redis import ServiceJob, fetch_job

    with suppress(NoSuchJobError):
        fetch_job(job_id, queue.connection).delete()
    found = ServiceJob.fetch_many(jobs, queue.connection)
    others = Dependency(jobs=[job for job in found if job is not None], allow_failure=True)
    _enqueue(queue, function, job_id, kwargs, depends_on=others)
    return job_id


def _enqueue(queue: Queue, function: str, job_id: str, kwargs: Mapping[str, Any], **how: Any) -> None:
    from backend.shared_redis import FAILURE_TTL_S, JOB_RETRY
    from worker.queueing.queues import RESULT_TTL_S

    queue.enqueue_call(
        function,
        kwargs=dict(kwargs),
        job_id=job_id,
        result_ttl=RESULT_TTL_S,
        failure_ttl=FAILURE_TTL_S,
        retry=JOB_RETRY,
        **how,
    )


def watch(
    redis: Redis, jobs: Sequence[str], progress: ChunkProgress, chunks: Sequence[str], tasks: int
) -> tuple[ChunkReport, list[str]]:
    """Shows a progress bar until all jobs have ended; returns the report and the jobs' errors."""
    from rich import progress as bars
    from rich.console import Console
    from rq.job import JobStatus

    from backend.shared_redis import ServiceJob

    columns = (
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    )
    ended = {JobStatus.FINISHED, JobStatus.FAILED, JobStatus.STOPPED, JobStatus.CANCELED}
    console = Console(stderr=True)
    began_s, told = time.monotonic(), False
    with bars.Progress(*columns, console=console) as shown:
        bar = shown.add_task("Tasks", total=tasks)
        while True:
            found = ServiceJob.fetch_many(jobs, redis)
            states = [job.get_status(refresh=False) if job else JobStatus.FAILED for job in found]
            report = progress.report(chunks)
            shown.update(bar, completed=report.tasks)
            if all(state in ended for state in states):
                break
            waits = all(state == JobStatus.QUEUED for state in states)
            if waits and not told and time.monotonic() - began_s > NO_WORKER_S:
                told = True
                shown.console.print("No worker has taken these jobs yet: is `sspsam worker` running?")
            time.sleep(POLL_S)
    finished = zip(found, states, strict=True)
    return report, [_reason(job) for job, state in finished if state != JobStatus.FINISHED]


def result_of(redis: Redis, job_id: str) -> Mapping[str, Any]:
    """What a job has returned; empty if it has not, or is gone."""
    from rq.exceptions import NoSuchJobError

    from backend.shared_redis import fetch_job

    with suppress(NoSuchJobError):
        result = fetch_job(job_id, redis).return_value()
        return result if isinstance(result, dict) else {}
    return {}


def finish(report: ChunkReport, failures: Sequence[str], summary: str) -> None:
    """Prints the results and the problems; exits with 1 if there are problems."""
    problems = report.problems
    for task, reason in list(problems.items())[:SHOWN_PROBLEMS]:
        echo(printable(f"task {task}: {reason}"), fg=typer.colors.YELLOW, err=True)
    if len(problems) > SHOWN_PROBLEMS:
        echo(f"and {len(problems) - SHOWN_PROBLEMS} more", fg=typer.colors.YELLOW, err=True)
    for reason in dict.fromkeys(failures):
        echo(printable(f"a job failed: {reason}"), fg=typer.colors.RED, err=True)
    echo(f"{summary}, tasks with a problem: {len(problems)}")
    if problems or failures:
        raise typer.Exit(1)


def _reason(job: Job | None) -> str:
    if job is not None and job.is_canceled:
        return "it was cancelled"
    latest = job.latest_result() if job is not None else None
    lines = (latest.exc_string or "").strip().splitlines() if latest else []
    return lines[-1] if lines else "a job has disappeared from Redis"
