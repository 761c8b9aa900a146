"""Starts batch jobs on a project, for `sspsam prelabel`, `rank` and `prefetch` and for the console."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from backend.errors import PrelabelError
from backend.labelstudio.config import LabelingConfig
from worker.projects.batch_jobs import enqueue_after, enqueue_chunks
from worker.projects.prelabel import PhraseSource, check_source, run_name
from worker.queueing.queues import prelabel_queue

if TYPE_CHECKING:
    from worker.services import Services


MOST_COLUMNS = 20
"""Named in a message."""


@dataclass(frozen=True)
class Batch:
    """Jobs that have been queued, each for a chunk of tasks."""

    run: str
    """Name under which progress is recorded."""
    tasks: int
    chunks: list[str]
    jobs: list[str]
    """IDs: of the chunks in their order, then of a job that follows them."""


def start_prelabel(services: Services, project: int, source: PhraseSource) -> Batch:
    """Queues the prediction of masks for all tasks.

    Raises:
        LabelStudioError: the project cannot be read.
        LabelingConfigError, PrelabelError: its form does not fit.
    """
    config = _config(services, project, "mask", "image")
    check_source(source, config)
    task_ids = _ids(services.label_studio.task_list(project), source)
    run = run_name("prelabel", project, source)
    asked = {"project_id": project, "source": source.to_dict()}
    return _start(services, "worker.jobs.prelabel_chunk", run, task_ids, asked)


def start_rank(services: Services, project: int, source: PhraseSource | None = None) -> Batch:
    """Queues the ranking of all tasks without an annotation.

    Args:
        services: The process's services.
        project: Number of the project.
        source: Phrases; default: those of the tasks, of the annotators, or of the form.

    Raises:
        LabelStudioError, LabelingConfigError, PrelabelError: as for `start_prelabel`.
    """
    from worker.projects.active_learning import own_phrases

    config = _config(services, project, "mask", "image")
    if source is None:
        source = own_phrases(services.collection(project).records(), config)
    check_source(source, config)
    task_ids = _ids(services.label_studio.unannotated_tasks(project), source)
    run = run_name("rank", project, source)
    asked = {"project_id": project, "source": source.to_dict()}
    batch = _start(services, "worker.jobs.rank_chunk", run, task_ids, asked)
    if batch.jobs:
        queue, last = prelabel_queue(services.redis), {"project_id": project, "run": run}
        batch.jobs.append(enqueue_after(queue, "worker.jobs.order_project", f"{run}-order", last, batch.jobs))
    return batch


def start_prefetch(services: Services, project: int, limit: int = 0) -> Batch:
    """Queues the embedding of images.

    Args:
        services: The process's services.
        project: Number of the project.
        limit: At most this many tasks without an annotation; 0 takes every task.

    Raises:
        PrelabelError: embeddings are not stored.
        LabelStudioError, LabelingConfigError: as for `start_prelabel`.
    """
    if services.settings.embeddings_dir is None:
        raise PrelabelError("EMBEDDING_STORE_BYTES is 0: embeddings cannot be stored")
    client = services.label_studio
    _config(services, project, "image")
    tasks = client.next_tasks(project, limit) if limit else client.task_list(project)
    task_ids = [int(task["id"]) for task in tasks]
    asked = {"project_id": project}
    return _start(services, "worker.jobs.prefetch_chunk", f"prefetch-{project}", task_ids, asked)


def _config(services: Services, project: int, *needed: str) -> LabelingConfig:
    config = LabelingConfig.parse(services.label_studio.project(project)["label_config"])
    config.require(*needed)
    return config


def _ids(tasks: Iterable[Mapping[str, Any]], source: PhraseSource) -> list[int]:
    """IDs of the tasks.

    Raises:
        PrelabelError: none of them has the column of the phrases.
    """
    found, columns = [], set[str]()
    for task in tasks:
        found.append(int(task["id"]))
        columns.update(map(str, task.get("data") or {}))
    if found and source.kind == "column" and source.column not in columns:
        known = ", ".join(sorted(columns)[:MOST_COLUMNS])
        raise PrelabelError(f"no task has the column {source.column!r}; there are: {known}")
    return found


def _start(
    services: Services, function: str, run: str, task_ids: list[int], asked: Mapping[str, object]
) -> Batch:
    chunks = enqueue_chunks(services.redis, function, run, task_ids, asked)
    return Batch(run, len(task_ids), chunks, [f"{run}-{name}" for name in chunks])
