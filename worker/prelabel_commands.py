"""`sspsam prelabel`: queues the chunks of a project, and shows how far the workers are."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from redis import Redis
    from rq import Queue

    from worker.prelabel import ChunkReport, PhraseSource, Progress

app = typer.Typer()

POLL_S = 0.5
NO_WORKER_S = 20.0
"""When nobody has taken a job for so long, that is said."""
SHOWN_PROBLEMS = 20


@app.command()
def prelabel(
    project: Annotated[int, typer.Option(help="Number of the Label Studio project.", min=1)],
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="What to look for in every picture; again, or with `;`, for several."),
    ] = None,
    from_column: Annotated[
        str, typer.Option(metavar="NAME", help="Take the phrases of each task from this field of its data.")
    ] = "",
    from_labels: Annotated[
        bool, typer.Option("--from-labels", help="Look for each label of the form, by its alias or name.")
    ] = False,
    detach: Annotated[bool, typer.Option("--detach", help="Queue it, and do not wait.")] = False,
) -> None:
    """Put masks into every task of a project, for annotators to begin with; running workers do it.

    Can be interrupted and run again: what is done is left alone.
    """
    from backend.labelstudio.config import LabelingConfig
    from backend.settings import Settings
    from worker.prelabel import PhraseSource, Progress, check_source, chunk_name, chunks_of, run_name
    from worker.queues import prelabel_queue, require_redis
    from worker.services import Services

    given = [bool(phrase), bool(from_column), from_labels]
    if sum(given) != 1:
        raise typer.BadParameter("give one of --phrase, --from-column and --from-labels")
    kind = "phrases" if phrase else "column" if from_column else "labels"
    source = PhraseSource(kind, tuple(phrase or ()), from_column)  # type: ignore[arg-type]
    services = Services(Settings())
    require_redis(services.settings.redis_url)
    config = LabelingConfig.parse(services.label_studio.project(project)["label_config"])
    config.require("mask", "image")
    check_source(source, config)
    task_ids = [int(task["id"]) for task in services.label_studio.task_list(project)]
    run = run_name(project, source)
    progress = Progress(services.redis, run)
    chunks = {chunk_name(ids): ids for ids in chunks_of(task_ids)}
    queue = prelabel_queue(services.redis)
    jobs = [_enqueue(queue, progress, run, name, project, source, chunk) for name, chunk in chunks.items()]
    if detach or not jobs:
        typer.echo(
            f"{len(task_ids)} tasks are queued, in {len(jobs)} jobs. Run this again to see how far it is."
        )
        return
    _finish(_watch(services.redis, jobs, progress, list(chunks), len(task_ids)))


def _enqueue(
    queue: Queue,
    progress: Progress,
    run: str,
    name: str,
    project: int,
    source: PhraseSource,
    task_ids: Sequence[int],
) -> str:
    """Queues a chunk, unless it waits or runs already; returns the job's id."""
    from rq.exceptions import NoSuchJobError
    from rq.job import Job
    from rq.serializers import JSONSerializer

    from worker.queues import FAILURE_TTL_S, PRELABEL_RETRY, RESULT_TTL_S

    job_id = f"{run}-{name}"
    with suppress(NoSuchJobError):
        job = Job.fetch(job_id, connection=queue.connection, serializer=JSONSerializer)
        if job.get_status() in ("queued", "started", "scheduled", "deferred"):
            return job_id
        job.delete()
    progress.forget(name)
    queue.enqueue_call(
        "worker.jobs.prelabel_chunk",
        kwargs={
            "project_id": project,
            "run": run,
            "chunk": name,
            "source": source.to_dict(),
            "task_ids": list(task_ids),
        },
        job_id=job_id,
        result_ttl=RESULT_TTL_S,
        failure_ttl=FAILURE_TTL_S,
        retry=PRELABEL_RETRY,
    )
    return job_id


def _watch(
    redis: Redis, jobs: Sequence[str], progress: Progress, chunks: Sequence[str], tasks: int
) -> tuple[ChunkReport, list[str]]:
    """Shows a progress bar until all jobs have ended; returns the report, and why jobs failed."""
    from rich import progress as bars
    from rich.console import Console
    from rq.job import Job, JobStatus
    from rq.serializers import JSONSerializer

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
            found = Job.fetch_many(list(jobs), connection=redis, serializer=JSONSerializer)
            states = [job.get_status(refresh=False) if job else JobStatus.FAILED for job in found]
            report = progress.report(chunks)
            shown.update(bar, completed=report.tasks)
            if all(state in ended for state in states):
                break
            waits = all(state == JobStatus.QUEUED for state in states)
            if waits and not told and time.monotonic() - began_s > NO_WORKER_S:
                told = True
                shown.console.print("No worker has taken this yet: is `sspsam worker` running?")
            time.sleep(POLL_S)
    finished = zip(found, states, strict=True)
    return report, [_reason(job) for job, state in finished if state != JobStatus.FINISHED]


def _reason(job: object) -> str:
    latest = job.latest_result() if job is not None else None  # type: ignore[attr-defined]
    lines = (latest.exc_string or "").strip().splitlines() if latest else []
    return lines[-1] if lines else "a job is gone"


def _finish(watched: tuple[ChunkReport, list[str]]) -> None:
    """Prints what was done and what was not; ends with 1 if anything was not."""
    report, failures = watched
    problems = report.problems
    for task, reason in list(problems.items())[:SHOWN_PROBLEMS]:
        typer.secho(f"task {task}: {reason}", fg=typer.colors.YELLOW, err=True)
    if len(problems) > SHOWN_PROBLEMS:
        typer.secho(f"and {len(problems) - SHOWN_PROBLEMS} more", fg=typer.colors.YELLOW, err=True)
    for reason in dict.fromkeys(failures):
        typer.secho(f"a job failed: {reason}", fg=typer.colors.RED, err=True)
    typer.echo(
        f"predictions: {report.posted} with {report.masks} masks, tasks left alone: {report.skipped}, "
        f"tasks with a problem: {len(problems)}"
    )
    if problems or failures:
        raise typer.Exit(1)
