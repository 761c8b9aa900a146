"""Jobs that a worker may run: public functions of the allowed modules. Jobs in Redis are not trusted.

A job that names anything else, a method of an object, or a callback is refused before anything is imported.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Collection

from rq.job import Job

from backend.shared_redis import ServiceJob

_CALLBACKS = ("_success_callback_name", "_failure_callback_name", "_stopped_callback_name", "webhooks")


def refusal(job: Job, modules: Collection[str]) -> str:
    """Returns why a job is refused; empty if it may run.

    Args:
        job: The job as read from Redis.
        modules: Modules whose public functions may be jobs.
    """
    try:
        name, instance = str(job.func_name), job.instance
        arguments = (job.args, job.kwargs)
    except Exception as error:  # RQ and the serializer share no base class of errors
        return f"refused: it cannot be read as JSON ({type(error).__name__})"
    module, _, function = name.rpartition(".")
    has_callbacks = any(getattr(job, callback, None) for callback in _CALLBACKS)
    if instance is not None or has_callbacks or (isinstance(job, ServiceJob) and job.dropped):
        return f"refused: {name[:100]!r} is a method of an object or has callbacks or webhooks"
    if module not in modules or not function.isidentifier() or function.startswith("_"):
        return f"refused: {name[:100]!r} is not a job; jobs are the functions of {', '.join(sorted(modules))}"
    found = getattr(importlib.import_module(module), function, None)
    if not inspect.isroutine(found) or found.__module__ != module:
        return f"refused: there is no job {name!r}"
    if not isinstance(arguments[0], list | tuple) or not isinstance(arguments[1], dict):
        return f"refused: {name!r} has no list of arguments"
    return ""
