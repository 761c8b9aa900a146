"""Redis: availability check, queues and locks."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from threading import Event, Thread
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import LockError, RedisError
from redis.lock import Lock
from rq import Queue
from rq.exceptions import DuplicateJobError, NoSuchJobError
from rq.job import JobStatus

from backend.errors import QueueUnavailableError
from backend.events import ENDED
from backend.shared_redis import (
    EVENTS,
    PRELABEL,
    RECONCILE,
    RECONCILE_TIMEOUT_S,
    TRAINING,
    ServiceJob,
    ServiceQueue,
    connect,
    fetch_job,
)
from worker.queueing.healthcheck import in_utc

EVENT_TIMEOUT_S = 300
TRAINING_TIMEOUT_S = 12 * 3600
PRELABEL_TIMEOUT_S = 4 * 3600
RESULT_TTL_S = 24 * 3600
LOST_AFTER_S = 600
"""A job that is neither in its queue nor started has been lost after this time."""
FAILED_AGAIN_S = 60
"""How long after a failure the same job is not queued again."""
LOCK_TTL_S = 30
"""Lifetime of a lock after its holder was killed; a live holder renews it."""


logger = logging.getLogger(__name__)


def require_redis(redis_url: str) -> None:
    """Checks that Redis is available before anything starts.

    Raises:
        QueueUnavailableError: it does not respond, or refuses the connection.
    """
    try:
        with connect(redis_url) as connection:
            connection.ping()
    except RedisError as error:
        parts = urlsplit(redis_url)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without a password
        raise QueueUnavailableError(
            f"Redis does not respond at {where} ({error}): start it, or set REDIS_URL"
        ) from error


def events_queue(connection: Redis) -> Queue:
    return ServiceQueue(EVENTS, connection, default_timeout=EVENT_TIMEOUT_S)


def reconcile_queue(connection: Redis) -> Queue:
    return ServiceQueue(RECONCILE, connection, default_timeout=RECONCILE_TIMEOUT_S)


def ask_for_reconciliation(connection: Redis, project: int) -> bool:
    """Queues a reconciliation of a project unless one is queued or running; returns whether it did."""
    queue, job_id = reconcile_queue(connection), f"reconcile-{project}"

    def enqueue() -> None:
        queue.enqueue_call(
            "worker.jobs.reconcile_project",
            kwargs={"project_id": project},
            job_id=job_id,
            unique=True,
            result_ttl=0,
            failure_ttl=FAILED_AGAIN_S,
        )

    try:
        enqueue()
    except DuplicateJobError:
        if not _discard_ended(queue, job_id):
            return False
        enqueue()
    return True


def _discard_ended(queue: Queue, job_id: str) -> bool:
    """Deletes a job that no worker will take: it has ended, is unreadable, or left its queue without a start.

    Callers of other modules queue it as well, and keep a failed one for longer.
    """
    try:
        job = fetch_job(job_id, queue.connection)
    except NoSuchJobError:
        queue.connection.delete(ServiceJob.key_for(job_id))
        return True
    status = job.get_status(refresh=False)
    if status == JobStatus.FAILED:
        is_over = _is_older(job.ended_at or job.enqueued_at, FAILED_AGAIN_S)
    elif status == JobStatus.QUEUED:
        since = job.enqueued_at or job.created_at
        is_over = _is_older(since, LOST_AFTER_S) and job_id not in queue.get_job_ids()
    else:
        is_over = status in ENDED
    if is_over:
        job.delete()
    return is_over


def _is_older(moment: datetime | None, age_s: float) -> bool:
    return moment is None or abs((datetime.now(UTC) - in_utc(moment)).total_seconds()) > age_s


def training_queue(connection: Redis) -> Queue:
    return ServiceQueue(TRAINING, connection, default_timeout=TRAINING_TIMEOUT_S)


def prelabel_queue(connection: Redis) -> Queue:
    return ServiceQueue(PRELABEL, connection, default_timeout=PRELABEL_TIMEOUT_S)


def queue_named(name: str, connection: Redis) -> Queue:
    """Returns one of QUEUES.

    Raises:
        KeyError: no queue has this name.
    """
    makers = {
        EVENTS: events_queue,
        RECONCILE: reconcile_queue,
        TRAINING: training_queue,
        PRELABEL: prelabel_queue,
    }
    return makers[name](connection)


@contextmanager
def redis_lock(connection: Redis, name: str, wait_s: float, owner: str | None = None) -> Iterator[bool]:
    """Holds a named lock for the block and renews it meanwhile.

    Args:
        connection: Connection to the shared Redis.
        name: Key of the lock.
        wait_s: Maximum wait for another holder; 0 tries once.
        owner: Unique name of the holder, if any: a lock left by a killed process of the same owner is then
        taken over at once instead of after LOCK_TTL_S.

    Yields:
        Whether the lock is held. The block decides what to do without it.
    """
    lock = connection.lock(name, timeout=LOCK_TTL_S, thread_local=False)
    waits = {"blocking": wait_s > 0, "blocking_timeout": wait_s or None}
    if not (lock.acquire(token=owner, **waits) or _take_over(lock, owner)):
        yield False
        return
    done = Event()
    renewer = Thread(target=_renew, args=(lock, done), daemon=True)
    renewer.start()
    try:
        yield True
    finally:
        done.set()
        renewer.join()
        _release(lock)


def _take_over(lock: Lock, owner: str | None) -> bool:
    if owner is None:
        return False
    lock.local.token = owner.encode()
    try:
        return bool(lock.reacquire())
    except LockError:  # another owner's
        return False


def _renew(lock: Lock, done: Event) -> None:
    while not done.wait(LOCK_TTL_S / 3):
        try:
            lock.reacquire()
        except LockError:
            return
        except RedisError as error:
            logger.warning("the lock %s was not renewed: %s", lock.name, error)


def _release(lock: Lock) -> None:
    """Releases the lock. Jobs are safe to run twice, so a lock that has expired is only logged."""
    try:
        lock.release()
    except LockError as error:
        logger.warning("the lock %s expired while it was held: %s", lock.name, error)
