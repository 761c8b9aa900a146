"""Health of workers: the command `python -m worker.queueing.healthcheck`, and the readiness check of
`sspsam up`.

A running `sspsam worker` refreshes its own file while each of its queues is served and Redis responds.
The command checks the age of that file and imports nothing else, so it is cheap on a busy machine.
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
"""Maximum interval between a live RQ worker's reports to Redis."""
HEARTBEAT_MAX_AGE_S = 60.0
"""Maximum age of the file; `worker.queueing.pool` refreshes it far more often."""


class Heartbeat:
    """The file refreshed by one pool of workers, which calls `remove` at its end."""

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
    """Folder for this user's workers on one Redis; REDIS_URL distinguishes services on one machine."""
    digest = hashlib.sha256(os.environ.get("REDIS_URL", "").encode()).hexdigest()[:12]
    return Path(tempfile.gettempdir()) / f"sspsam-{os.getuid()}" / f"workers-{digest}"


def heartbeats() -> Iterator[tuple[int, Path]]:
    """The process id and file of each pool. Folders that another user could have created are not read."""
    folder = heartbeat_folder()
    with suppress(FileNotFoundError):
        status = folder.parent.lstat()
        if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
            for path in folder.iterdir():
                if path.name.isdecimal():
                    yield int(path.name), path


def pools_alive() -> bool:
    """Whether at least one pool of workers runs on this machine and all running pools are healthy."""
    ages = []
    for pid, path in heartbeats():
        with suppress(FileNotFoundError):
            if _process_exists(pid):
                ages.append(time.time() - path.stat().st_mtime)
    return bool(ages) and max(ages) < HEARTBEAT_MAX_AGE_S


def queues_served(
    redis_url: str, queues: Collection[str], since: datetime, pids: Collection[int] | None = None
) -> bool:
    """Whether each of these queues has a worker that has reported to Redis since `since`.

    Args:
        redis_url: the shared Redis.
        queues: their names.
        since: with a time zone; older reports are ignored: they may stem from before a power cut.
        pids: only these worker processes on this machine; None accepts any worker.
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
    """Whether every queue has a worker that has reported to Redis since `since`."""
    from backend.shared_redis import QUEUES

    return queues_served(redis_url, QUEUES, since)


def in_utc(moment: datetime | None) -> datetime:
    """RQ's times are UTC without a zone; a worker that never reported counts as older than all others."""
    return (moment or datetime.min).replace(tzinfo=UTC)


def main() -> int:
    """Exits with 0 if this machine's workers are healthy."""
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
