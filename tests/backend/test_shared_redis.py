"""Messages about versions that now serve a line, and jobs."""

from __future__ import annotations

import json
import time

import pytest
from redis import Redis
from rq.exceptions import NoSuchJobError
from rq.executions import Execution

from backend.shared_redis import (
    PRELABEL,
    VERSIONS_CHANNEL,
    ServiceQueue,
    announce_version,
    fetch_job,
)


def test_an_announcement_names_the_line(redis_server: Redis) -> None:
    with redis_server.pubsub(ignore_subscribe_messages=True) as messages:
        messages.subscribe(VERSIONS_CHANNEL)
        messages.get_message(timeout=1)
        announce_version(redis_server, "project-7", "ssp-sam-test-0003")
        message = messages.get_message(timeout=1)
    assert message is not None
    assert json.loads(message["data"]) == {"line": "project-7", "version": "ssp-sam-test-0003"}


def test_a_job_is_deleted_whose_execution_has_expired(redis_server: Redis) -> None:
    """Its worker was killed: the execution's own key expires before its place in the registry."""
    job = ServiceQueue(PRELABEL, redis_server).enqueue_call("worker.jobs.prelabel_chunk", job_id="chunk")
    redis_server.zadd(job.execution_registry.key, {"expired": time.time() + 60})

    fetch_job("chunk", redis_server).delete()

    with pytest.raises(NoSuchJobError):
        fetch_job("chunk", redis_server)
    assert not redis_server.exists(job.execution_registry.key)


def test_a_job_is_deleted_while_its_execution_ends(
    redis_server: Redis, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = ServiceQueue(PRELABEL, redis_server).enqueue_call("worker.jobs.prelabel_chunk", job_id="chunk")
    with redis_server.pipeline() as pipeline:
        execution = Execution.create(job, 60, pipeline)
        pipeline.execute()
    refresh = Execution.refresh

    def ends_first(self: Execution) -> None:
        with redis_server.pipeline() as pipeline:
            execution.delete(job, pipeline)
            pipeline.execute()
        refresh(self)

    monkeypatch.setattr(Execution, "refresh", ends_first)
    fetch_job("chunk", redis_server).delete()

    with pytest.raises(NoSuchJobError):
        fetch_job("chunk", redis_server)
