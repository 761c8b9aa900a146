"""Adapter for hosting the backend with `label-studio-ml start`.

Needs that server, which is not on the Python package index in a current release:

    pip install git+https://github.com/HumanSignal/label-studio-ml-backend.git

In its `_wsgi.py`:

    from backend.label_studio_ml_adapter import SspSamModel
    app = init_app(model_class=SspSamModel)

That server creates a model object per request; they share one service, created from the environment by the
first one.
"""

from __future__ import annotations

from functools import cache
from typing import Any

from label_studio_ml.model import LabelStudioMLBase

from backend.queries import PredictQuery, parse_setup, project_number
from backend.service import Service, build_service
from backend.settings import Settings


class SspSamModel(LabelStudioMLBase):  # type: ignore[misc]  # an optional package without types
    """Masks for phrases."""

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


@cache
def shared_service() -> Service:
    """The service of this process; its model is loading when this returns."""
    service = build_service(Settings())
    service.engine.start()
    return service
