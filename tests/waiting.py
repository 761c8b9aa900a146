"""Waits for events in other threads or processes."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0
FIRST_POLL_S, LAST_POLL_S = 0.005, 0.1
POLL_GROWTH = 1 / 50
"""Of the time waited so far: polling takes processor time from what is waited for."""


def wait_until(
    condition: Callable[[], object],
    what: str = "what was waited for",
    patience_s: float = PATIENCE_S,
    poll_s: float | None = None,
) -> None:
    """Returns when the condition holds; fails the test when it does not come to hold.

    The intervals between polls grow with the time waited, unless `poll_s` sets them: what lasts a moment
    must be polled often.
    """
    since_s = time.monotonic()
    while not condition():
        waited_s = time.monotonic() - since_s
        assert waited_s < patience_s, f"not within {patience_s:g} s: {what}"
        time.sleep(poll_s or min(max(FIRST_POLL_S, POLL_GROWTH * waited_s), LAST_POLL_S))
