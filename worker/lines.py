"""Lines of versions as the worker sees them: the projects of a line, and how their images are split.

The split of a line says for each image whether its labels are for training or held out. It is kept in
`<MODEL_DIR>/records/splits/<line>.json`. A line without one starts with the split that release 0.2 kept for
all projects together: what served before there were lines was trained by it.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sspsam import VersionStore
from sspsam.files import replace_text
from sspsam.version_store import sharing
from sspsam.version_store.lines import line_key, line_of_project
from sspsam.version_store.store import VersionCard
from worker.records import records_folder

Side = Literal["train", "held-out"]
Split = Mapping[str, Side]
"""Image sha256 -> side."""

logger = logging.getLogger(__name__)

COPY = ".copy.json"
"""Suffix of a second copy of a split, which cannot be derived from anything else."""
SPLIT_OF_ALL = "split.json"
"""Of release 0.2."""


class DamagedSplitError(ValueError):
    """A split cannot be read; the message says what to do."""


@dataclass(frozen=True)
class Line:
    """A line of versions and the projects that it learns from."""

    name: str
    projects: tuple[int, ...]

    @property
    def key(self) -> str:
        """In names of runs and in keys."""
        return line_key(self.name)

    @property
    def described(self) -> str:
        return named_projects(self.projects)


def named_projects(projects: Iterable[int]) -> str:
    """`project 7`, or `projects 3 and 7`."""
    numbers = [str(project) for project in projects]
    if len(numbers) == 1:
        return f"project {numbers[0]}"
    return f"projects {', '.join(numbers[:-1])} and {numbers[-1]}" if numbers else "no project"


def load_split(model_dir: Path, line: str) -> dict[str, Side]:
    """Reads the split of a line.

    Raises:
        DamagedSplitError: no copy of it can be read.
    """
    own = _split_path(model_dir, line)
    for paths in ((own, own.with_suffix(COPY)), (records_folder(model_dir) / SPLIT_OF_ALL,)):
        found = _readable(paths)
        if found is not None:
            return found
    return {}


def _readable(copies: Iterable[Path]) -> dict[str, Side] | None:
    """What the copies of a split say; None if there is none.

    If they differ, one is damaged, or a writer was killed between them: an image that one of them trains on
    is not held out.

    Raises:
        DamagedSplitError: all that there are are damaged.
    """
    damage, read = "", []
    for path in copies:
        try:
            sides = json.loads(path.read_text(encoding="utf-8"))
            if not isinstance(sides, dict) or not set(sides.values()) <= {"train", "held-out"}:
                raise ValueError("not a split of images")
        except FileNotFoundError:
            continue
        except (OSError, ValueError, TypeError, RecursionError) as error:
            damage = damage or f"{path} is damaged ({error})"
            logger.error("%s", damage)
            continue
        read.append(sides)
    if read:
        if any(sides != read[0] for sides in read):
            logger.error("the copies of the split %s differ: they are joined", path)
        return merge_splits(read)
    if damage:
        raise DamagedSplitError(
            f"{damage}: restore it from a backup. Without it, images that a version was trained on might "
            "count as held out"
        )
    return None


def save_split(model_dir: Path, line: str, sides: Split) -> None:
    """Replaces the split of a line."""
    path = _split_path(model_dir, line)
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(dict(sides))
    replace_text(path.with_suffix(COPY), text)
    replace_text(path, text)


def continue_split(model_dir: Path, line: str, others: Iterable[str]) -> None:
    """Extends the split of a line that continues with the weights of others."""
    save_split(model_dir, line, merge_splits(load_split(model_dir, name) for name in (line, *others)))


def adopt_version(store: VersionStore, model_dir: Path, line: str, other: str) -> VersionCard:
    """Starts a line from the version that serves another, and continues its split.

    Raises:
        VersionError: as `sspsam.version_store.sharing.adopt`.
        DamagedSplitError: see there; as the functions below.
    """
    continue_split(model_dir, line, [other])
    return sharing.adopt(store, line, other)


def share_line(
    store: VersionStore, model_dir: Path, projects: Collection[int], name: str = "", source: str | None = None
) -> str:
    """Makes projects share a line, which continues the splits of all whose labels it may have learned.

    The split comes first: a fine-tune may be decided as soon as the line is shared.

    Raises:
        VersionStateError: as `sspsam.version_store.sharing.share`.
    """
    line = sharing.checked_name(store.state(), projects, name)
    others = [line_of_project(project) for project in projects]
    continue_split(model_dir, line, others if source is None else [*others, source])
    return sharing.share(store, projects, line, source)


def unshare_line(store: VersionStore, model_dir: Path, projects: Collection[int]) -> None:
    """Makes projects leave the lines that they share; each continues the split as well.

    Raises:
        VersionStateError: as `sspsam.version_store.sharing.unshare`.
    """
    for project in projects:
        continue_split(model_dir, line_of_project(project), [store.line_of(project)])
    sharing.unshare(store, projects)


def merge_splits(splits: Iterable[Split]) -> dict[str, Side]:
    """Split of a line that continues others: an image that any of them was trained on is not held out."""
    sides: dict[str, Side] = {}
    for split in splits:
        for image, side in split.items():
            sides[image] = "train" if "train" in (side, sides.get(image)) else "held-out"
    return sides


def _split_path(model_dir: Path, line: str) -> Path:
    return records_folder(model_dir) / "splits" / f"{line_key(line)}.json"
