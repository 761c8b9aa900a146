"""What a message, whatever its wording, has to tell."""

from __future__ import annotations

import re


def untold(text: str, *facts: str) -> list[str]:
    """Facts that a text does not have as whole words or numbers: "8" is told neither by "18" nor by "8.5"."""
    return [fact for fact in facts if not re.search(rf"(?<!\w)(?<!\d\.){re.escape(fact)}(?!\w|\.\d)", text)]
