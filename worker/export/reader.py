"""Reads the selected labels from Label Studio, one page of tasks at a time.

The formats are in `worker.export.coco`, `png` and `yolo`. Several annotations of one task are never merged:
each is written with its id and its annotator, and the user of the export chooses between them.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import urljoin

from backend.errors import BackendError, LabelStudioError, LabelStudioNotFound, LabelStudioUnavailable
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config import LabelingConfig
from backend.state.skipped_items import reason_of
from sspsam.images.frames import Hw
from sspsam.images.image_io import IMAGE_MAX_PIXELS
from worker.export.categories import Categories, FormLabels, form_labels, used_labels
from worker.export.file_names import DEFAULT_EXTENSION, FileNames, extension_of, name_of
from worker.export.pictures import PictureFolder, StoredPicture, read_header
from worker.export.regions import ExportContent, read_regions
from worker.export.splits import WHOLE, Split

Json = dict[str, Any]

ImageSize = Callable[[object, str], tuple[int, int]]
"""Maps a task's image reference and id to the (H, W) of the image; used for tasks without a mask."""
TASKS_PER_PAGE = 20
"""Bounds memory: each task holds all its masks."""
MAX_PROBLEMS = 1000
"""Messages kept; further problems are only counted."""
REASON_ID = 80
"""Characters of a region's ID in a message."""


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
    """Relative path with an extension; unique in an export, see `worker.export.file_names`."""
    url: str
    """URL under which Label Studio shows it; empty for a picture in the task's data itself."""
    hw: tuple[int, int]
    annotations: tuple[tuple[Mapping[str, Any], ExportContent], ...]
    """Each as returned by Label Studio, and parsed."""
    split: str = WHOLE.names[0]
    picture: StoredPicture | None = None
    """Its file; None if pictures are not needed, or this one cannot be fetched."""


class PictureSource(Protocol):
    """Fetches pictures: see `backend.images.store.ImageStore`."""

    def digest(self, value: object, task_id: str = "") -> str: ...

    def path(self, digest: str) -> Path: ...


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
    """Regions, of whatever shape."""
    no_target: int = 0
    """Phrases confirmed to be absent."""
    unconfirmed: int = 0
    """Phrases left in the prompt box: they are not labels and are not exported."""
    several: int = 0
    """Images with more than one annotation."""
    unchosen: int = 0
    """Annotations left out in favour of another of the same image."""
    skipped: int = 0
    """Skipped annotations: they are never exported."""
    left_out: Counter[str] = field(default_factory=Counter)
    """Kind and reason -> number of regions that are not exported."""
    splits: Counter[str] = field(default_factory=Counter)
    """Images of each split."""
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
        image_size: Called for images without a region, whose size is otherwise unknown.
        selection: Annotations to export.
        max_pixels: Regions on larger images are left out.
        pictures: Source of the pictures' files.
        with_pictures: Fetch every picture; else only those whose address does not tell their format.
        split: Splits by picture; fetches every picture, because its content decides.
        one_each: Take one annotation of a task: the ground truth, else the latest.

    Raises:
        LabelStudioUnavailable, LabelStudioUnauthorized, LabelStudioError: the project cannot be read.
        LabelStudioNotFound: there is no such project.
        LabelingConfigError: the project has no image tag.
    """

    def __init__(
        self,
        client: LabelStudioClient,
        project_id: int,
        image_size: ImageSize,
        selection: Selection = EVERYTHING,
        max_pixels: int = IMAGE_MAX_PIXELS,
        *,
        pictures: PictureSource | None = None,
        with_pictures: bool = False,
        split: Split = WHOLE,
        one_each: bool = False,
    ) -> None:
        try:
            self.project = client.project(project_id)
        except LabelStudioNotFound as error:
            raise LabelStudioNotFound(f"Label Studio at {client.url} has no project {project_id}") from error
        self.config = LabelingConfig.parse(self.project["label_config"])
        self.config.require("image")
        self.url = client.url
        self.summary = Summary()
        self._form = form_labels(self.project["label_config"], self.config)
        self.categories = Categories(self._form, _used_labels(client, project_id, self._form))
        self._client = client
        self._image_size = image_size
        self._selection = selection
        self._max_pixels = max_pixels
        self._pictures = pictures
        self._with_pictures = with_pictures or split.by_content
        self._split = split
        self._one_each = one_each
        self._file_names = FileNames()

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
            name = self._name(task)
            chosen = [
                found
                for entry in task.get("annotations") or []
                if (found := self._chosen(number, entry)) is not None
            ]
            if self._one_each and chosen:
                self.summary.unchosen += len(chosen) - 1
                chosen = [max(chosen, key=lambda pair: _rank(pair[0]))]
            return self._image(task, name, chosen) if chosen else None
        except (LabelStudioUnavailable, MemoryError):
            raise
        except Exception as error:
            self.summary.note(f"task {number} is left out: {reason_of(error)}")
            return None

    def _chosen(self, task: str, entry: Mapping[str, Any]) -> tuple[Mapping[str, Any], ExportContent] | None:
        """An annotation with its content; None if it is not selected, or cannot be read."""
        try:
            if not self._selection.takes(entry):
                self.summary.skipped += bool(entry.get("was_cancelled"))
                return None
            content = read_regions(entry, self.config, self._form, self._max_pixels)
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
            self.summary.note(f"an annotation of task {task} is left out: {reason_of(error)}")
            return None
        for problem in content.problems:
            self.summary.note(f"task {task}, annotation {entry['id']}: {problem}")
        self.summary.left_out.update(content.left_out)
        self.summary.unconfirmed += content.unconfirmed
        return entry, content

    def _value(self, task: Mapping[str, Any]) -> object:
        """The image in a task's data."""
        assert self.config.image is not None
        return self.config.image.of(task.get("data") or {}) or ""

    def _name(self, task: Mapping[str, Any]) -> str:
        """File name of a task's picture; every task takes one, so that no selection changes it."""
        return self._file_names.unique(name_of(str(self._value(task)), task["id"]), task["id"])

    def _image(
        self, task: Mapping[str, Any], name: str, contents: list[tuple[Mapping[str, Any], ExportContent]]
    ) -> LabelledImage | None:
        value = self._value(task)
        address = str(value)
        picture = self._picture(task["id"], value, fetch=self._with_pictures or not extension_of(name))
        regions = [region for _, content in contents for region in content.regions]
        sizes = Counter(region.hw for region in regions)
        if picture is not None:
            hw: Hw | None = picture.hw
        elif len(sizes) == 1:
            hw = regions[0].hw
        else:
            hw = self._size_of(task["id"], value, sizes)
        if hw is None:
            return None
        name = name if extension_of(name) else f"{name}{picture.extension if picture else DEFAULT_EXTENSION}"
        fitting = tuple((entry, self._fitting(task["id"], entry, content, hw)) for entry, content in contents)
        split = self._split.of(picture.digest if picture else hashlib.sha256(address.encode()).hexdigest())
        self._count(fitting, split)
        url = "" if address[:5].lower() == "data:" else urljoin(f"{self.url}/", address)
        return LabelledImage(task["id"], name, url, hw, fitting, split, picture)

    def _picture(self, task_id: int, value: object, fetch: bool) -> StoredPicture | None:
        """The picture's file, if it is to be fetched and can be."""
        if not fetch or self._pictures is None:
            return None
        try:
            digest = self._pictures.digest(value, str(task_id))
            return read_header(self._pictures.path(digest), digest)
        except BackendError as error:
            self.summary.note(f"task {task_id}: its picture is missing: {reason_of(error)}")
            return None

    def _fitting(
        self, task_id: int, entry: Mapping[str, Any], content: ExportContent, hw: tuple[int, int]
    ) -> ExportContent:
        """The content without regions on a picture of another size: no format can express them."""
        strangers = [region for region in content.regions if region.hw != hw]
        if not strangers:
            return content
        for region in strangers:
            place = f"task {task_id}, annotation {entry['id']}: region {region.region_id[:REASON_ID]}"
            sizes = f"{region.hw[0]} x {region.hw[1]} pixels, its picture has {hw[0]} x {hw[1]}"
            self.summary.note(f"{place} is left out: it was drawn on {sizes}")
        return replace(content, regions=tuple(region for region in content.regions if region.hw == hw))

    def _count(self, contents: tuple[tuple[Mapping[str, Any], ExportContent], ...], split: str) -> None:
        self.summary.images += 1
        self.summary.splits[split] += 1
        self.summary.several += len(contents) > 1
        self.summary.masks += sum(len(content.regions) for _, content in contents)
        self.summary.no_target += sum(len(content.no_target_phrases) for _, content in contents)

    def _size_of(self, task_id: int, value: object, sizes: Counter[Hw]) -> Hw | None:
        """Size of a picture whose regions have several sizes, or none; if unreadable, the commonest."""
        try:
            return self._image_size(value, str(task_id))
        except BackendError as error:
            if sizes:
                return sizes.most_common(1)[0][0]
            self.summary.note(
                f"task {task_id} is left out: it has no region, and its picture cannot be read: {error}"
            )
            return None


def _rank(annotation: Mapping[str, Any]) -> tuple[bool, str, int]:
    """The higher, the rather an annotation stands for its task."""
    saved = str(annotation.get("updated_at") or annotation.get("created_at") or "")
    return bool(annotation.get("ground_truth")), saved, int(annotation["id"])


def _used_labels(client: LabelStudioClient, project_id: int, form: FormLabels) -> list[str]:
    """Labels of the project's annotations; none if this Label Studio does not tell."""
    try:
        return used_labels(client.project_summary(project_id), form)
    except LabelStudioUnavailable:
        raise
    except LabelStudioError:
        return []


def export(
    reader: ProjectReader,
    writer: Writer,
    on_task: Callable[[], None] = lambda: None,
    pictures: PictureFolder | None = None,
) -> Summary:
    """Exports a project's labels; on failure, removes partial output.

    Args:
        reader: Source of the labels.
        writer: Format.
        on_task: Called after each task of the project.
        pictures: Where to write the pictures; None for nowhere.

    Raises:
        BackendError, OSError: reading or writing failed.
    """
    try:
        for image in reader.images(on_task):
            try:
                writer.add(image)
            except BackendError:
                raise
            except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError) as error:
                reader.summary.note(f"task {image.task} is left out in part: {reason_of(error)}")
                continue
            if pictures is not None and image.picture is not None:
                _write_picture(pictures, image, reader.summary)
        writer.close()
    except BaseException:
        writer.discard()
        raise
    return reader.summary


def _write_picture(pictures: PictureFolder, image: LabelledImage, summary: Summary) -> None:
    assert image.picture is not None
    try:
        pictures.add(image.picture, image.file_name)
    except BackendError as error:
        summary.note(f"task {image.task}: its picture is missing: {reason_of(error)}")


def user_id(completed_by: Any) -> int | None:
    """Label Studio returns an id or, in some places, a user object with an id."""
    value = completed_by.get("id") if isinstance(completed_by, Mapping) else completed_by
    return value if isinstance(value, int) else None
