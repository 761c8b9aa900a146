"""Waits for events in other threads or processes."""

from __future__ import annotations

import time
from collections.abc import Callable

PATIENCE_S = 60.0
POLL_S = 0.005


def wait_until(
    condition: Callable[[], object],
    what: str = "what was waited for",
    patience_s: float = PATIENCE_S,
    poll_s: float = POLL_S,
) -> None:
    """Returns when the condition holds; fails the test when it does not come to hold."""
    until_s = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < until_s, f"not within {patience_s:g} s: {what}"
        time.sleep(poll_s)
