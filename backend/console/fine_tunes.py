"""Fine-tunes for the start page, from the files in a version's folder.

    log.jsonl               training log: lines with `step` and the loss terms
    report.html, report.md  the evaluation, as text and tables
    before-after.json       largest changes: `file` (an image of both answers), `phrase`, and IoU `before`
                            and `after`, 0..1

All files are optional.
"""

from __future__ import annotations

import json
import logging
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeGuard

from sspsam import VersionStore
from sspsam.version_store.sharing import ADOPTED
from sspsam.version_store.store import VersionCard, VersionError

LOG = "log.jsonl"
REPORTS = ("report.html", "report.md")
"""The first existing one is linked."""
PICTURES = "before-after.json"
SHOWN_TYPES: Mapping[str, str] = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/plain; charset=utf-8",
    ".jsonl": "text/plain; charset=utf-8",
    ".webp": "image/webp",
    ".png": "image/png",
    ".jpg": "image/jpeg",
}
"""Suffixes of a version's files that browsers may request: no weights."""
KINDS = ("corrected", "accepted", "added", "confirmed absent")
"""What annotators did, in a card's composition of the data."""
LATEST = 3
LOSS = "total"
CURVE_WH = (300, 80)
CURVE_POINTS = 150

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Curve:
    """A quantity over training steps, scaled to a box of CURVE_WH."""

    points: str
    """Points of an SVG polyline."""
    first: float
    last: float
    steps: int


@dataclass(frozen=True)
class Pair:
    """An image of the answers before and after, side by side."""

    file: str
    phrase: str
    before: float
    """IoU with the submitted mask, 0..1."""
    after: float


@dataclass(frozen=True)
class FineTune:
    """One fine-tuned version."""

    card: VersionCard
    loss: Curve | None
    report: str
    """File name; empty if there is none."""
    pictures: Sequence[Pair]
    """Largest improvement first."""
    training: str
    """How it was trained, in one sentence."""
    composition: Sequence[tuple[str, str]]
    """(label, composition of its labels); empty for one label."""


def latest_fine_tunes(store: VersionStore, cards: Sequence[VersionCard]) -> list[FineTune]:
    """The newest fine-tuned versions, newest first.

    Args:
        store: Contains their files.
        cards: All versions, oldest first.
    """
    published = [card for card in cards if card.version_id != store.base_version]
    shown = []
    for card in reversed(published[-LATEST:]):
        try:
            shown.append(_fine_tune(store, card))
        except (ValueError, TypeError, LookupError, AttributeError, ArithmeticError, OSError) as error:
            logger.warning("the fine-tune %s cannot be shown: %s", card.version_id, error)
    return shown


def shown_file(store: VersionStore, version_id: str, name: str) -> Path | None:
    """File of a version requested by a browser; None if it does not exist or may not be shown."""
    return _file(store, version_id, name) if Path(name).suffix in SHOWN_TYPES else None


def _file(store: VersionStore, version_id: str, name: str) -> Path | None:
    try:
        return store.file(version_id, name)
    except VersionError:
        return None


def how_trained(card: VersionCard) -> str:
    """How a version was trained, from its card; empty for base weights."""
    if not card.parent:
        return ""
    if ADOPTED in card.data:
        return f"A copy of {card.parent}, adopted from another line."
    labels, projects = card.data.get("trained_on"), card.data.get("projects") or [card.data.get("project")]
    steps, size, rate = (card.config.get(name) for name in ("steps", "batch_size", "learning_rate"))
    steps = card.data.get("steps", steps)
    said = f"Fine-tuned from {card.parent}"
    said += f" on {labels} labels" if labels else ""
    said += f" ({counts})" if (counts := _counts(card.data.get("composition"))) else ""
    if all(projects):
        said += f" of {'projects' if len(projects) > 1 else 'project'} {', '.join(map(str, projects))}"
    said += (
        f", {steps} steps of {size} samples at a learning rate of {rate:g}" if steps and size and rate else ""
    )
    return f"{said}."


def composition_by_label(card: VersionCard) -> list[tuple[str, str]]:
    """What annotators did to the labels of a fine-tune, by label, if there are several."""
    found = card.data.get("composition_by_label")
    rows = [(str(label), _counts(counts)) for label, counts in found.items()] if _is_map(found) else []
    return rows if len(rows) > 1 else []


def _counts(composition: object) -> str:
    """Composition of the data as text, without zeros."""
    if not _is_map(composition):
        return ""
    return ", ".join(f"{composition[name]} {name}" for name in KINDS if composition.get(name))


def _is_map(value: object) -> TypeGuard[Mapping[str, Any]]:
    return isinstance(value, Mapping)


def curve(values: Sequence[tuple[int, float]]) -> Curve | None:
    """Scales (step, value) pairs to the box; None for fewer than two points."""
    if len(values) < 2:
        return None
    stride = math.ceil(len(values) / CURVE_POINTS)
    drawn = [*values[:-1:stride], values[-1]]
    steps, figures = zip(*drawn, strict=True)
    low, high, (width, height) = min(figures), max(figures), CURVE_WH
    across, up = max(1, steps[-1] - steps[0]), (high - low) or 1.0
    points = " ".join(
        f"{width * (step - steps[0]) / across:.1f},{height * (high - figure) / up:.1f}"
        for step, figure in drawn
    )
    return Curve(points, figures[0], figures[-1], steps[-1])


def _fine_tune(store: VersionStore, card: VersionCard) -> FineTune:
    names = store.file_names(card)
    report = next((name for name in REPORTS if name in names), "")
    listed, log = (_file(store, card.version_id, name) for name in (PICTURES, LOG))
    pictures = [] if listed is None else [pair for pair in _pairs(listed) if pair.file in names]
    loss = None if log is None else curve(_losses(log))
    return FineTune(card, loss, report, pictures, how_trained(card), composition_by_label(card))


def _pairs(path: Path) -> list[Pair]:
    """Entries of the image list; empty if it is unreadable."""
    try:
        listed = json.loads(path.read_text(encoding="utf-8"))
        return [
            Pair(str(entry["file"]), str(entry["phrase"]), float(entry["before"]), float(entry["after"]))
            for entry in listed
        ]
    except (OSError, ValueError, TypeError, LookupError, AttributeError, OverflowError, RecursionError):
        return []


def _losses(path: Path) -> list[tuple[int, float]]:
    """(step, loss) of each line that has both; stops at the first invalid line."""
    found: list[tuple[int, float]] = []
    with path.open(encoding="utf-8", errors="replace") as lines:
        for text in lines:
            try:
                line: Any = json.loads(text)
            except (ValueError, RecursionError):
                break
            loss = finite(line.get(LOSS)) if isinstance(line, dict) else None
            if loss is not None and isinstance(line.get("step"), int):
                found.append((line["step"], loss))
    return found


def finite(value: object) -> float | None:
    """The value as a finite number; None if it is none."""
    try:
        number = float(value) if isinstance(value, int | float) else math.inf
    except OverflowError:
        return None
    return number if math.isfinite(number) else None
