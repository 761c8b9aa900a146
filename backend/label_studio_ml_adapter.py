"""Adapter for hosting the backend with `label-studio-ml start`.

Needs that server, which is not on the Python package index in a current release:

    pip install git+https://github.com/HumanSignal/label-studio-ml-backend.git
    label-studio-ml create my-backend --script backend/label_studio_ml_adapter.py:SspSamModel
    label-studio-ml start my-backend

Importing this module gives that server the views of our own app: its answers are those of `sspsam serve`, and
Label Studio's events of all kinds arrive. Its own views pass on four kinds of events only, answer 500 with a
traceback where a request is wrong, and cannot tell a batch from a form without entries. Its Basic auth stays
in place. The service is created from the environment by the first request.
"""

from __future__ import annotations

from functools import cache
from threading import Lock
from typing import Any

from flask import Flask, Response, current_app, jsonify, request
from label_studio_ml.api import init_app
from label_studio_ml.model import LabelStudioMLBase

from backend.errors import BackendError, RequestError
from backend.queries import PredictQuery, parse_setup, project_number
from backend.service import Service, build_service
from backend.settings import Settings
from backend.web import api
from backend.web.access import WEBHOOK_PATH, check_access
from backend.web.app import FastJSON

UNREADABLE = (RecursionError, UnicodeEncodeError)
"""Bodies that are nested too deeply, or contain half a character."""


class SspSamModel(LabelStudioMLBase):  # type: ignore[misc]  # an optional package without types
    """Masks for phrases, for programs that call a hosted model themselves."""

    def setup(self) -> None:
        project = project_number(self.project_id)
        self.set("model_version", shared_service().engine.version_of(project))
        if self.label_config:
            self._register_project()

    def set_extra_params(self, extra_params: Any) -> None:
        """Stores the text typed at connecting: it may contain the project's phrases."""
        self._register_project(extra_params)

    def _register_project(self, extra_params: Any = None) -> None:
        known = {"project": self.project_id, "schema": self.label_config, "extra_params": extra_params}
        shared_service().register_project(parse_setup(known))

    def predict(
        self, tasks: list[dict[str, Any]], context: dict[str, Any] | None = None, **kwargs: Any
    ) -> list[Any]:
        """Answers tasks as POST /predict does."""
        query = PredictQuery.parse(
            {
                "tasks": tasks,
                "project": self.project_id,
                "label_config": self.label_config,
                "params": {"context": context},
            }
        )
        return shared_service().assistant.answer(query)

    def fit(self, event: str, data: dict[str, Any], **kwargs: Any) -> None:
        """Queues the jobs of an event."""
        shared_service().take_event({**data, "action": event})


_MAKING = Lock()


def shared_service() -> Service:
    """The service of this process; its model is loading when this returns."""
    with _MAKING:  # `cache` alone would let the first requests make one each
        return _service()


@cache
def _service() -> Service:
    service = build_service(Settings())
    service.engine.start()
    return service


def _use_own_views(server: Flask) -> None:
    """Replaces the views of a hosting server, and adds the routes that it lacks."""
    server.json = FastJSON(server)
    server.view_functions.update(
        _predict=api.predict, _setup=api.setup, webhook=api.webhook, health=api.health, metrics=api.metrics
    )
    server.add_url_rule("/webhook", "last_event", api.last_event, methods=["GET"])
    server.add_url_rule("/versions", "versions", api.versions)
    server.add_url_rule("/ready", "ready", api.ready)
    server.before_request(_prepare)
    server.register_error_handler(BackendError, _answer_error)
    for error in UNREADABLE:
        server.register_error_handler(error, _answer_unreadable)


def _prepare() -> None:
    """Gives the views their service, and checks the secret of events: that server knows Basic auth alone."""
    service = shared_service()
    current_app.extensions["sspsam"] = service
    if request.path == WEBHOOK_PATH:
        check_access(request, service.settings)


def _answer_error(error: BackendError) -> tuple[Response, int]:
    return jsonify(error=str(error)), error.status


def _answer_unreadable(error: Exception) -> tuple[Response, int]:
    return _answer_error(RequestError(f"the body cannot be read ({type(error).__name__})"))


_use_own_views(init_app(model_class=SspSamModel))
