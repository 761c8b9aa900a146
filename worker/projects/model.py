"""The model, as jobs about the tasks of a project use it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from backend.errors import ModelUnavailableError
from backend.service import Service, build_service
from backend.serving.engine import Engine
from worker.projects.chunks import TASK_THREADS
from worker.services import Services

MODEL_LOAD_S = 600.0


@contextmanager
def running_service(services: Services) -> Iterator[Service]:
    """The assistant that answers annotators, with its own model.

    Raises:
        ModelUnavailableError: the model could not be loaded.
    """
    room = max(services.settings.queue_limit, 2 * TASK_THREADS)  # of its own queues: not the backend's
    settings = services.settings.model_copy(update={"queue_limit": room})
    service = build_service(settings, services.redis)
    service.engine.start()
    try:
        if not service.engine.wait(MODEL_LOAD_S):
            raise ModelUnavailableError(f"the model was not loaded within {MODEL_LOAD_S:.0f} s")
        if service.engine.status().state == "failed":
            raise ModelUnavailableError(f"the model could not be loaded: {service.engine.status().error}")
        yield service
    finally:
        service.engine.stop()


@contextmanager
def running_engine(services: Services) -> Iterator[Engine]:
    """Its engine alone."""
    with running_service(services) as service:
        yield service.engine
