"""Reads annotations from Label Studio and stores their records."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache, partial
from typing import Any

from backend.corrections import Tally
from backend.errors import (
    ImageError,
    ImageFetchError,
    LabelingConfigError,
    LabelStudioNotFound,
)
from backend.labelstudio.annotations import read_annotation
from backend.labelstudio.client import LabelStudioClient, moment_of
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import region_id_for
from backend.labelstudio.prompt_text import phrase_key
from backend.shared_redis import COLLECTED_KEY, RECORDS_LOCK
from backend.state.skipped_items import reason_of
from finetune.data.records import RefRecord
from sspsam import mask_to_coco_rle
from sspsam.images.masks import merge_coco_rles
from sspsam.version_store.cards import VersionError
from worker.corrections.feedback_counts import tally_annotation
from worker.queueing.queues import redis_lock
from worker.records import AnnotationSource, ImageFacts, ServedMask, make_records, remembered
from worker.services import Services

logger = logging.getLogger(__name__)

LOCK_WAIT_S = 60.0
COLLECT = "collect"
"""Kind of work under which annotations that could not be collected are recorded."""
READ = "read"
"""The same, for regions of annotations."""


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
    """Content of an annotation: its records, and counts of the model's accepted and edited masks."""

    records: list[RefRecord]
    """Those of unanswered phrases included."""
    tallies: list[Tally]
    submitted: set[str] = field(default_factory=set)
    """Ids of the proposed masks that were ever submitted in the annotation."""

    @property
    def labels(self) -> list[RefRecord]:
        """The training records."""
        return [record for record in self.records if not record.is_unanswered]


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


def forget(services: Services, project: int, annotations: Iterable[int]) -> int:
    """Removes the records and counts of deleted annotations; returns how many had been collected."""
    gone = list(annotations)
    services.corrections.forget(project, gone)
    if gone:
        services.redis.hdel(COLLECTED_KEY.format(project=project), *map(str, gone))
    for kind in (COLLECT, READ):
        services.skipped.clear(project, kind, [f"annotation {number}" for number in gone])
    return services.collection(project).forget(gone)


def exists(client: LabelStudioClient, annotation: int) -> bool:
    """Whether Label Studio has an annotation.

    Raises:
        LabelStudioUnavailable: it does not respond.
    """
    try:
        client.annotation(annotation)
    except LabelStudioNotFound:
        return False
    return True


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
        services.skipped.note(project, COLLECT, f"annotation {annotation_id}", error)
        return Collected(project, annotation_id, problem=str(error))
    _replace(services, project, annotation, reading)
    corrected = sum(record.corrected for record in reading.labels)
    return Collected(project, annotation_id, len(reading.labels), corrected)


def keep(
    services: Services,
    project: int,
    annotation: Mapping[str, Any],
    task: Mapping[str, Any],
    config: LabelingConfig,
) -> bool:
    """Replaces an annotation's records unless another process holds it; returns whether they changed.

    Raises:
        ImageError, LabelingConfigError: as `collect`; the earlier records are kept.
    """
    number, collection = int(annotation["id"]), services.collection(project)
    with redis_lock(services.redis, RECORDS_LOCK.format(annotation=number), wait_s=0) as locked:
        if not locked:
            return False
        before = collection.of_annotation(number)
        after = _read(services, project, annotation, task, config)
        _replace(services, project, annotation, after)
    return after.labels != before


def _replace(
    services: Services, project: int, annotation: Mapping[str, Any], reading: CollectedLabels
) -> None:
    number = int(annotation["id"])
    services.collection(project).replace(number, reading.records)
    day = str(annotation.get("updated_at") or "")[:10]
    services.corrections.note(project, number, reading.tallies, day)
    if reading.submitted:
        services.corrections.note_submitted(project, number, reading.submitted)
    mark = collected_mark(annotation, int(annotation["task"]))
    services.redis.hset(COLLECTED_KEY.format(project=project), str(number), mark)
    services.skipped.clear(project, COLLECT, [f"annotation {number}"])


def collected_mark(annotation: Mapping[str, Any], task: int) -> str:
    """What COLLECTED_KEY holds for the annotation's current state."""
    return f"{annotation.get('updated_at') or ''} {task}"


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
    content = read_annotation(annotation, config, services.settings.image_max_pixels)
    if content.problems:
        services.skipped.note(project, READ, f"annotation {annotation['id']}", "; ".join(content.problems))
    else:
        services.skipped.clear(project, READ, [f"annotation {annotation['id']}"])
    if annotation.get("was_cancelled"):
        return CollectedLabels([], [])
    number, task_id = int(annotation["id"]), int(task["id"])
    region_id_of = partial(region_id_for, str(project), str(task_id))
    earlier = remembered(services.collection(project).of_annotation(number), region_id_of)

    @cache
    def predicted() -> dict[str, ServedMask]:
        return _predicted(task, config, services.settings.image_max_pixels)

    drawn = {region.region_id: region for region in content.regions}

    def submitted(region_id: str) -> Mapping[str, Any]:
        return mask_to_coco_rle(drawn[region_id].mask) if region_id in drawn else {}

    def served(region_id: str) -> ServedMask | None:
        logged = services.served(region_id, partial(submitted, region_id))
        return logged or earlier.get(region_id) or predicted().get(region_id)

    before = services.corrections.submitted(project, number)
    nothing_found = services.redis_store.nothing_found(str(project), str(task_id))
    tallies = tally_annotation(content, served, before, nothing_found, config, _serving(services, project))
    regions = [*content.regions, *content.boxes]
    proposed = {region.region_id for region in regions if served(region.region_id) is not None}
    if not (regions or content.no_target_phrases or content.found_nothing):
        return CollectedLabels([], tallies, before | proposed)
    image = _image_facts(services, task, config)
    source = AnnotationSource(project, task_id, number, str(annotation.get("updated_at") or ""), image)
    records = make_records(content, source, served, region_id_of)
    return CollectedLabels(records, tallies, before | proposed)


def _predicted(task: Mapping[str, Any], config: LabelingConfig, max_pixels: int) -> dict[str, ServedMask]:
    """The proposals in the task's predictions, which outlive Redis and the records."""
    found: dict[str, ServedMask] = {}
    for prediction in task.get("predictions") or []:
        try:
            content = read_annotation(prediction, config, max_pixels)
            version = str(prediction.get("model_version") or "")
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            logger.warning("a prediction of task %s is not read: %s", task.get("id"), reason_of(error))
            continue
        at = moment_of(prediction.get("created_at"))
        regions = [*content.regions, *content.boxes]
        masks = [ServedMask(mask_to_coco_rle(r.mask), version, at, r.phrase or "") for r in regions]
        for region, mask in zip(regions, masks, strict=True):
            found[region.region_id] = replace(mask, answer=_answer_with(mask, masks))
    return found


def _answer_with(mask: ServedMask, masks: Iterable[ServedMask]) -> dict[str, Any] | None:
    """Union of the masks of a prediction with the phrase of one; None if that is the only one."""
    key = phrase_key(mask.phrase)
    rles = [other.rle for other in masks if key and phrase_key(other.phrase) == key]
    same_size = [rle for rle in rles if rle["size"] == mask.rle["size"]]
    return merge_coco_rles(same_size) if len(same_size) > 1 else None


def _serving(services: Services, project: int) -> str:
    """The version that serves a project; the base version if the store cannot be read, which must not stop
    collection.
    """
    try:
        state = services.store.state()
        return state.current(state.line_of(project))
    except (VersionError, OSError) as error:
        logger.warning("masks without a proposal are counted for the base version: %s", error)
        return services.store.base_version


def image_value(task: Mapping[str, Any], config: LabelingConfig) -> object:
    """Returns the image reference in a task's data.

    Raises:
        LabelingConfigError: the labeling config has no image tag.
    """
    config.require("image")
    assert config.image is not None
    return config.image.of(task.get("data") or {})


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
