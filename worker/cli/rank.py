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
    from backend.labelstudio.config import LabelingConfig
    from worker.projects.active_learning import own_phrases
    from worker.projects.batch_jobs import enqueue_after, enqueue_chunks, finish, watch
    from worker.projects.prelabel import ChunkProgress, PhraseSource, check_source, run_name
    from worker.queueing.queues import prelabel_queue, require_redis
    from worker.services import Services

    if phrase and from_column:
        raise typer.BadParameter("give either --phrase or --from-column, not both")
    services = Services(service_settings(data_dir))
    require_redis(services.settings.redis_url)
    client = services.label_studio
    config = LabelingConfig.parse(client.project(project)["label_config"])
    config.require("mask", "image")
    if phrase:
        source = PhraseSource("phrases", tuple(phrase))
    elif from_column:
        source = PhraseSource("column", column=from_column)
    else:
        source = own_phrases(services.collection(project).records(), config)
    check_source(source, config)
    task_ids = [int(task["id"]) for task in client.unannotated_tasks(project)]
    run = run_name("rank", project, source)
    asked = {"project_id": project, "source": source.to_dict()}
    chunks = enqueue_chunks(services.redis, "worker.jobs.rank_chunk", run, task_ids, asked)
    jobs = [f"{run}-{name}" for name in chunks]
    if jobs:
        queue, last = prelabel_queue(services.redis), {"project_id": project, "run": run}
        jobs.append(enqueue_after(queue, "worker.jobs.order_project", f"{run}-order", last, jobs))
    if detach or not chunks:
        echo(f"{len(task_ids)} tasks are queued, in {len(chunks)} jobs.")
        return
    report, failures = watch(services.redis, jobs, ChunkProgress(services.redis, run), chunks, len(task_ids))
    scored = report.tasks - len(report.problems)
    finish(report, failures, f"tasks in order: {scored}, predictions posted: {report.posted}")
