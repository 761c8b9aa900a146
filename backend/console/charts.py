"""Charts as SVG, with a text for people who do not see them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from backend.corrections import DayCounts, Tally

CHART_WH = (640, 180)
SHARES: Mapping[str, str] = {
    "accepted": "accepted as proposed",
    "edited": "edited",
    "missed": "wrongly not found",
}
"""Count -> its name on charts."""
LABEL_HEIGHT = 16.0
MOST_DAYS = 60


@dataclass(frozen=True)
class ShareLine:
    """A share of all masks over the days."""

    name: str
    words: str
    points: str
    """Of an SVG polyline in a box of CHART_WH; 100 % is at the top."""
    first: float
    last: float
    label_y: float
    """Of its name, beside its end, apart from the others."""


@dataclass(frozen=True)
class ShareChart:
    """Shares over time."""

    days: Sequence[DayCounts]
    lines: Sequence[ShareLine]
    summary: str


def share_chart(days: Sequence[DayCounts]) -> ShareChart | None:
    """Shares by day; None for fewer than two days with masks.

    Args:
        days: In order.
    """
    shown = [day for day in days if day.masks > 0][-MOST_DAYS:]
    if len(shown) < 2:
        return None
    lines = _apart([_line(shown, name, words) for name, words in SHARES.items()])
    changes = ", ".join(f"{line.words} {line.first:.0%} to {line.last:.0%}" for line in lines)
    return ShareChart(shown, lines, f"From {shown[0].day} to {shown[-1].day}: {changes}")


def _line(days: Sequence[DayCounts], name: str, words: str) -> ShareLine:
    width, height = CHART_WH
    shares = [day.share(name) for day in days]
    places = [(width * at / (len(days) - 1), height * (1 - share)) for at, share in enumerate(shares)]
    points = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
    return ShareLine(name, words, points, shares[0], shares[-1], places[-1][1])


def _apart(lines: Sequence[ShareLine]) -> list[ShareLine]:
    """Moves labels so that none is on another one."""
    placed: dict[str, ShareLine] = {}
    lowest = CHART_WH[1] + LABEL_HEIGHT
    for line in sorted(lines, key=lambda line: line.label_y, reverse=True):
        lowest = min(line.label_y, lowest - LABEL_HEIGHT)
        placed[line.name] = replace(line, label_y=round(lowest, 1))
    return [placed[line.name] for line in lines]


@dataclass(frozen=True)
class ShareBar:
    """Shares of a version's masks, stacked."""

    version: str
    masks: int
    parts: Sequence[tuple[str, float, float]]
    """(count, start, width) in percent."""
    summary: str


def share_bars(tallies: Sequence[Tally]) -> list[ShareBar]:
    """A bar for each version with masks.

    Args:
        tallies: One for each version.
    """
    return [_bar(tally) for tally in tallies if tally.masks > 0]


def _bar(tally: Tally) -> ShareBar:
    parts, start = [], 0.0
    for name in SHARES:
        width = 100 * (tally.share(name) or 0.0)
        parts.append((name, round(start, 2), round(width, 2)))
        start += width
    shares = ", ".join(f"{words} {tally.share(name) or 0.0:.0%}" for name, words in SHARES.items())
    return ShareBar(tally.version, round(tally.masks), parts, f"{tally.version}: {shares}")
