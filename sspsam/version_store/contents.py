"""Contents of a version: its files, and the frozen weights that its tensors belong to."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from sspsam.version_store.cards import WEIGHTS, ForeignVersionError, VersionCard
from sspsam.version_store.folders import CARD

if TYPE_CHECKING:
    import torch


def check_parents(card: VersionCard, frozen: Mapping[str, str]) -> None:
    """Compares the frozen weights by content: the same weights may have another name today.

    Raises:
        ForeignVersionError: the version was trained on others.
    """
    if card.parents_sha256 and set(card.parents_sha256.values()) != set(frozen.values()):
        raise ForeignVersionError(
            f"{card.version_id} was trained on {_named(card.parents_sha256)}, but would be served with "
            f"{_named(frozen)}: set WEIGHTS to the file that it was trained on, or promote another"
        )


def write_files(folder: Path, state: Mapping[str, torch.Tensor], files: Mapping[str, Path | str]) -> None:
    """Writes the files of a version; further files are name -> a path to copy, or text."""
    from sspsam.checkpoints.load import write_tensors

    write_tensors(folder / WEIGHTS, state)
    for name, content in files.items():
        if name in (WEIGHTS, CARD) or Path(name).name != name:
            raise ValueError(f"a version cannot contain a file named {name!r}")
        if isinstance(content, Path):
            shutil.copyfile(content, folder / name)
        else:
            (folder / name).write_text(content, encoding="utf-8")


def _named(weights: Mapping[str, str]) -> str:
    digits = ", ".join(f"{name} (sha256 {sha256[:12]}...)" for name, sha256 in sorted(weights.items()))
    return digits or "random weights"
