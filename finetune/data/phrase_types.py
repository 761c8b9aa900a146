"""Classifies human phrases by type, from their words, for metrics by family.

Families are those of `finetune.data.stickers.phrases`. In scenes the family is known; annotators' phrases are
classified by the words that identify the object. The first matching family counts.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from finetune.data.stickers.colours import COLOURS

_NUMBERS = "two|three|four|five|six|seven|eight|nine|ten"
_ORDINALS = "first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth|last|[0-9]+(?:st|nd|rd|th)"
_SIDES = "left|right|top|bottom|upper|lower|middle|cent(?:er|re)|corner|front|back"
_EXTREMES = "leftmost|rightmost|topmost|bottommost|uppermost|lowest|highest|furthest|closest|nearest|edge"
_RELATIONS = (
    "next to|beside|near|behind|between|below|beneath|under|over|above|inside|around|against|"
    "in front of|on top of|(?:to the )?(?:left|right) of|holding|wearing|riding|carrying|with"
)
_SIZES = "(?:big|large|small|tall|short|long|tiny|huge|little)(?:g?er|g?est|r|st)?|tinier|tiniest"

FAMILY_PATTERNS: Mapping[str, re.Pattern[str]] = {
    family: re.compile(rf"\b(?:{words})\b", re.IGNORECASE)
    for family, words in {
        "ordinal": _ORDINALS,
        "relation": _RELATIONS,
        "place": f"{_EXTREMES}|{_SIDES}",
        "several": f"all|both|every|each|{_NUMBERS}",
        "size": _SIZES,
        "colour": "|".join([*COLOURS, "gray", "golden", "silver", "dark", "light"]),
    }.items()
}


def family_of(phrase: str, has_target: bool) -> str:
    """The family of a phrase: "none" without a target, "noun" for a bare name."""
    if not has_target:
        return "none"
    return next((name for name, words in FAMILY_PATTERNS.items() if words.search(phrase)), "noun")
