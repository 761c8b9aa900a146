"""Content of an annotator's prompt box: what to ask, what was asked, and what is denied. Pure functions."""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass

from backend.labelstudio import prompt_text
from sspsam.reading.requests import bare_phrase

_DETERMINER = re.compile(
    "(?:the|an?|any|all|both|every|each|that|this|these|those|some|my|our|your|his|her|their) (?=.)"
)
_MARKS = " .!?…"


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

    "no scissors" denies "scissors" or "the scissors" only while that stands in the form: else it is a phrase
    like any other, such as "no entry sign".

    Args:
        texts: Entries with their notes, oldest first.
        absent: Keys of the phrases confirmed to be absent before.
        drawn: Keys of the phrases that have a region.
        deniable: Whether the form has a box for confirmed absences.
    """
    entries = [part for text in texts for part in prompt_text.split(text)]
    phrases = prompt_text.distinct(entries)
    denials, denied = _denials(entries, absent) if deniable else (set(), set())
    open_keys = [key for key in phrases if key not in denials and key not in denied]
    unanswered = {prompt_text.phrase_key(entry) for entry in entries if not prompt_text.found_nothing(entry)}
    settled = {*absent, *drawn}
    newest = prompt_text.distinct(texts[-1:])
    asked = sorted((key for key in open_keys if key in unanswered), key=lambda key: key not in newest)
    return PromptBox(
        tuple(phrases[key] for key in asked),
        tuple(phrases[key] for key in open_keys if key not in unanswered and key not in settled),
        tuple(phrase for key, phrase in phrases.items() if key in denied and key not in absent),
    )


def _denials(entries: Sequence[str], absent: Collection[str]) -> tuple[set[str], set[str]]:
    """Keys of the entries that deny a phrase, and of the phrases denied, whatever stands around the thing:
    "no dog" denies "the dog." and "where is my dog?".

    A denial follows the phrase; a phrase entered again after it is open again.
    """
    standing: dict[str, set[str]] = {}  # by the thing
    for key in absent:
        standing.setdefault(_thing(key), set()).add(key)
    denials: set[str] = set()
    denied: set[str] = set()
    for entry in entries:
        key = prompt_text.phrase_key(entry)
        phrase = "" if prompt_text.has_note(entry) else prompt_text.denied_phrase(key.rstrip(_MARKS))
        found = standing.get(_thing(phrase)) if phrase else None
        if found:
            denials.add(key)
            denied.update(found)
        else:
            denied.discard(key)
            standing.setdefault(_thing(key), set()).add(key)
    return denials, denied


def _thing(key: str) -> str:
    """A phrase's key without request, marks and determiner: what "no" is followed by."""
    return _DETERMINER.sub("", bare_phrase(key.rstrip(_MARKS)), count=1)
