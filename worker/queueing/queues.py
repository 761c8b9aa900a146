"""Redis: the connection, the queues, and the names of all keys that the worker uses."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from threading import Event, Thread
from urllib.parse import urlsplit

from redis import Redis
from redis.exceptions import LockError, RedisError
from redis.lock import Lock
from rq import Queue
from rq.job import Retry
from rq.serializers import JSONSerializer

from backend.errors import QueueUnavailableError

EVENTS = "events"
"""Short jobs: collect an annotation, decide about a fine-tune."""
TRAINING = "training"
"""Fine-tunes, one at a time per worker."""
PRELABEL = "prelabel"
"""Masks for many tasks at once, with a model of the worker's own."""
QUEUES = (EVENTS, TRAINING, PRELABEL)

EVENT_TIMEOUT_S = 300
TRAINING_TIMEOUT_S = 12 * 3600
PRELABEL_TIMEOUT_S = 4 * 3600
PRELABEL_RETRY = Retry(max=3, interval=[10, 60, 300])
"""For a chunk whose worker died, or while Label Studio was away."""
RESULT_TTL_S = 24 * 3600
FAILURE_TTL_S = 14 * 24 * 3600
LOCK_TTL_S = 30
"""How long a lock outlives a holder that was killed; a live holder renews it."""
SOCKET_TIMEOUT_S = 10

SERVED_KEY = "sspsam:served:{region}"
"""Written by the backend, backend.state.redis_store; its age tells when the mask was served."""
PREFETCHED_KEY = "sspsam:prefetched:{project}"
"""Hash of the tasks whose pictures are embedded; see worker.projects.prefetch."""
DECISION_KEY = "sspsam:decision:{project}"
"""JSON of the last decision about a fine-tune of a project: {"at", "trigger", "start", "reason",
"deferred"}."""
WANTED_KEY = "sspsam:wanted:{project}"
"""Trigger with which a person asked for a fine-tune that was put off; gone once that is decided."""
PROGRESS_KEY = "sspsam:progress:{project}"
"""JSON of the fine-tune that runs: {"run", "step", "steps"}; gone when none does."""
RECORDS_LOCK = "sspsam:lock:records:{annotation}"
DECISION_LOCK = "sspsam:lock:decision"
TRAINING_LOCK = "sspsam:lock:training:{preset}"


logger = logging.getLogger(__name__)


def connect(redis_url: str) -> Redis:
    """Makes a client for redis://, rediss:// or unix:// URLs; it connects at the first command."""
    return Redis.from_url(redis_url, socket_connect_timeout=SOCKET_TIMEOUT_S)


def require_redis(redis_url: str) -> None:
    """Checks that Redis is there before anything starts.

    Raises:
        QueueUnavailableError: it does not answer, or refuses us.
    """
    try:
        with connect(redis_url) as connection:
            connection.ping()
    except RedisError as error:
        parts = urlsplit(redis_url)
        where = f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"  # without a password
        raise QueueUnavailableError(
            f"Redis does not answer at {where} ({error}): start it, or set REDIS_URL"
        ) from error


def events_queue(connection: Redis) -> Queue:
    return Queue(EVENTS, connection=connection, serializer=JSONSerializer, default_timeout=EVENT_TIMEOUT_S)


def training_queue(connection: Redis) -> Queue:
    return Queue(
        TRAINING, connection=connection, serializer=JSONSerializer, default_timeout=TRAINING_TIMEOUT_S
    )


def prelabel_queue(connection: Redis) -> Queue:
    return Queue(
        PRELABEL, connection=connection, serializer=JSONSerializer, default_timeout=PRELABEL_TIMEOUT_S
    )


def queue_named(name: str, connection: Redis) -> Queue:
    """One of QUEUES.

    Raises:
        KeyError: there is none of that name.
    """
    makers = {EVENTS: events_queue, TRAINING: training_queue, PRELABEL: prelabel_queue}
    return makers[name](connection)


@contextmanager
def redis_lock(connection: Redis, name: str, wait_s: float, owner: str | None = None) -> Iterator[bool]:
    """Holds a lock of that name for the block, and renews it meanwhile.

    Args:
        connection: To the Redis that all workers share.
        name: Key of the lock.
        wait_s: How long to wait for another holder; 0 tries once.
        owner: Who holds it, where only one can be of that name: then what a killed process of that owner left
            held is taken over at once, instead of after LOCK_TTL_S.

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
    """Gives the lock back. Jobs are safe to run twice, so a lock that expired meanwhile is only noted."""
    try:
        lock.release()
    except LockError as error:
        logger.warning("the lock %s expired while it was held: %s", lock.name, error)
