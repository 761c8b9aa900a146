"""Writes what became of a task's phrases as the prediction that Label Studio shows.

Its parts: the regions, the prompt box with the phrases that stay in it, the box of confirmed absences, the
status line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from backend.assistant.messages import (
    hint,
    holes_message,
    label_message,
    leftover_message,
    open_phrases_message,
    reading_message,
    unsure_message,
)
from backend.assistant.prompt_box import PromptBox
from backend.labelstudio import prompt_text
from backend.labelstudio.annotations import absent_entries, is_of
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import (
    ProposedRegion,
    Result,
    fresh_id,
    prediction,
    region_results,
    status_line,
    text_result,
)
from backend.labelstudio.regions.controls import Tag
from backend.queries import Results

if TYPE_CHECKING:
    from sspsam.reading.reader import Reading

Prediction = dict[str, Any]


@dataclass
class Outcome:
    """Outcome of the phrases of one task."""

    version: str
    regions: list[ProposedRegion] = field(default_factory=list)
    texts: Mapping[str, str] = field(default_factory=dict)
    """Phrase of each region on the form by ID, as far as known."""
    leftover: list[ProposedRegion] = field(default_factory=list)
    """Regions of an earlier answer that have no object or part now, emptied."""
    no_match: list[str] = field(default_factory=list)
    readings: dict[str, Reading] = field(default_factory=dict)
    """Phrase -> how it was read."""
    certainties: dict[str, float] = field(default_factory=dict)
    """Phrase -> estimated quality of its answer, 0..1; also for phrases without a target."""
    unsure: dict[str, float] = field(default_factory=dict)
    """Phrase -> certainty of its mask, which the project asked for although there is rather no target."""
    failed: dict[str, str] = field(default_factory=dict)
    """Phrase -> reason why it could not be answered."""
    notice: str = ""
    """About the picture."""
    passing: bool = False
    """The failure is transient."""


def write_answer(
    outcome: Outcome, box: PromptBox, prompt: Mapping[str, Any], context: Results, config: LabelingConfig
) -> Prediction:
    """Writes the answer to an annotator's prompt box."""
    results: list[Result] = []
    for region in [*outcome.regions, *outcome.leftover]:
        results += region_results(region, config, outcome.texts)
    absent = list(prompt_text.distinct([*absent_entries(context, config), *box.denied]).values())
    confirmed = set(prompt_text.distinct(absent))
    unmatched = [
        phrase
        for phrase in [*box.unmatched, *outcome.no_match]
        if prompt_text.phrase_key(phrase) not in confirmed
    ]
    if config.prompt is not None:
        open_entries = [prompt_text.with_no_match(phrase, hint(phrase, config)) for phrase in unmatched]
        failed = [prompt_text.with_failure(phrase, reason) for phrase, reason in outcome.failed.items()]
        results.append(text_result(config.prompt, str(prompt.get("id")), [*open_entries, *failed]))
    if config.absent is not None and box.denied:
        shown = result_of(context, config.absent)
        results.append(text_result(config.absent, _id_of(shown), absent))
    said = [
        open_phrases_message(unmatched, outcome.failed, config),
        unsure_message(outcome.unsure),
        reading_message(outcome.readings, outcome.no_match),
        label_message(outcome.regions, config),
        holes_message(outcome.regions),
        leftover_message([region.phrase for region in outcome.leftover]),
        outcome.notice,
    ]
    results += _status(" ".join(filter(None, said)), context, config)
    return prediction(results, outcome.version, list(outcome.certainties.values()))


def _status(message: str, context: Results, config: LabelingConfig) -> list[Result]:
    """The status line, if there is a message to show or an earlier one to remove."""
    if config.status is None:
        return []
    shown = result_of(context, config.status)
    if not message and shown is None:
        return []
    return [status_line(config.status, message, _id_of(shown))]


def result_of(results: Results, tag: Tag | None) -> Mapping[str, Any] | None:
    return next((result for result in results if is_of(result, tag)), None)


def _id_of(result: Mapping[str, Any] | None) -> str:
    return fresh_id() if result is None else str(result.get("id"))
