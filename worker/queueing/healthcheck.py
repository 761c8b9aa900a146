"""Whether workers are alive: the health check `python -m worker.queueing.healthcheck`, and what `sspsam up`
waits for.

A running `sspsam worker` refreshes a file of its own while each of its queues is worked on and Redis answers.
The check looks at the age of that file and imports nothing else, so that it is cheap on a busy machine.
"""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import sys
import tempfile
import time
from collections.abc import Collection, Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

RECENT = timedelta(minutes=3)
"""A live RQ worker reports to Redis at least this often."""
HEARTBEAT_MAX_AGE_S = 60.0
"""Of the file; `worker.queueing.pool` refreshes it far more often."""


class Heartbeat:
    """The file that one pool of workers refreshes; `remove` it at the end."""

    def __init__(self) -> None:
        self._path = heartbeat_folder() / str(os.getpid())
        for pid, path in heartbeats():
            if not _process_exists(pid) or pid == os.getpid():
                path.unlink(missing_ok=True)

    def beat(self) -> None:
        self._path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        self._path.touch(mode=0o600)

    def remove(self) -> None:
        self._path.unlink(missing_ok=True)


def heartbeat_folder() -> Path:
    """Of this user's workers on one Redis. REDIS_URL tells apart several services on one machine."""
    digest = hashlib.sha256(os.environ.get("REDIS_URL", "").encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sspsam-{os.getuid()}" / f"workers-{digest}"


def heartbeats() -> Iterator[tuple[int, Path]]:
    """The process id of each pool, and its file. Folders that another user could have made are not read."""
    folder = heartbeat_folder()
    with suppress(FileNotFoundError):
        status = folder.parent.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            for path in folder.iterdir():
                if path.name.isdecimal():
                    yield int(path.name), path


def pools_alive() -> bool:
    """Whether a pool of workers runs on this machine, and each that runs is healthy."""
    ages = []
    for pid, path in heartbeats():
        with suppress(FileNotFoundError):
            if _process_exists(pid):
                ages.append(time.time() - path.stat().st_mtime)
    return bool(ages) and max(ages) < HEARTBEAT_MAX_AGE_S


def queues_served(
    redis_url: str, queues: Collection[str], since: datetime, pids: Collection[int] | None = None
) -> bool:
    """Whether each of these queues has a worker that has reported to Redis since then.

    Args:
        redis_url: the Redis that the workers share.
        queues: their names.
        since: with a time zone; older reports do not count: they may be left from a power cut.
        pids: of the worker processes on this machine to look for; None looks for any worker.
    """
    from rq import Worker

    from backend.shared_redis import connect

    with connect(redis_url) as connection:
        served = {
            queue
            for worker in Worker.all(connection=connection)
            if pids is None or (worker.pid in pids and worker.hostname == socket.gethostname())
            if in_utc(worker.last_heartbeat) >= since
            for queue in worker.queue_names()
        }
    return served.issuperset(queues)


def all_queues_served(redis_url: str, since: datetime) -> bool:
    """Whether every queue there is has a worker that has reported to Redis since then."""
    from backend.shared_redis import QUEUES

    return queues_served(redis_url, QUEUES, since)


def in_utc(moment: datetime | None) -> datetime:
    """RQ's times have no zone and mean UTC; a worker that has never reported is older than all others."""
    return (moment or datetime.min).replace(tzinfo=UTC)


def main() -> int:
    """Exit status 0 if this machine's workers are alive."""
    return 0 if pools_alive() else 1


def _process_exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True


if __name__ == "__main__":
    sys.exit(main())
