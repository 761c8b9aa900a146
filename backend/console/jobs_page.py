"""The page of the worker's jobs."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from flask import Blueprint, Response, redirect, request
from redis import Redis, RedisError
from werkzeug.wrappers import Response as AnyResponse

from backend.console.fine_tunes import CURVE_WH
from backend.console.jobs import SHOWN, JobLists, dismiss_failed, job_lists, retry_failed, stop
from backend.console.pages import audited, page, service
from backend.errors import QueueUnavailableError
from sspsam.version_store.lines import line_of_project

jobs = Blueprint("jobs", __name__)


@jobs.get("/jobs")
def every() -> Response:
    return page("jobs.html", lists=_lists(), most=SHOWN, curve_wh=CURVE_WH)


@jobs.get("/jobs/list")
def part() -> Response:
    """The part of the page that is loaded again while something runs."""
    return page("jobs-list.html", lists=_lists(), most=SHOWN, curve_wh=CURVE_WH)


@jobs.post("/jobs/retry")
def retry() -> AnyResponse:
    return _act("retry a job", retry_failed)


@jobs.post("/jobs/dismiss")
def dismiss() -> AnyResponse:
    return _act("remove a failed job", dismiss_failed)


@jobs.post("/jobs/stop")
def end() -> AnyResponse:
    return _act("stop a job", stop)


def _act(action: str, do: Callable[[Redis, str], str]) -> AnyResponse:
    job_id = request.form.get("job", "")[:200]
    with audited(action, job_id) as lines:
        try:
            lines.append(do(service().redis, job_id))
        except RedisError as error:
            raise QueueUnavailableError("Redis does not respond: check REDIS_URL") from error
    return redirect("/jobs", 303)


def _lists() -> JobLists | None:
    """None if Redis does not respond."""
    settings = service().settings
    try:
        return job_lists(service().redis, settings, _progress)
    except RedisError:
        return None


def _progress(project: int) -> Mapping[str, Any]:
    line = service().engine.line_of(str(project)) or line_of_project(project)
    return service().redis_store.worker.progress(line)
