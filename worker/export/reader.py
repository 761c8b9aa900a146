"""Reads the selected labels from Label Studio, one page of tasks at a time.

The formats are in `worker.export.coco` and `worker.export.png`. Several annotations of one task are never
merged: each is written with its id and its annotator, and the user of the export chooses between them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Protocol
from urllib.parse import unquote, urljoin, urlsplit

from backend.errors import BackendError, LabelStudioNotFound, LabelStudioUnavailable
from backend.labelstudio.annotations import AnnotationContent, read_annotation
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.state.skipped_items import reason_of
from sspsam.images.image_io import IMAGE_MAX_PIXELS

Json = dict[str, Any]

ImageSize = Callable[[object, str], tuple[int, int]]
"""Maps a task's image reference and id to the (H, W) of the image; used for tasks without a mask."""
TASKS_PER_PAGE = 20
"""Bounds memory: each task holds all its masks."""
MAX_PROBLEMS = 1000
"""Messages kept; further problems are only counted."""


@dataclass(frozen=True)
class Selection:
    """Selects annotations: by default all that were submitted. Skipped ones are never exported."""

    since: datetime | None = None
    """Saved at or after this time."""
    until: datetime | None = None
    """Saved before this time."""
    annotators: frozenset[int] = frozenset()
    """Ids of users; empty for all users."""
    ground_truth: bool = False
    """Only annotations marked as ground truth."""

    def takes(self, annotation: Mapping[str, Any]) -> bool:
        if annotation.get("was_cancelled") or (self.ground_truth and not annotation.get("ground_truth")):
            return False
        if self.annotators and user_id(annotation.get("completed_by")) not in self.annotators:
            return False
        if self.since is None and self.until is None:
            return True
        saved = datetime.fromisoformat(str(annotation["updated_at"]))
        saved = saved if saved.tzinfo else saved.replace(tzinfo=UTC)
        late_enough = self.since is None or saved >= self.since
        return late_enough and (self.until is None or saved < self.until)


EVERYTHING = Selection()


@dataclass(frozen=True)
class LabelledImage:
    """A task with its selected annotations."""

    task: int
    file_name: str
    """The last part of its URL; unique in an export."""
    url: str
    """URL under which Label Studio shows it."""
    hw: tuple[int, int] | None
    """(H, W); None if unknown."""
    annotations: tuple[tuple[Mapping[str, Any], AnnotationContent], ...]
    """Each as returned by Label Studio, and parsed."""


class Writer(Protocol):
    """Writes labelled images one by one; the output is complete when `close` returns."""

    def add(self, image: LabelledImage) -> None: ...

    def close(self) -> None: ...

    def discard(self) -> None:
        """Removes partial output; existing output is kept."""


@dataclass
class Summary:
    """Counts and problems of an export."""

    images: int = 0
    masks: int = 0
    no_target: int = 0
    """Phrases confirmed to be absent."""
    unconfirmed: int = 0
    """Phrases left in the prompt box: they are not labels and are not exported."""
    several: int = 0
    """Images with more than one annotation."""
    problem_count: int = 0
    problems: list[str] = field(default_factory=list)
    """Messages about labels that are left out; all others are included."""

    def note(self, problem: str) -> None:
        self.problem_count += 1
        if len(self.problems) < MAX_PROBLEMS:
            self.problems.append(problem)


class ProjectReader:
    """Reads the labels of a project.

    Args:
        client: Label Studio client.
        project_id: The number in the URL of the project's page.
        image_size: Called for images without a mask, whose size is otherwise unknown.
        selection: Annotations to export.

    Raises:
        LabelStudioUnavailable, LabelStudioUnauthorized, LabelStudioError: the project cannot be read.
        LabelStudioNotFound: there is no such project.
        LabelingConfigError: the project has no brush tag.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        image_size: ImageSize,
        selection: Selection = EVERYTHING,
        max_pixels: int = IMAGE_MAX_PIXELS,
    ) -> None:
        try:
            self.project = client.project(project_id)
        except LabelStudioNotFound as error:
            raise LabelStudioNotFound(f"Label Studio at {client.url} has no project {project_id}") from error
        self.config = LabelingConfig.parse(self.project["label_config"])
        self.config.require("mask", "image")
        self.url = client.url
        self.summary = Summary()
        self._client = client
        self._image_size = image_size
        self._selection = selection
        self._max_pixels = max_pixels
        self._file_names: set[str] = set()

    @property
    def task_count(self) -> int:
        """Number of tasks in the project, labelled or not: the total of a progress bar."""
        return int(self.project.get("task_number") or 0)

    def images(self, on_task: Callable[[], None] = lambda: None) -> Iterator[LabelledImage]:
        """Yields the tasks that have a selected annotation, ordered by id.

        Args:
            on_task: Called after each task of the project.
        """
        for task in self._client.tasks(int(self.project["id"]), TASKS_PER_PAGE):
            image = self._image_if_readable(task)
            if image is not None:
                yield image
            on_task()

    def _image_if_readable(self, task: Mapping[str, Any]) -> LabelledImage | None:
        """A task that cannot be read is noted and does not end the export."""
        number = str(task.get("id"))[:20]
        try:
            chosen = [
                found
                for entry in task.get("annotations") or []
                if (found := self._chosen(number, entry)) is not None
            ]
            return self._image(task, tuple(chosen)) if chosen else None
        except (LabelStudioUnavailable, MemoryError):
            raise
        except Exception as error:
            self.summary.note(f"task {number} is left out: {reason_of(error)}")
            return None

    def _chosen(
        self, task: str, entry: Mapping[str, Any]
    ) -> tuple[Mapping[str, Any], AnnotationContent] | None:
        """An annotation with its content; None if it is not selected, or cannot be read."""
        try:
            if not self._selection.takes(entry):
                return None
            content = read_annotation(entry, self.config, self._max_pixels)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            self.summary.note(f"an annotation of task {task} is left out: {reason_of(error)}")
            return None
        for problem in content.problems:
            self.summary.note(f"task {task}, annotation {entry['id']}: {problem}")
        return entry, content

    def _image(
        self, task: Mapping[str, Any], contents: tuple[tuple[Mapping[str, Any], AnnotationContent], ...]
    ) -> LabelledImage:
        regions = [region for _, content in contents for region in content.regions]
        assert self.config.image is not None
        value = self.config.image.of(task.get("data") or {}) or ""
        url = urljoin(f"{self.url}/", str(value))
        name = self._file_name(task["id"], url)
        hw = regions[0].hw if regions else self._size_of(task["id"], value)
        self.summary.images += 1
        self.summary.several += len(contents) > 1
        self.summary.masks += len(regions)
        self.summary.no_target += sum(len(content.no_target_phrases) for _, content in contents)
        self.summary.unconfirmed += sum(
            len(content.found_nothing) + len(content.not_asked) for _, content in contents
        )
        return LabelledImage(task["id"], name, url, hw, contents)

    def _size_of(self, task_id: int, value: object) -> tuple[int, int] | None:
        try:
            return self._image_size(value, str(task_id))
        except BackendError as error:
            self.summary.note(f"task {task_id}: the size of its image is unknown: {error}")
            return None

    def _file_name(self, task_id: int, url: str) -> str:
        """The last part of the URL; a duplicate is prefixed with the task's id."""
        name = unquote(urlsplit(url).path).rsplit("/", 1)[-1] or f"task-{task_id}"
        if name in self._file_names:
            name = f"{task_id}-{name}"
        self._file_names.add(name)
        return name


def export(reader: ProjectReader, writer: Writer, on_task: Callable[[], None] = lambda: None) -> Summary:
    """Exports a project's labels; on failure, removes partial output.

    Raises:
        BackendError, OSError: reading or writing failed.
    """
    try:
        for image in reader.images(on_task):
            writer.add(image)
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return reader.summary


def user_id(completed_by: Any) -> int | None:
    """Label Studio returns an id or, in some places, a user object with an id."""
    value = completed_by.get("id") if isinstance(completed_by, Mapping) else completed_by
    return value if isinstance(value, int) else None
