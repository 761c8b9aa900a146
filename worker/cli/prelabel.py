"""`sspsam prelabel`: queues the chunks of a project and shows progress."""

from __future__ import annotations

from typing import Annotated

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.output import echo
from worker.projects.batch_jobs import ColumnOption, DetachOption, PhrasesOption, ProjectOption

app = typer.Typer()


@app.command()
def prelabel(
    project: ProjectOption,
    phrase: PhrasesOption = None,
    from_column: ColumnOption = "",
    from_labels: Annotated[
        bool, typer.Option("--from-labels", help="Look for each label of the form, by its alias or name.")
    ] = False,
    detach: DetachOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Predict masks for every task of a project, as a start for annotators. Needs a running worker.

    Can be interrupted and run again: finished tasks are skipped.
    """
    from backend.cli.instance_settings import service_settings
    from worker.projects.batch_jobs import finish, watch
    from worker.projects.chunks import ChunkProgress
    from worker.projects.prelabel import PhraseSource
    from worker.projects.starting import start_prelabel
    from worker.queueing.queues import require_redis
    from worker.services import Services

    given = [bool(phrase), bool(from_column), from_labels]
    if sum(given) != 1:
        raise typer.BadParameter("give one of --phrase, --from-column and --from-labels")
    kind = "phrases" if phrase else "column" if from_column else "labels"
    source = PhraseSource(kind, tuple(phrase or ()), from_column)  # type: ignore[arg-type]
    services = Services(service_settings(data_dir))
    require_redis(services.settings.redis_url)
    batch = start_prelabel(services, project, source)
    if detach or not batch.chunks:
        echo(f"{batch.tasks} tasks are queued, in {len(batch.chunks)} jobs. Run this again to see progress.")
        return
    progress = ChunkProgress(services.redis, batch.run)
    report, failures = watch(services.redis, batch.jobs, progress, batch.chunks, batch.tasks)
    finish(
        report,
        failures,
        f"predictions: {report.posted} with {report.masks} masks, tasks skipped: {report.skipped}",
    )
