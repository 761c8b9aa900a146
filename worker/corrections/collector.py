"""Reads annotations from Label Studio and stores their records."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

from backend.corrections import Tally
from backend.errors import (
    ImageError,
    ImageFetchError,
    LabelingConfigError,
    LabelStudioNotFound,
    LabelStudioUnavailable,
)
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import region_id_for
from backend.shared_redis import RECORDS_LOCK
from finetune.data.records import RefRecord
from worker.corrections.feedback_counts import tally_annotation
from worker.queueing.queues import redis_lock
from worker.records import AnnotationSource, Collection, ImageFacts, ServedMask, make_records, remembered
from worker.services import Services

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0


class BusyError(Exception):
    """Another process holds the lock of this annotation: try again later."""


@dataclass(frozen=True)
class Collected:
    """Outcome of collecting one annotation."""

    project: int
    """As stored in Label Studio."""
    annotation: int
    records: int = 0
    corrected: int = 0
    forgotten: bool = False
    """Label Studio no longer has it."""
    problem: str = ""
    """Why it yields no records although it should."""


@dataclass(frozen=True)
class CollectedLabels:
    """Content of an annotation: training records, and counts of the model's accepted and edited masks."""

    records: list[RefRecord]
    tallies: list[Tally]


@dataclass(frozen=True)
class Reconciled:
    """Changes made by a reconciliation."""

    project: int
    collected: int
    forgotten: int
    problems: int


def collect(services: Services, project_id: int, annotation_id: int) -> Collected:
    """Makes the records of an annotation from its current state in Label Studio.

    Raises:
        BusyError: another process is collecting it.
        LabelStudioUnavailable, ImageFetchError: it cannot be read now; earlier records are kept.
        LabelStudioError: Label Studio refuses the request.
    """
    lock = RECORDS_LOCK.format(annotation=annotation_id)
    with redis_lock(services.redis, lock, LOCK_WAIT_S) as locked:
        if not locked:
            raise BusyError(f"annotation {annotation_id} is being collected")
        return _collect(services, project_id, annotation_id)


def reconcile(services: Services, project: int) -> Reconciled:
    """Updates the records of a project to match Label Studio, since events may have been lost.

    Raises:
        LabelStudioError, LabelingConfigError: the project cannot be read; no record is removed.
    """
    client, collection = services.label_studio, services.collection(project)
    collected_before = set(collection.annotations())
    config = LabelingConfig.parse(client.project(project)["label_config"])
    found, changed, problems = set(), 0, 0
    for task in client.tasks(project):
        for annotation in task.get("annotations") or []:
            found.add(int(annotation["id"]))
            if is_collected(collection, annotation):
                continue
            try:
                changed += _keep(services, project, annotation, task, config)
            except (ImageError, LabelingConfigError) as error:
                logger.warning("annotation %s of project %d: %s", annotation["id"], project, error)
                problems += 1
    forgotten = forget(services, project, collected_before - found)
    return Reconciled(project, changed, forgotten, problems)


def forget(services: Services, project: int, annotations: Iterable[int]) -> int:
    """Removes the records and counts of deleted annotations; returns how many had been collected."""
    services.corrections.forget(project, annotations)
    return services.collection(project).forget(annotations)


def exists(client: LabelStudioClient, annotation: int) -> bool:
    """Whether Label Studio has an annotation. False if it does not respond: reconciliation corrects that."""
    try:
        client.annotation(annotation)
    except (LabelStudioNotFound, LabelStudioUnavailable):
        return False
    return True


def is_collected(collection: Collection, annotation: Mapping[str, Any]) -> bool:
    """Whether the stored records match the annotation's last save."""
    records = collection.of_annotation(int(annotation["id"]))
    return bool(records) and records[0].updated_at == annotation.get("updated_at")


def _collect(services: Services, project_id: int, annotation_id: int) -> Collected:
    client = services.label_studio
    try:
        annotation = client.annotation(annotation_id)
        task = client.task(int(annotation["task"]))
    except LabelStudioNotFound:
        forgotten = forget(services, project_id, [annotation_id])
        return Collected(project_id, annotation_id, forgotten=bool(forgotten))
    project = int(task["project"])
    try:
        config = LabelingConfig.parse(client.project(project)["label_config"])
        reading = _read(services, project, annotation, task, config)
    except ImageFetchError:
        raise
    except (ImageError, LabelingConfigError) as error:
        logger.warning("annotation %d of project %d: %s", annotation_id, project, error)
        return Collected(project, annotation_id, problem=str(error))
    _replace(services, project, annotation_id, reading)
    corrected = sum(record.corrected for record in reading.records)
    return Collected(project, annotation_id, len(reading.records), corrected)


def _keep(
    services: Services,
    project: int,
    annotation: Mapping[str, Any],
    task: Mapping[str, Any],
    config: LabelingConfig,
) -> bool:
    """Replaces an annotation's records unless another process holds it; returns whether they changed."""
    number, collection = int(annotation["id"]), services.collection(project)
    with redis_lock(services.redis, RECORDS_LOCK.format(annotation=number), wait_s=0) as locked:
        if not locked:
            return False
        before = collection.of_annotation(number)
        after = _read(services, project, annotation, task, config)
        _replace(services, project, number, after)
    return after.records != before


def _replace(services: Services, project: int, annotation: int, reading: CollectedLabels) -> None:
    services.collection(project).replace(annotation, reading.records)
    services.corrections.note(project, annotation, reading.tallies)


def _read(
    services: Services,
    project: int,
    annotation: Mapping[str, Any],
    task: Mapping[str, Any],
    config: LabelingConfig,
) -> CollectedLabels:
    """Reads an annotation; a skipped one yields no records.

    Raises:
        ImageError, LabelingConfigError: its image or the project's labeling config cannot be read.
    """
    content = read_annotation(annotation, config)
    for problem in content.problems:
        logger.warning("annotation %s of project %d: %s", annotation["id"], project, problem)
    if annotation.get("was_cancelled"):
        return CollectedLabels([], [])
    number, task_id = int(annotation["id"]), int(task["id"])
    earlier = remembered(services.collection(project).of_annotation(number))

    def served(region_id: str) -> ServedMask | None:
        return services.served(region_id) or earlier.get(region_id)

    on_task = services.redis_store.served_on(str(project), str(task_id))
    tallies = tally_annotation(annotation, content, served, on_task, config, services.store.current())
    if not (content.regions or content.no_target_phrases):
        return CollectedLabels([], tallies)
    image = _image_facts(services, task, config)
    source = AnnotationSource(project, task_id, number, str(annotation.get("updated_at") or ""), image)
    records = make_records(content, source, served, partial(region_id_for, str(project), str(task_id)))
    return CollectedLabels(records, tallies)


def image_value(task: Mapping[str, Any], config: LabelingConfig) -> object:
    """Returns the image reference in a task's data.

    Raises:
        LabelingConfigError: the labeling config has no image tag.
    """
    config.require("image")
    assert config.image is not None
    return (task.get("data") or {}).get(config.image.value)


def _image_facts(services: Services, task: Mapping[str, Any], config: LabelingConfig) -> ImageFacts:
    value = image_value(task, config)
    task_id = str(task["id"])
    digest = services.images.digest(value, task_id)
    return ImageFacts(digest, _image_url(services, value, task_id), services.image_hw(value, task_id))


def _image_url(services: Services, value: object, task_id: str) -> str:
    """URL of the image for people; for an image embedded in the task as data:, the task's URL."""
    if isinstance(value, str) and value.lstrip()[:5].lower() == "data:":
        return f"{services.label_studio.url}/api/tasks/{task_id}"
    return services.images.resolve(value, task_id)
