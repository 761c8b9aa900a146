"""Lines of versions as the worker sees them: the projects of a line, and how their images are split.

The split of a line says for each image whether its labels are for training or held out. It is kept in
`<MODEL_DIR>/records/splits/<line>.json`. A line without one starts with the split that release 0.2 kept for
all projects together: what served before there were lines was trained by it.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sspsam.files import replace_text
from sspsam.version_store.lines import line_key
from worker.records import records_folder

Side = Literal["train", "held-out"]
Split = Mapping[str, Side]
"""Image sha256 -> side."""

SPLIT_OF_ALL = "split.json"
"""Of release 0.2."""


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
    """Reads the split of a line."""
    for path in (_split_path(model_dir, line), records_folder(model_dir) / SPLIT_OF_ALL):
        try:
            sides: dict[str, Side] = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            continue
        return sides
    return {}


def save_split(model_dir: Path, line: str, sides: Split) -> None:
    """Replaces the split of a line."""
    path = _split_path(model_dir, line)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(dict(sides)))


def continue_split(model_dir: Path, line: str, others: Iterable[str]) -> None:
    """Extends the split of a line that continues with the weights of others."""
    save_split(model_dir, line, merge_splits(load_split(model_dir, name) for name in (line, *others)))


def merge_splits(splits: Iterable[Split]) -> dict[str, Side]:
    """Split of a line that continues others: an image that any of them was trained on is not held out."""
    sides: dict[str, Side] = {}
    for split in splits:
        for image, side in split.items():
            sides[image] = "train" if "train" in (side, sides.get(image)) else "held-out"
    return sides


def _split_path(model_dir: Path, line: str) -> Path:
    return records_folder(model_dir) / "splits" / f"{line_key(line)}.json"
