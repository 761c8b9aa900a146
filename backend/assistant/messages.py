"""Messages to annotators about the phrases that are open: nothing was found, or they were not looked for."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import shorten
from typing import TYPE_CHECKING

from backend.labelstudio import prompt_text
from backend.labelstudio.config import LabelingConfig
from backend.labelstudio.predictions import ProposedRegion

if TYPE_CHECKING:
    from sspsam.reading.reader import Reading

SHOWN_CHARACTERS = 60
SEVERAL = 2
"""Labels of a form, of which one must be chosen."""
DRAWN = ("polygon", "rectangle")
"""Kinds of regions for which the form has no brush."""
SHOWN_PHRASES = 3
"""Phrases named in a message: the newest."""


def open_phrases_message(unmatched: Sequence[str], failed: Mapping[str, str], config: LabelingConfig) -> str:
    """Message about open phrases; empty if there are none.

    Args:
        unmatched: Phrases for which nothing was found.
        failed: Phrase -> reason why it was not looked for.
        config: The form.
    """
    said = [_not_found(unmatched, config)] if unmatched else []
    said += [_not_looked_for(phrase, reason) for phrase, reason in failed.items()]
    return " ".join(said)


def reading_message(readings: Mapping[str, Reading], unmatched: Sequence[str]) -> str:
    """Says how phrases were read, if words were changed, and which words the model does not know.

    Args:
        readings: Phrase -> how it was read.
        unmatched: Phrases for which nothing was found.
    """
    changed = [reading.asked for reading in readings.values() if reading.changes]
    shown = [shorten(asked, SHOWN_CHARACTERS, placeholder="…") for asked in changed[-SHOWN_PHRASES:]]
    said = [f"asked: {', '.join(shown)}."] if shown else []
    nothing = set(unmatched)
    unknown = dict.fromkeys(
        word for phrase, reading in readings.items() if phrase in nothing for word in reading.unknown
    )
    if unknown:
        words = [shorten(word, SHOWN_CHARACTERS, placeholder="…") for word in list(unknown)[-SHOWN_PHRASES:]]
        said.append(f"The model does not know {', '.join(f'“{word}”' for word in words)}.")
    return " ".join(said)


def unsure_message(certainties: Mapping[str, float]) -> str:
    """Names phrases whose masks are unsure, each with its certainty; empty if there are none.

    Args:
        certainties: Phrase -> certainty, 0..1.
    """
    named = [
        f"“{_short(phrase)}” {certainty:.2f}"
        for phrase, certainty in list(certainties.items())[-SHOWN_PHRASES:]
    ]
    return f"unsure: {', '.join(named)}." if named else ""


def label_message(regions: Sequence[ProposedRegion], config: LabelingConfig) -> str:
    """Says which label was taken for phrases that name none of several; empty if there are none."""
    if len(config.labels) < SEVERAL:
        return ""
    phrases = dict.fromkeys(region.phrase for region in regions if region.phrase and not region.label)
    choices = {phrase: config.choice_for(phrase) for phrase in phrases}
    unnamed = {phrase: choice.label for phrase, choice in choices.items() if not choice.is_named}
    if not unnamed:
        return ""
    shown = [f"“{_short(phrase)}”" for phrase in list(unnamed)[-SHOWN_PHRASES:]]
    label = next(iter(unnamed.values())) or ""
    return f"No label is named in {', '.join(shown)}: “{_short(label)}” was taken."


def holes_message(regions: Sequence[ProposedRegion]) -> str:
    """Says which masks have holes that the form's regions cannot have; empty if there are none."""
    phrases = dict.fromkeys(
        region.phrase for region in regions if any(shape.filled_holes for shape in region.shapes)
    )
    shown = [f"“{_short(phrase)}”" for phrase in list(phrases)[-SHOWN_PHRASES:]]
    return f"A polygon has no holes: those of {', '.join(shown)} are filled." if shown else ""


def leftover_message(phrases: Sequence[str]) -> str:
    """Message about regions of earlier answers that were emptied; empty if there are none.

    Args:
        phrases: The phrase of each.
    """
    if not phrases:
        return ""
    named = next(filter(None, phrases), "")
    if len(phrases) == 1:
        of_phrase = f" of the earlier answer for “{_short(named)}”" if named else ""
        return f"One region{of_phrase} is empty now. Delete it."
    such = f" of earlier answers, such as “{_short(named)}”," if named else ""
    return f"{len(phrases)} regions{such} are empty now. Delete them."


def message_of_box(entries: Sequence[str], config: LabelingConfig) -> str:
    """The same message, from the entries of a prompt box."""
    unmatched = [prompt_text.plain_phrase(entry) for entry in entries if prompt_text.found_nothing(entry)]
    failed = {
        prompt_text.plain_phrase(entry): prompt_text.failure_of(entry)
        for entry in entries
        if prompt_text.has_failed(entry)
    }
    return open_phrases_message(unmatched, failed, config)


def hint(phrase: str, config: LabelingConfig) -> str:
    """Advice behind a phrase for which nothing was found, for forms without a status line."""
    if config.status is not None or config.absent is None:
        return ""
    return f": not in the image? Enter “{prompt_text.denial_of(phrase)}”"


def _short(text: str) -> str:
    return shorten(text, SHOWN_CHARACTERS, placeholder="…")


def _not_found(phrases: Sequence[str], config: LabelingConfig) -> str:
    shown = [_short(phrase) for phrase in phrases[-SHOWN_PHRASES:]]
    more = f" and {len(phrases) - len(shown)} more" if len(phrases) > len(shown) else ""
    said = f"Nothing found for {', '.join(f'“{phrase}”' for phrase in shown)}{more}."
    by_hand = "draw" if config.mask is not None and config.mask.kind in DRAWN else "paint"
    if config.absent is None:
        return f"{said} In the image? {by_hand.capitalize()} it."
    denial = f"“{prompt_text.denial_of(phrases[-1])}”" if shown[-1] == phrases[-1] else "“no” and the phrase"
    return f"{said} Not in the image? Enter {denial}. Otherwise {by_hand} it."


def _not_looked_for(phrase: str, reason: str) -> str:
    shown = _short(phrase)
    sentence = f"“{shown}” was not looked for: {reason}" if shown else reason
    return f"{sentence[0].upper()}{sentence[1:]}."
