"""Content of an annotator's prompt box: what to ask, what was asked, and what is denied. Pure functions."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass

from backend.labelstudio import prompt_text


@dataclass(frozen=True)
class PromptBox:
    """The phrases in a prompt box: plain, distinct, in order."""

    asked: tuple[str, ...] = ()
    """To segment: the newest first, then those whose answer failed, was lost, or that were never sent."""
    unmatched: tuple[str, ...] = ()
    """For which the model has found nothing, and that are still open."""
    denied: tuple[str, ...] = ()
    """That the annotator confirmed to be absent by an entry such as "no scissors"."""


def read_box(
    texts: Sequence[str],
    absent: Collection[str] = (),
    drawn: Collection[str] = (),
    deniable: bool = True,
) -> PromptBox:
    """Reads a prompt box.

    "no scissors" denies "scissors" only while that stands in the form: else it is a phrase like any other,
    such as "no entry sign".

    Args:
        texts: Entries with their notes, oldest first.
        absent: Keys of the phrases confirmed to be absent before.
        drawn: Keys of the phrases that have a region.
        deniable: Whether the form has a box for confirmed absences.
    """
    entries = [part for text in texts for part in prompt_text.split(text)]
    standing = {prompt_text.phrase_key(entry) for entry in entries} | set(absent)
    denials = {
        prompt_text.phrase_key(entry): phrase
        for entry in entries
        if deniable
        and (phrase := prompt_text.denied_phrase(entry))
        and prompt_text.phrase_key(phrase) in standing
    }
    denied = prompt_text.distinct(denials.values())
    phrases = prompt_text.distinct(entries)
    open_keys = [key for key in phrases if key not in denials and key not in denied]
    unanswered = {prompt_text.phrase_key(entry) for entry in entries if not prompt_text.found_nothing(entry)}
    settled = {*absent, *drawn}
    newest = prompt_text.distinct(texts[-1:])
    asked = sorted((key for key in open_keys if key in unanswered), key=lambda key: key not in newest)
    return PromptBox(
        tuple(phrases[key] for key in asked),
        tuple(phrases[key] for key in open_keys if key not in unanswered and key not in settled),
        tuple(_as_entered(key, phrase, phrases) for key, phrase in denied.items() if key not in absent),
    )


def _as_entered(key: str, denied: str, phrases: dict[str, str]) -> str:
    """A denied phrase in the spelling in which it was asked."""
    return phrases.get(key, denied)
