"""Results of long measurements, appended to a file so that an interrupted benchmark can be resumed."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from sspsam import VersionStore
from sspsam.checkpoints.bundles import frozen_weights
from sspsam.version_store.store import VersionCard
from worker.finetuning.recipes import RECIPES

Result = Mapping[str, Any]


class Results:
    """Results, one line of JSON each. Results under other conditions are kept but ignored.

    Args:
        path: The file; if None, results are only kept in memory.
        conditions: Conditions that affect results beside their key, such as the weights.
        key: The fields that identify a result.
    """

    def __init__(self, path: Path | None, conditions: Mapping[str, object], key: Sequence[str]) -> None:
        self._path = path
        self._conditions = dict(conditions)
        self._key = tuple(key)
        self._found: dict[tuple[object, ...], Result] = {}
        for result in [] if path is None else _read(path):
            if result.get("conditions") == self._conditions:
                self._note(result)

    def __contains__(self, key: tuple[object, ...]) -> bool:
        return key in self._found

    def __getitem__(self, key: tuple[object, ...]) -> Result:
        return self._found[key]

    def add(self, result: Result) -> None:
        """Stores a result; it is in the file on return."""
        self._note(result)
        if self._path is not None:
            line = json.dumps({"conditions": self._conditions, **result})
            whole = not self._path.exists() or self._path.read_bytes()[-1:] in (b"", b"\n")
            with self._path.open("a", encoding="utf-8") as file:
                file.write(line + "\n" if whole else f"\n{line}\n")

    def _note(self, result: Result) -> None:
        fields = {name: value for name, value in result.items() if name != "conditions"}
        self._found[tuple(fields[name] for name in self._key)] = fields


def judged_versions(store: VersionStore) -> list[VersionCard]:
    """Versions that fine-tunes have made and the gate has judged, in order."""
    cards = [card for card in store.list() if card.version_id != store.base_version]
    return [card for card in cards if card.status in ("promoted", "rejected")]


def fine_tuning(preset: str) -> dict[str, object]:
    """Conditions of a fine-tune's results: the shipped weights and the recipe."""
    recipe = hashlib.sha256(repr(RECIPES[preset]).encode()).hexdigest()
    return {"weights": frozen_weights(preset), "recipe": recipe}


def _read(path: Path) -> list[Result]:
    """The complete lines: the last one may be truncated by an interrupted run.

    Raises:
        SystemExit: the file holds other content.
    """
    if not path.exists():
        return []
    results = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if not line.startswith("{"):
            raise SystemExit(f"{path}, line {number}: expected a result (a JSON object), got {line:.40}")
        with suppress(ValueError):
            results.append(json.loads(line))
    return results
