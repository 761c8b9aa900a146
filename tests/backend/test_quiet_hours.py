"""Quiet hours: whether a time falls within them, and when they end, in the configured time zone."""

from __future__ import annotations

from datetime import datetime
from zoneinfo import ZoneInfo

import pytest

from backend.errors import SettingsError
from backend.quiet_hours import QuietHours
from backend.settings import Settings

BERLIN = ZoneInfo("Europe/Berlin")


@pytest.mark.parametrize(
    ("spans", "now", "end"),
    [
        pytest.param("", "2026-03-02T12:00+00:00", None, id="none"),
        pytest.param("08:00-18:00", "2026-03-02T06:59+00:00", None, id="7:59 in Berlin"),
        pytest.param("08:00-18:00", "2026-03-02T07:00+00:00", "2026-03-02T18:00", id="the first minute"),
        pytest.param("08:00-18:00", "2026-03-02T17:00+00:00", None, id="the end is not quiet"),
        pytest.param("22:00-06:00", "2026-03-02T22:30+01:00", "2026-03-03T06:00", id="before midnight"),
        pytest.param("22:00-06:00", "2026-03-03T05:59+01:00", "2026-03-03T06:00", id="after midnight"),
        pytest.param("22:00-06:00", "2026-03-03T12:00+01:00", None, id="by day"),
        pytest.param(
            "08:00-12:00,11:00-14:00", "2026-03-02T09:00+01:00", "2026-03-02T14:00", id="overlapping"
        ),
        pytest.param("14:00-16:00,12:00-14:00", "2026-03-02T13:00+01:00", "2026-03-02T16:00", id="touching"),
        pytest.param(
            "08:00-12:00,14:00-16:00", "2026-03-02T09:00+01:00", "2026-03-02T12:00", id="with a pause"
        ),
        pytest.param(
            "00:00-23:00", "2026-03-29T00:30+01:00", "2026-03-29T23:00", id="when clocks go forward"
        ),
        pytest.param("22:00-06:00", "2026-10-24T23:00+02:00", "2026-10-25T06:00", id="when clocks go back"),
    ],
)
def test_the_end_of_the_quiet_hours(spans: str, now: str, end: str | None) -> None:
    hours = QuietHours.parse(tuple(filter(None, spans.split(","))), "Europe/Berlin")
    expected = None if end is None else datetime.fromisoformat(end).replace(tzinfo=BERLIN)
    assert hours.end(datetime.fromisoformat(now)) == expected


def test_they_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUIET_HOURS", "08:00-12:00, 13:00-18:00")
    monkeypatch.setenv("TIME_ZONE", "Europe/Berlin")
    monkeypatch.setenv("FINETUNE_INTERVAL_MIN", "90")
    settings = Settings()
    assert str(settings.finetune_pause) == "08:00-12:00, 13:00-18:00 (Europe/Berlin)"
    assert settings.finetune_interval_min == 90


@pytest.mark.parametrize(
    ("hours", "zone", "message"),
    [
        ("8-18", "UTC", "different times of day such as 08:00-18:00, got '8-18'"),
        ("08:00-25:00", "UTC", "got '08:00-25:00'"),
        ("08:00-08:00", "UTC", "two different times"),
        ("08:00-18:00", "Berlin", "a time zone such as Europe/Berlin, got 'Berlin'"),
        ("", "../../etc/passwd", "a time zone such as Europe/Berlin"),
    ],
)
def test_what_cannot_be_read_is_said(hours: str, zone: str, message: str) -> None:
    with pytest.raises(SettingsError, match=message):
        Settings(quiet_hours=hours, time_zone=zone)
