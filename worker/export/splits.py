"""Splits of a data set by picture.

A picture's content decides, by its SHA-256: the same picture is in the same split in every export and in
every task, whatever is added to the project. So the shares hold on average only.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

from backend.errors import ExportError

SPLIT_NAMES = ("train", "val", "test")
_NAME = re.compile(r"[A-Za-z][A-Za-z0-9_-]{0,40}")
_DIGITS = 13
"""Hexadecimal digits of a digest that are exact in a float."""


@dataclass(frozen=True)
class Split:
    """Names and shares of the splits."""

    names: tuple[str, ...]
    shares: tuple[float, ...]

    @property
    def by_content(self) -> bool:
        """Whether the pictures are needed to tell their split."""
        return len(self.names) > 1

    def of(self, digest: str) -> str:
        """The split of a picture.

        Args:
            digest: SHA-256 in hex.
        """
        place = int(digest[:_DIGITS], 16) / 16**_DIGITS
        bound = 0.0
        for name, share in zip(self.names, self.shares, strict=True):
            bound += share
            if place < bound:
                return name
        return next(name for name, share in reversed([*zip(self.names, self.shares, strict=True)]) if share)


WHOLE = Split(("train",), (1.0,))
"""No split."""


def parse_split(text: str) -> Split:
    """Parses "0.8,0.1,0.1" (train, val, test) or "0.9,0.1" (train, val); a word is the only split's name.

    Raises:
        ExportError: the shares are not numbers that add up to 1.
    """
    if _NAME.fullmatch(text):
        return Split((text,), (1.0,))
    try:
        shares = tuple(float(share) for share in text.split(","))
    except ValueError:
        shares = ()
    if not 2 <= len(shares) <= 3 or min(shares) < 0 or not math.isclose(sum(shares), 1, abs_tol=1e-6):
        raise ExportError(
            f"--split {text}: expected two or three shares that add up to 1, such as 0.8,0.1,0.1 "
            "for train, val and test"
        )
    return Split(SPLIT_NAMES[: len(shares)], shares)
