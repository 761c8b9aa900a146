"""Whether the workers are alive, for `sspsam up` and for the health check `python -m worker.alive`."""

import socket
import sys
from datetime import UTC, datetime, timedelta

from rq import Worker

from backend.settings import Settings
from worker.queues import QUEUES, connect

RECENT = timedelta(minutes=3)
"""A live worker says so to Redis at least this often."""


def all_queues_served(redis_url: str, since: datetime, hostname: str | None = None) -> bool:
    """Whether every queue has a worker that was heard of since then.

    Args:
        redis_url: the Redis that the workers share.
        since: with a time zone; what was heard before counts for nothing, as it may be left from a power cut.
        hostname: of the workers to look for; None looks for any.
    """
    with connect(redis_url) as connection:
        served = {
            queue
            for worker in Worker.all(connection=connection)
            if hostname in (None, worker.hostname) and in_utc(worker.last_heartbeat) >= since
            for queue in worker.queue_names()
        }
    return served.issuperset(QUEUES)


def in_utc(moment: datetime | None) -> datetime:
    """RQ's times have no zone and mean UTC; a worker that was never heard of is older than all others."""
    return (moment or datetime.min).replace(tzinfo=UTC)


def main() -> int:
    """Exit status 0 if this host's workers are alive."""
    return (
        0 if all_queues_served(Settings().redis_url, datetime.now(UTC) - RECENT, socket.gethostname()) else 1
    )


if __name__ == "__main__":
    sys.exit(main())
