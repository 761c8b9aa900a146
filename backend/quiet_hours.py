"""Hours of the day in which no large job starts, in a time zone."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import datetime, time, timedelta
from zoneinfo import ZoneInfo

_SPAN = re.compile(r"(\d\d:\d\d)-(\d\d:\d\d)")


@dataclass(frozen=True)
class QuietHours:
    """Time spans, start inclusive, end exclusive; a span may cross midnight."""

    spans: tuple[tuple[time, time], ...]
    zone: ZoneInfo

    @classmethod
    def parse(cls, entries: tuple[str, ...], zone: str) -> QuietHours:
        """Parses spans such as `08:00-18:00`, in a zone such as Europe/Berlin.

        Raises:
            ValueError: invalid span or unknown zone.
        """
        try:
            known = ZoneInfo(zone)
        except (LookupError, OSError, ValueError) as error:  # unknown zone, folder of zones, or invalid name
            raise ValueError(f"expected a time zone such as Europe/Berlin, got {zone!r}") from error
        return cls(tuple(_parse_span(entry) for entry in entries), known)

    def end(self, now: datetime) -> datetime | None:
        """End of the current quiet hours, in their zone; None outside quiet hours.

        Args:
            now: Time-zone aware.
        """
        local = moment = now.astimezone(self.zone)
        for _ in self.spans:  # spans may adjoin or overlap
            ends = [end for span in self.spans if (end := self._end_of(span, moment)) is not None]
            if not ends:
                break
            moment = max(ends)
        return moment if moment > local else None

    def _end_of(self, span: tuple[time, time], moment: datetime) -> datetime | None:
        begin, end = span
        clock = moment.time()
        over_midnight = end <= begin
        if not (clock >= begin or clock < end if over_midnight else begin <= clock < end):
            return None
        day = moment.date() + timedelta(days=over_midnight and clock >= begin)
        return datetime.combine(day, end, self.zone)

    def __str__(self) -> str:
        spans = ", ".join(f"{begin:%H:%M}-{end:%H:%M}" for begin, end in self.spans)
        return f"{spans} ({self.zone.key})"


def _parse_span(entry: str) -> tuple[time, time]:
    match = _SPAN.fullmatch(entry)
    try:
        begin, end = (time.fromisoformat(part) for part in match.groups()) if match else (None, None)
    except ValueError:
        begin, end = None, None
    if begin is None or end is None or begin == end:
        raise ValueError(f"expected two different times of day such as 08:00-18:00, got {entry!r}")
    return begin, end
