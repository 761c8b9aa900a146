"""`sspsam rank`: queues the unlabeled tasks of a project for scoring and shows progress."""

from __future__ import annotations

import typer

from sspsam.cli.commands import DataDirOption
from sspsam.cli.output import echo
from worker.projects.batch_jobs import ColumnOption, DetachOption, PhrasesOption, ProjectOption

app = typer.Typer()


@app.command()
def rank(
    project: ProjectOption,
    phrase: PhrasesOption = None,
    from_column: ColumnOption = "",
    detach: DetachOption = False,
    data_dir: DataDirOption = None,
) -> None:
    """Order tasks by how much they teach: least certain predictions first, near-duplicates last.

    Every task without an annotation gets a prediction whose score is its rank; the project is set to Label
    Studio's uncertainty sampling and to the version that made the predictions. Without --phrase or
    --from-column, the phrases are those in the tasks' data, else the ones that the project's annotators use
    most, else the labels. Run it again after a promotion.
    """
    from backend.cli.instance_settings import service_settings
    from worker.projects.batch_jobs import finish, result_of, watch
    from worker.projects.chunks import ChunkProgress
    from worker.projects.prelabel import PhraseSource
    from worker.projects.starting import start_rank
    from worker.queueing.queues import require_redis
    from worker.services import Services

    if phrase and from_column:
        raise typer.BadParameter("give either --phrase or --from-column, not both")
    services = Services(service_settings(data_dir))
    require_redis(services.settings.redis_url)
    source = None
    if phrase:
        source = PhraseSource("phrases", tuple(phrase))
    elif from_column:
        source = PhraseSource("column", column=from_column)
    batch = start_rank(services, project, source)
    if detach or not batch.chunks:
        echo(f"{batch.tasks} tasks are queued, in {len(batch.chunks)} jobs.")
        return
    progress = ChunkProgress(services.redis, batch.run)
    report, failures = watch(services.redis, batch.jobs, progress, batch.chunks, batch.tasks)
    ordered = int(result_of(services.redis, batch.jobs[-1]).get("ordered") or 0)
    finish(report, failures, f"tasks in order: {ordered}, predictions posted: {report.posted}")
    if not ordered:
        echo(
            "None has a phrase, or another version was promoted meanwhile.", fg=typer.colors.YELLOW, err=True
        )
        raise typer.Exit(1)
