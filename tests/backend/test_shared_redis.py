"""Messages about versions that now serve a line."""

from __future__ import annotations

import pytest
from redis import Redis

from backend.shared_redis import VERSIONS_CHANNEL, announce_version, announced_line


def test_an_announcement_names_the_line(redis_server: Redis) -> None:
    with redis_server.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe(VERSIONS_CHANNEL)
        messages.get_message(timeout=1)
        announce_version(redis_server, "project-7", "ssp-sam-test-0003")
        message = messages.get_message(timeout=1)
    assert message is not None
    assert announced_line(message["data"]) == "project-7"


@pytest.mark.parametrize(
    "message", [b"ssp-sam-test-0003", b"[]", b'{"line": 7}', b"\xff", b"{" * 9999, 1, None]
)
def test_a_message_that_names_no_line_may_concern_any(message: object) -> None:
    """Release 0.2 announced the version's ID alone."""
    assert announced_line(message) is None
