"""Writes an export in a format: to a file or folder, or as one stream."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Literal

from backend.errors import ExportError

if TYPE_CHECKING:
    from worker.export.reader import LabelledImage, ProjectReader, Summary, Writer
    from worker.export.splits import Split

Format = Literal["coco", "coco-polygons", "refcoco", "png", "yolo", "yolo-detect"]
SHOWN_REASONS = 20
FOLDER_FORMATS = ("refcoco", "png", "yolo", "yolo-detect")


@dataclass(frozen=True)
class Target:
    """What is written, and where."""

    file_format: Format
    out: Path
    images: Path | None
    split: Split
    label_maps: bool = False

    @property
    def is_yolo(self) -> bool:
        return self.file_format.startswith("yolo")

    @property
    def needs_pictures(self) -> bool:
        return self.images is not None or self.is_yolo

    @property
    def is_folder(self) -> bool:
        """Whether `out` is a folder."""
        return self.file_format in FOLDER_FORMATS

    @property
    def images_inside(self) -> Path | None:
        """The folder of the pictures relative to `out`, if it is below it: it is then written with it."""
        if self.images is None or not self.is_folder or self.file_format == "refcoco":
            return None
        images, out = self.images.resolve(), self.out.resolve()
        if images == out:
            raise ExportError(f"{out} is the folder of the export itself: --images {self.images}/images")
        return images.relative_to(out) if out in images.parents else None

    def part(self, split: str) -> Path:
        """The file of a split."""
        return self.out.with_name(f"{self.out.stem}_{split}{self.out.suffix}")


def write_export(
    reader: ProjectReader, target: Target, on_task: Callable[[], None] = lambda: None
) -> Summary:
    """Exports a project's labels.

    Args:
        reader: Reads the labels.
        target: What is written, and where.
        on_task: Called after each task of the project.

    Raises:
        ExportError: the output cannot be written.
        LabelStudioError: the labels cannot be read.
    """
    from worker.export.pictures import PictureFolder
    from worker.export.reader import export

    writer, staging = _writer(reader, target)
    pictures = target.images
    if target.images_inside is not None and staging is not None:
        pictures = staging / target.images_inside
    folder = None if pictures is None else PictureFolder(pictures)
    return export(reader, writer, on_task, folder)


def remarks(summary: Summary) -> list[str]:
    """What a person has to know of an export, besides its problems."""
    found = [f"{count} {reason}" for reason, count in summary.left_out.most_common(SHOWN_REASONS)]
    if summary.skipped:
        found.append(f"{summary.skipped} skipped annotations are left out")
    if summary.several:
        found.append(
            f"{summary.several} images have several annotations; each is written. Tell them apart by "
            "`label_studio_annotation` and `completed_by`"
        )
    if summary.unchosen:
        found.append(
            f"{summary.unchosen} annotations are left out, since their images have others: the ground truth "
            "is written, else the latest"
        )
    if summary.unconfirmed:
        found.append(
            f"{summary.unconfirmed} phrases left in the prompt box are not exported: their absence is not "
            "confirmed"
        )
    return found


def export_to_stream(
    stream: IO[bytes],
    target: Target,
    reader: ProjectReader,
    write: Callable[[ProjectReader, Target], Summary] = write_export,
    staging: Path | None = None,
) -> Summary:
    """Exports to a temporary folder and copies the complete result into the stream.

    Args:
        stream: Receives the file, or a tar archive of the folder.
        target: What is written; its place is not used.
        reader: Reads the labels.
        write: Performs the export, for example with a progress bar.
        staging: Where the temporary folder is made, under a hidden name; default: that of the system.
    """
    with tempfile.TemporaryDirectory(prefix=".sspsam-export-", dir=staging) as folder:
        path = Path(folder) / ("labels" if target.is_folder else "labels.json")
        summary = write(reader, replace(target, out=path))
        if target.is_folder or target.split.by_content:
            with tarfile.open(fileobj=stream, mode="w|") as archive:
                for entry in sorted((path if target.is_folder else Path(folder)).iterdir()):
                    archive.add(entry, entry.name)
        else:
            with path.open("rb") as source:
                shutil.copyfileobj(source, stream)
    stream.flush()
    return summary


class SplitWriter:
    """Writes each image with the writer of its split.

    Args:
        writers: Split -> its writer.
    """

    def __init__(self, writers: Mapping[str, Writer]) -> None:
        self._writers = writers

    def add(self, image: LabelledImage) -> None:
        self._writers[image.split].add(image)

    def close(self) -> None:
        for writer in self._writers.values():
            writer.close()

    def discard(self) -> None:
        for writer in self._writers.values():
            writer.discard()


def _writer(reader: ProjectReader, target: Target) -> tuple[Writer, Path | None]:
    """The writer of a format, and the folder in which it prepares a new folder."""
    from worker.export.coco import CocoWriter, RefCocoWriter
    from worker.export.png import PngWriter
    from worker.export.yolo import YoloWriter

    split, out = target.split, target.out
    if target.file_format == "refcoco":
        return RefCocoWriter(out, reader, None if split.by_content else split.names[0]), None
    if target.file_format == "png":
        folders = split.names if split.by_content else ()
        png = PngWriter(out, reader, folders, target.label_maps, target.images_inside)
        return png, png.staging
    if target.is_yolo:
        yolo = YoloWriter(out, reader, split.names, boxes=target.file_format == "yolo-detect")
        return yolo, yolo.staging
    if out.is_dir():
        raise ExportError(f"{out} is a folder, but {target.file_format} is a single file")
    polygons = target.file_format == "coco-polygons"
    if not split.by_content:
        return CocoWriter(out, reader, polygons), None
    return SplitWriter({name: CocoWriter(target.part(name), reader, polygons) for name in split.names}), None
