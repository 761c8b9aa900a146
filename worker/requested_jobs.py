"""The jobs that people ask for in the console: each does what a command of the same name does.

`backend.worker_requests` enqueues them by name. Errors that a person can do something about are in the
result, under `problem`.
"""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from secrets import token_hex
from typing import Literal

from rq import get_current_job

from backend.errors import BackendError
from backend.settings import Settings
from backend.shared_redis import announce_version
from backend.worker_requests import EXPORTS
from sspsam.files import replacing
from sspsam.version_store.sharing import ADOPTED
from sspsam.version_store.store import VersionError
from worker.export.reader import ProjectReader
from worker.export.splits import parse_split
from worker.export.writing import Format, Target, export_to_stream, remarks, write_export
from worker.jobs import JobResult, Number, checked
from worker.lines import DamagedSplitError
from worker.lines import adopt_version as adopt
from worker.projects.prelabel import PhraseSource
from worker.projects.starting import start_prefetch, start_prelabel, start_rank
from worker.services import Services

EXPORTS_KEPT = 5
"""Files per project: the newest."""
STAGED_MAX_AGE_S = 24 * 3600
"""Age of an unfinished file or folder that no export writes any more."""
PROGRESS_EVERY_S = 2.0
SHOWN_PROBLEMS = 20


@checked
def start_batch(
    project_id: Number,
    command: Literal["prelabel", "rank", "prefetch"],
    source: JobResult | None = None,
    limit: Number = 0,
) -> JobResult:
    """Queues the jobs of `sspsam prelabel`, `rank` or `prefetch`.

    Args:
        project_id: Number of the project.
        command: Name of the command.
        source: Source of the phrases, as written by `PhraseSource.to_dict`; for `rank`, None chooses them.
        limit: Of the tasks of `prefetch`; 0 takes every task.
    """
    services = Services(Settings())
    try:
        phrases = None if source is None else PhraseSource.from_dict(source)
        if command == "prefetch":
            batch = start_prefetch(services, project_id, limit)
        elif command == "rank":
            batch = start_rank(services, project_id, phrases)
        else:
            batch = start_prelabel(services, project_id, phrases or PhraseSource("labels"))
    except BackendError as error:
        return {"problem": str(error)}
    return asdict(batch)


@checked
def export_project(project_id: Number, file_format: Format) -> JobResult:
    """Exports a project's labels to a file in MODEL_DIR, for the console to give out."""
    services = Services(Settings())
    folder = services.settings.model_dir / EXPORTS / str(project_id)
    target = Target(file_format, folder, None, parse_split("train"))
    suffix = "tar" if target.is_folder else "json"
    moment = datetime.now(UTC).strftime("%Y%m%d-%H%M%S")
    path = folder / f"project-{project_id}-{file_format}-{moment}-{token_hex(3)}.{suffix}"
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    _drop_old(folder)  # first as well: what killed exports have left may take the room of this one
    try:
        reader = ProjectReader(
            services.label_studio,
            project_id,
            services.image_hw,
            max_pixels=services.settings.image_max_pixels,
            pictures=services.images,
            with_pictures=target.needs_pictures,
            split=target.split,
            one_each=target.is_yolo,
        )
        note = _progress_noter(reader.task_count)
        with replacing(path) as staged, staged.open("wb") as stream:
            summary = export_to_stream(
                stream, target, reader, lambda source, place: write_export(source, place, note), folder
            )
    except BackendError as error:
        return {"problem": str(error)}
    _drop_old(folder)
    return {
        "file": path.name,
        "images": summary.images,
        "masks": summary.masks,
        "no_target": summary.no_target,
        "problem_count": summary.problem_count,
        "problems": [*remarks(summary), *summary.problems][:SHOWN_PROBLEMS],
    }


@checked
def adopt_version(project_id: Number, source_id: Number) -> JobResult:
    """Starts a project from the version that serves another, as `sspsam versions adopt`."""
    services = Services(Settings())
    store = services.store
    line, other = store.line_of(project_id), store.line_of(source_id)
    try:
        card = adopt(store, services.settings.model_dir, line, other)
    except (VersionError, DamagedSplitError) as error:
        return {"problem": str(error)}
    announce_version(services.redis, line, store.current(line))
    return {"version": card.version_id, "parent": card.data.get(ADOPTED, "")}


def _progress_noter(total: int) -> Callable[[], None]:
    """Counts tasks in the job's metadata; does nothing outside of a job."""
    job, done, last_s = get_current_job(), 0, time.monotonic()

    def note() -> None:
        nonlocal done, last_s
        done += 1
        if job is not None and time.monotonic() - last_s > PROGRESS_EVERY_S:
            last_s = time.monotonic()
            job.meta |= {"done": done, "total": total}
            job.save_meta()

    return note


def _drop_old(folder: Path) -> None:
    """Removes all but the newest files, and what killed exports have left."""
    found = sorted(folder.glob("[!.]*"), key=lambda path: path.stat().st_mtime)
    staged = [path for path in folder.glob(".*") if time.time() - path.stat().st_mtime > STAGED_MAX_AGE_S]
    for path in (*found[:-EXPORTS_KEPT], *staged):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)
