"""Composition of the data of a fine-tune: what annotators did, by label, and the bound on absences."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from finetune.data.records import KINDS, RefRecord
from worker.records import sample_key

MAX_ABSENT_SHARE = 0.25
"""Maximum share of confirmed absences in the training samples: annotators confirm what the model does not
find, so that an unbounded share would teach it to find less and less."""
NO_LABEL = "(no label)"
NAMES: Mapping[str, str] = {
    "corrected": "corrected",
    "accepted": "accepted",
    "added": "added",
    "absent": "confirmed absent",
}
"""Names of the kinds of records for people."""


def count_kinds(records: Iterable[RefRecord]) -> dict[str, int]:
    """Number of records of each kind, by its name for people."""
    counts = Counter(record.kind for record in records)
    return {NAMES[kind]: counts[kind] for kind in KINDS}


def count_kinds_by_label(records: Iterable[RefRecord]) -> dict[str, dict[str, int]]:
    """`count_kinds` of each label, the most frequent first. A confirmed absence has no label."""
    by_label: dict[str, list[RefRecord]] = {}
    for record in records:
        by_label.setdefault(record.label or NO_LABEL, []).append(record)
    ordered = sorted(by_label.items(), key=lambda entry: -len(entry[1]))
    return {label: count_kinds(of_label) for label, of_label in ordered}


def in_words(data: Mapping[str, Any]) -> dict[str, str]:
    """The composition in a card's data as text, for the report."""
    by_label = data["composition_by_label"].items()
    return {
        "composition": _listed(data["composition"]),
        "composition_by_label": "; ".join(f"{label}: {_listed(counts)}" for label, counts in by_label),
    }


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{counts[NAMES[kind]]} {NAMES[kind]}" for kind in KINDS)


def bound_absences(
    records: Sequence[RefRecord], share: float = MAX_ABSENT_SHARE, corrections_first: bool = True
) -> list[RefRecord]:
    """Leaves out confirmed absences beyond a share of all records.

    The choice depends on their content alone. To learn from, those for which the model had proposed a mask
    stay first; to compare versions, that would count the proposing version's failures alone.
    """
    absent = [record for record in records if record.kind == "absent"]
    allowed = int(share / (1 - share) * (len(records) - len(absent)))
    ordered = sorted(
        absent, key=lambda record: (corrections_first and not record.corrected, sample_key(record))
    )
    left_out = {id(record) for record in ordered[allowed:]}
    return [record for record in records if id(record) not in left_out]
