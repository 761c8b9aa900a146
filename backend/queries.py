"""Label Studio's requests as values.

Unknown fields are ignored; errors name the missing or wrong field and its location.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from backend.errors import RequestError
from backend.labelstudio import prompt_text
from backend.state.known_projects import KnownProject

Results = list[Mapping[str, Any]]

ID_MAX_CHARACTERS = 100
"""Of projects and tasks; Label Studio's are numbers, some with a fraction."""
MAX_DEPTH = 32
"""Of nested values that are kept."""
TOGETHER = "together"
"""Value of `instances` in a project's extra params; otherwise each object has a region."""
EXTRA_PARAMS_MAX_CHARACTERS = 2**20
"""Of a project's phrases, as JSON."""


@dataclass(frozen=True)
class Task:
    """A task of a predict request."""

    task_id: str
    data: Mapping[str, Any]
    annotations: tuple[Mapping[str, Any], ...] = ()
    """Saved annotations of all users."""
    drafts: tuple[Mapping[str, Any], ...] = ()
    """The requesting annotator's unsaved changes, a few seconds old."""
    predictions: tuple[Mapping[str, Any], ...] = ()

    @property
    def annotator(self) -> str:
        """User ID of the requesting annotator, if known: it is part of the draft, which follows some seconds
        after the first change. Empty before that.
        """
        return next((name for draft in self.drafts if (name := annotator_of(draft))), "")

    @property
    def draft_version(self) -> str:
        """Identifies the annotator's draft as last saved; empty if there is none, or more than one."""
        return draft_version_of(self.drafts[0]) if len(self.drafts) == 1 else ""

    @classmethod
    def parse(cls, payload: object) -> Task:
        fields = _mapping(payload, "tasks[]")
        return cls(
            task_id=short_id(fields.get("id", ""), "tasks[].id"),
            data=_mapping(fields.get("data") or {}, "tasks[].data"),
            annotations=_mappings(fields.get("annotations")),
            drafts=_mappings(fields.get("drafts")),
            predictions=_mappings(fields.get("predictions")),
        )

    def phrases(self, extra_params: object = None) -> list[str]:
        """Phrases for requests without an annotator: the task's own, else the project's."""
        own = phrases_in(self.data)
        return own or phrases_in(_json_mapping(extra_params))


@dataclass(frozen=True)
class PredictQuery:
    """A predict request."""

    project_id: str
    label_config: str
    tasks: tuple[Task, ...]
    context: Results | None
    """The annotator's image-level results; None for a batch, which has no context, or one without results."""

    @classmethod
    def parse(cls, payload: object) -> PredictQuery:
        """Parses the body of POST /predict.

        Raises:
            RequestError: not an object, no list of tasks, or an invalid task.
        """
        fields = _mapping(payload, "the body")
        tasks = fields.get("tasks")
        if isinstance(tasks, Mapping):  # as other clients send a single one
            tasks = [tasks]
        if not isinstance(tasks, list):
            raise RequestError("the body of /predict needs a list `tasks`")
        params = fields.get("params")
        context = params.get("context") if isinstance(params, Mapping) else None
        return cls(
            project_id=project_number(fields.get("project")),
            label_config=str(fields.get("label_config") or ""),
            tasks=tuple(Task.parse(task) for task in tasks),
            context=_results(context) if isinstance(context, Mapping) and "result" in context else None,
        )


def parse_setup(payload: object) -> KnownProject:
    """Parses the body of POST /setup. Its hostname and access_token are unauthenticated, and dropped.

    Raises:
        RequestError: not an object.
    """
    fields = _mapping(payload, "the body")
    return KnownProject(
        project_id=project_number(fields.get("project")),
        label_config=str(fields.get("schema") or ""),
        extra_params=_bounded(fields.get("extra_params"), "extra_params"),
        seen_at=datetime.now(UTC).isoformat(timespec="seconds"),
    )


def annotator_of(draft: Mapping[str, Any]) -> str:
    """User ID in a draft, or the e-mail address if there is no ID; empty if it contains neither."""
    return str(draft.get("created_username") or draft.get("user") or "").rpartition(", ")[2]


def draft_version_of(draft: Mapping[str, Any]) -> str:
    """Identifies a draft as last saved."""
    return f"{draft.get('id')}@{draft.get('updated_at')}"


def project_number(value: object) -> str:
    """Label Studio names project `2` as `2.1795330931` in requests to backends."""
    number = "" if value is None else short_id(value, "project")
    return number.partition(".")[0]


def short_id(value: object, place: str) -> str:
    """An ID as text.

    Raises:
        RequestError: longer than any ID of Label Studio.
    """
    try:
        text = str(value)
    except ValueError as error:  # more digits than Python converts
        raise RequestError(f"{place} has too many digits") from error
    if len(text) > ID_MAX_CHARACTERS:
        raise RequestError(f"{place} has {len(text)} characters, which no ID of Label Studio has")
    return text


def phrases_in(fields: Mapping[str, Any]) -> list[str]:
    """`phrases` (a list, or one per line) and `phrase`, without blanks and duplicates."""
    many = fields.get("phrases")
    listed = prompt_text.entries(many.splitlines() if isinstance(many, str) else many)
    return list(prompt_text.distinct(listed + prompt_text.entries(fields.get("phrase"))).values())


def instances_together(extra_params: object) -> bool:
    """Whether a project wants all objects of a phrase in one region: `"instances": "together"`."""
    return _json_mapping(extra_params).get("instances") == TOGETHER


def least_presence(extra_params: object) -> float | None:
    """The probability of a target from which a project wants masks, marked as unsure: `"unsure": 0.2`.

    None if it has not set one, or no number from 0 to 1.
    """
    value = _json_mapping(extra_params).get("unsure")
    if not isinstance(value, int | float) or isinstance(value, bool):
        return None
    return float(value) if 0 <= value <= 1 else None


def _bounded(value: object, place: str) -> object:
    """The value, which is stored and read by others.

    Raises:
        RequestError: it is too long as JSON, or nested too deeply.
    """
    depth, level = 0, [value]
    while level:
        depth += 1
        if depth > MAX_DEPTH:
            raise RequestError(f"{place} is nested more than {MAX_DEPTH} deep")
        level = [
            entry
            for parent in level
            if isinstance(parent, Mapping | list)
            for entry in (parent.values() if isinstance(parent, Mapping) else parent)
        ]
    if len(json.dumps(value)) > EXTRA_PARAMS_MAX_CHARACTERS:
        raise RequestError(f"{place} has more than {EXTRA_PARAMS_MAX_CHARACTERS} characters")
    return value


def _json_mapping(value: object) -> Mapping[str, Any]:
    """extra_params: an object from the API, or text from the form, possibly JSON."""
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except (ValueError, RecursionError):
            return {}
    return value if isinstance(value, Mapping) else {}


def _results(context: Mapping[str, Any]) -> Results:
    return list(_mappings(context.get("result")))


def _mappings(value: object) -> tuple[Mapping[str, Any], ...]:
    return tuple(entry for entry in value if isinstance(entry, Mapping)) if isinstance(value, list) else ()


def _mapping(value: object, place: str) -> Mapping[str, Any]:
    if not isinstance(value, Mapping):
        raise RequestError(f"{place} must be an object, not {type(value).__name__}")
    return value
