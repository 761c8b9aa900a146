"""Notes that travel with weights, in a JSON file beside them: known words, and what certainties mean."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import TypeAdapter, ValidationError

from sspsam.checkpoints.load import CheckpointError
from sspsam.files import replacing
from sspsam.reading.known_words import KnownWords

NOTES_SUFFIX = ".json"


@dataclass(frozen=True)
class Calibration:
    """A non-decreasing, piecewise linear map of a raw certainty to the mean IoU that it has stood for."""

    raw: tuple[float, ...]
    """Ascending."""
    iou: tuple[float, ...]

    def __post_init__(self) -> None:
        if len(self.raw) != len(self.iou) or len(self.raw) < 2:
            raise ValueError("a calibration needs two or more points")
        if list(self.raw) != sorted(self.raw) or list(self.iou) != sorted(self.iou):
            raise ValueError("a calibration must not decrease")

    def __call__(self, raw: float) -> float:
        return float(np.interp(raw, self.raw, self.iou))


@dataclass(frozen=True)
class WeightsNotes:
    """The notes of one file of weights; empty for weights without any."""

    names: tuple[str, ...] = ()
    """Names of things in the text tower's training; empty if they are not listed, as for CLIP's."""
    words: tuple[str, ...] = ()
    """The other words in it."""
    certainty_of_mask: Calibration | None = None
    """Of `raw_certainty`, for answers with a mask."""
    certainty_of_nothing: Calibration | None = None
    """The same for answers without a mask."""

    @cached_property
    def known_words(self) -> KnownWords | None:
        """The words of the training, or None if they are not listed."""
        return KnownWords(self.names, self.words) if self.names else None

    def expected_iou(
        self, presence: float | None, score: float, stability: float, no_target: bool
    ) -> float | None:
        """Expected IoU of an answer, 0..1; None without a calibration, or for clicks alone."""
        calibration = self.certainty_of_nothing if no_target else self.certainty_of_mask
        if calibration is None or presence is None:
            return None
        return calibration(raw_certainty(presence, score, stability, no_target))


def raw_certainty(presence: float, score: float, stability: float, no_target: bool) -> float:
    """What a calibration maps: how certain an answer is by the networks' own account, 0..1."""
    return 1 - presence if no_target else presence * score * stability


NO_NOTES = WeightsNotes()
_FIELDS = frozenset(field.name for field in fields(WeightsNotes))


def notes_path(weights: Path) -> Path:
    """The file of the notes on a file of weights."""
    return weights.with_suffix(NOTES_SUFFIX)


def read_notes(weights: Path) -> WeightsNotes:
    """Reads the notes beside a file of weights; empty notes if there are none.

    Raises:
        CheckpointError: the file of notes is damaged.
    """
    path = notes_path(weights)
    if not path.is_file():
        return NO_NOTES
    try:
        return _NOTES.validate_json(path.read_bytes())
    except (ValidationError, OSError) as error:
        raise CheckpointError(f"{path} does not contain notes on weights: {_first_line(error)}") from error


def write_notes(weights: Path, notes: WeightsNotes) -> None:
    """Writes the notes beside a file of weights. A converted file's card is in the same file, and stays."""
    values: dict[str, Any] = _NOTES.dump_python(notes, mode="json", exclude_none=True)
    with suppress(OSError, ValueError):
        before = json.loads(notes_path(weights).read_text(encoding="utf-8"))
        values = {key: value for key, value in before.items() if key not in _FIELDS} | values
    with replacing(notes_path(weights)) as staging:
        staging.write_text(json.dumps(values, indent=1) + "\n", encoding="utf-8")


def fit_calibration(raw: Sequence[float], iou: Sequence[float], knots: int = 16) -> Calibration:
    """Isotonic regression of IoU on a raw certainty, as a line through the means of `knots` groups."""
    order = np.argsort(raw, kind="stable")
    groups = [group for group in np.array_split(order, knots) if len(group)]
    pooled: list[tuple[float, float, int]] = []
    for group in groups:  # pool adjacent violators
        x, y, count = float(np.asarray(raw)[group].mean()), float(np.asarray(iou)[group].mean()), len(group)
        while pooled and pooled[-1][1] > y:
            before_x, before_y, before = pooled.pop()
            total = before + count
            x, y = (before_x * before + x * count) / total, (before_y * before + y * count) / total
            count = total
        pooled.append((x, y, count))
    if len(pooled) == 1:
        pooled.append((pooled[0][0] + 1e-6, *pooled[0][1:]))
    return Calibration(tuple(round(x, 5) for x, *_ in pooled), tuple(round(y, 5) for _, y, _ in pooled))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[2].partition("\n")[0] or str(error)


_NOTES = TypeAdapter(WeightsNotes)
