"""What Label Studio asks, as values.

Label Studio adds fields as it likes: unknown ones pass, missing ones say which and where.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backend.errors import RequestError
from backend.labelstudio import notes
from backend.memory import KnownProject

Results = list[Mapping[str, Any]]


@dataclass(frozen=True)
class Task:
    """A task of a predict request."""

    task_id: str
    data: Mapping[str, Any]
    annotations: tuple[Mapping[str, Any], ...] = ()
    """Saved ones, of everybody."""
    drafts: tuple[Mapping[str, Any], ...] = ()
    """What the annotator who asks has not saved yet, some seconds old."""
    predictions: tuple[Mapping[str, Any], ...] = ()

    @property
    def annotator(self) -> str:
        """The user id of the annotator who asks, as far as a request tells: by the draft, which comes some
        seconds after the first change. Empty before that.
        """
        names = (str(draft.get("created_username") or "") for draft in self.drafts)
        return next((name.rpartition(", ")[2] for name in names if name), "")

    @classmethod
    def parse(cls, payload: object) -> Task:
        fields = _mapping(payload, "tasks[]")
        return cls(
            task_id=str(fields.get("id", "")),
            data=_mapping(fields.get("data") or {}, "tasks[].data"),
            annotations=_mappings(fields.get("annotations")),
            drafts=_mappings(fields.get("drafts")),
            predictions=_mappings(fields.get("predictions")),
        )

    def phrases(self, extra_params: object = None) -> list[str]:
        """The phrases to look for without an annotator: the task's own, else the project's."""
        own = phrases_in(self.data)
        return own or phrases_in(_json_mapping(extra_params))


@dataclass(frozen=True)
class PredictQuery:
    """A predict request."""

    project_id: str
    label_config: str
    tasks: tuple[Task, ...]
    context: Results | None
    """What is on the form of the whole image, from an annotator; None for a batch."""

    @classmethod
    def parse(cls, payload: object) -> PredictQuery:
        """Reads the body of POST /predict.

        Raises:
            RequestError: no object, no list of tasks, or a task that is none.
        """
        fields = _mapping(payload, "the body")
        tasks = fields.get("tasks")
        if not isinstance(tasks, list):
            raise RequestError("the body of /predict needs a list `tasks`")
        params = fields.get("params")
        context = params.get("context") if isinstance(params, Mapping) else None
        return cls(
            project_id=project_number(fields.get("project")),
            label_config=str(fields.get("label_config") or ""),
            tasks=tuple(Task.parse(task) for task in tasks),
            context=_results(context) if isinstance(context, Mapping) else None,
        )


def parse_setup(payload: object) -> KnownProject:
    """Reads the body of POST /setup. Its hostname and access_token are nobody's proof, and are dropped.

    Raises:
        RequestError: it is not an object.
    """
    fields = _mapping(payload, "the body")
    return KnownProject(
        project_id=project_number(fields.get("project")),
        label_config=str(fields.get("schema") or ""),
        extra_params=fields.get("extra_params"),
        seen_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def project_number(value: object) -> str:
    """`2.1795330931`, as Label Studio names a project to its backends, is project `2`."""
    return "" if value is None else str(value).partition(".")[0]


def phrases_in(fields: Mapping[str, Any]) -> list[str]:
    """`phrases` (a list, or one per line) and `phrase`, blank ones and repetitions left out."""
    many = fields.get("phrases")
    listed = notes.entries(many.splitlines() if isinstance(many, str) else many)
    return list(notes.distinct(listed + notes.entries(fields.get("phrase"))).values())


def _json_mapping(value: object) -> Mapping[str, Any]:
    """extra_params: an object from the API, text from the form, which may be JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return {}
    return value if isinstance(value, Mapping) else {}


def _results(context: Mapping[str, Any]) -> Results:
    return list(_mappings(context.get("result")))


def _mappings(value: object) -> tuple[Mapping[str, Any], ...]:
    return tuple(one for one in value if isinstance(one, Mapping)) if isinstance(value, list) else ()


def _mapping(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{place} must be an object, not {type(value).__name__}")
    return value
