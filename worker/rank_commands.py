"""`sspsam rank`: queues the unlabeled tasks of a project to be scored, and shows how far the workers are."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer()


@app.command()
def rank(
    project: Annotated[int, typer.Option(help="Number of the Label Studio project.", min=1)],
    phrase: Annotated[
        list[str] | None,
        typer.Option(help="What to look for in every picture; again, or with `;`, for several."),
    ] = None,
    from_column: Annotated[
        str, typer.Option(metavar="NAME", help="Take the phrases of each task from this field of its data.")
    ] = "",
    detach: Annotated[bool, typer.Option("--detach", help="Queue it, and do not wait.")] = False,
) -> None:
    """Put first what teaches most: tasks that the model is least certain of, near-duplicates last.

    Every task that nobody has annotated gets a prediction whose score is its place; the project is set to
    Label Studio's uncertainty sampling, and to the version that answered. Without --phrase or --from-column,
    it looks for the phrases in the tasks' data, else for what the project's annotators ask most, else for the
    labels. Run it again after a promotion.
    """
    from backend.labelstudio.config import LabelingConfig
    from backend.settings import Settings
    from worker.chunks import enqueue_after, enqueue_once, finish, watch
    from worker.prelabel import PhraseSource, Progress, check_source, chunk_name, chunks_of
    from worker.queues import prelabel_queue, require_redis
    from worker.rank import own_phrases, run_name
    from worker.services import Services

    if phrase and from_column:
        raise typer.BadParameter("give --phrase or --from-column, not both")
    services = Services(Settings())
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
    run = run_name(project, source)
    progress = Progress(services.redis, run)
    chunks = {chunk_name(ids): ids for ids in chunks_of(task_ids)}
    queue = prelabel_queue(services.redis)
    for name, ids in chunks.items():
        kwargs = {
            "project_id": project,
            "run": run,
            "chunk": name,
            "source": source.to_dict(),
            "task_ids": ids,
        }
        if enqueue_once(queue, "worker.jobs.rank_chunk", f"{run}-{name}", kwargs):
            progress.forget(name)
    jobs = [f"{run}-{name}" for name in chunks]
    if jobs:
        last = {"project_id": project, "run": run}
        jobs.append(enqueue_after(queue, "worker.jobs.order_project", f"{run}-order", last, jobs))
    if detach or not chunks:
        typer.echo(f"{len(task_ids)} tasks are queued, in {len(chunks)} jobs.")
        return
    report, failures = watch(services.redis, jobs, progress, list(chunks), len(task_ids))
    scored = report.tasks - len(report.problems)
    finish(report, failures, f"tasks in order: {scored}, predictions posted: {report.posted}")
