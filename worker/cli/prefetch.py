"""`sspsam prefetch`: queues the images of a project and shows progress."""

from __future__ import annotations

from typing import Annotated

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.output import echo
from worker.projects.batch_jobs import DetachOption, ProjectOption

app = typer.Typer()


@app.command()
def prefetch(
    project: ProjectOption,
    limit: Annotated[
        int, typer.Option(help="At most this many tasks without an annotation; 0 takes every task.", min=0)
    ] = 0,
    detach: DetachOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Embed a project's images ahead of time, so the first phrase on each is fast. Needs a running worker.

    Can be interrupted and run again: images already on disk are skipped.
    """
    from backend.cli.instance_settings import service_settings
    from worker.projects.batch_jobs import finish, watch
    from worker.projects.chunks import ChunkProgress
    from worker.projects.starting import start_prefetch
    from worker.queueing.queues import require_redis
    from worker.services import Services

    services = Services(service_settings(data_dir))
    if services.settings.embeddings_dir is None:
        raise typer.BadParameter("EMBEDDING_STORE_BYTES is 0: embeddings cannot be stored")
    require_redis(services.settings.redis_url)
    batch = start_prefetch(services, project, limit)
    if detach or not batch.chunks:
        echo(f"{batch.tasks} tasks are queued, in {len(batch.chunks)} jobs.")
        return
    progress = ChunkProgress(services.redis, batch.run)
    report, failures = watch(services.redis, batch.jobs, progress, batch.chunks, batch.tasks)
    embedded = report.tasks - report.skipped - len(report.problems)
    finish(report, failures, f"images embedded: {embedded}, already stored: {report.skipped}")
