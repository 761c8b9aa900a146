"""The part of Label Studio's API that we use (https://api.labelstud.io)."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from backend.errors import LabelStudioError, LabelStudioNotFound
from backend.labelstudio.connection import (
    ACCESS_TOKEN_AGE_S,
    PAGE_SIZE,
    TIMEOUT_S,
    Connection,
    Json,
    is_last_page,
)

UPLOAD_TIMEOUT_S = 300.0
WEBHOOK_SECRET_HEADER = "X-ML-Secret"
_NOBODY = {"filter": "filter:tasks:total_annotations", "operator": "equal", "type": "Number", "value": 0}
_UNANNOTATED = json.dumps({"filters": {"conjunction": "and", "items": [_NOBODY]}})
"""Query for unannotated tasks."""


def moment_of(text: object) -> datetime | None:
    """Parses a time from Label Studio; None if it is none."""
    try:
        moment = datetime.fromisoformat(text) if isinstance(text, str) else None
        return moment.astimezone(UTC) if moment is not None and moment.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _changed_since(since: datetime | None) -> str:
    """Query for the tasks changed at a time or later, in this order."""
    items = []
    if since is not None:
        value = since.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        column = {"filter": "filter:tasks:updated_at", "type": "Datetime"}
        items = [{**column, "operator": "greater_or_equal", "value": value}]
    return json.dumps({"filters": {"conjunction": "and", "items": items}, "ordering": ["tasks:updated_at"]})


class LabelStudioClient:
    """A Label Studio server with our API key. Thread-safe. The constructor opens nothing.

    Every method raises LabelStudioUnavailable if the server does not respond, LabelStudioUnauthorized if it
    refuses the key, LabelStudioNotFound for an unknown ID, LabelStudioError otherwise.

    Args:
        url: URL of Label Studio.
        api_key: Personal access token or legacy token.
        timeout_s: For each request.
        access_token_age_s: Age at which an access token is replaced.
    """

    def __init__(
        self,
        url: str,
        api_key: str,
        timeout_s: float = TIMEOUT_S,
        access_token_age_s: float = ACCESS_TOKEN_AGE_S,
    ) -> None:
        self._connection = Connection(url, api_key, timeout_s, access_token_age_s)

    @property
    def url(self) -> str:
        """URL of Label Studio, without a trailing slash."""
        return self._connection.url

    def authorization(self) -> str:
        """The Authorization header for this server; send it nowhere else."""
        return self._connection.authorization()

    def renew(self) -> bool:
        """Drops a refused access token; returns whether a retry may get another one."""
        return self._connection.renew()

    def version(self) -> str:
        """Returns the release, such as "1.23.2"; empty if the server does not name it."""
        release = self._connection.ask_object("GET", "/api/version/").get("release")
        return str(release or "").partition("+")[0]

    def projects(self) -> Iterator[Json]:
        """Yields the projects visible to the API key."""
        return self._connection.pages("/api/projects/", {}, "results")

    def project(self, project_id: int) -> Json:
        return self._connection.ask_object("GET", f"/api/projects/{project_id}/")

    def project_summary(self, project_id: int) -> Json:
        """Returns what a project's data hold, such as {"created_labels": {tag: {label: count}}, ...}."""
        return self._connection.ask_object("GET", f"/api/projects/{project_id}/summary/")

    def create_project(self, title: str, label_config: str, **fields: Any) -> Json:
        return self._connection.ask_object(
            "POST", "/api/projects/", json={"title": title, "label_config": label_config, **fields}
        )

    def update_project(self, project_id: int, **fields: Any) -> Json:
        return self._connection.ask_object("PATCH", f"/api/projects/{project_id}/", json=fields)

    def validate_config(self, project_id: int, label_config: str) -> None:
        """Asks whether a project may have a labeling config; changes nothing.

        Raises:
            LabelStudioError: it may not; the message says why.
        """
        self._connection.ask_object(
            "POST", f"/api/projects/{project_id}/validate/", json={"label_config": label_config}
        )

    def upload_images(self, project_id: int, paths: Sequence[Path]) -> Json:
        """Uploads files; Label Studio creates a task for each.

        Returns:
            Label Studio's counts, such as {"task_count": 3, "file_upload_ids": [...], ...}.
        """
        with ExitStack() as files:
            # Label Studio keeps only the last of several parts with the same name.
            parts = {
                f"file{number}": (path.name, files.enter_context(path.open("rb")))
                for number, path in enumerate(paths)
            }
            return self._connection.ask_object(
                "POST", f"/api/projects/{project_id}/import", files=parts, timeout=UPLOAD_TIMEOUT_S
            )

    def users(self) -> list[Json]:
        """Returns the users of the organization."""
        return self._connection.ask_list("GET", "/api/users/")

    def tasks(self, project_id: int, page_size: int = PAGE_SIZE) -> Iterator[Json]:
        """Yields a project's tasks with their annotations, by ID; one page at a time is in memory."""
        query = {"project": project_id, "fields": "all", "page_size": page_size}
        return self._connection.pages("/api/tasks", query, "tasks")

    def changed_tasks(
        self, project_id: int, since: datetime | None = None, page_size: int = PAGE_SIZE
    ) -> Iterator[tuple[list[Json], bool]]:
        """Yields pages of a project's tasks with their annotations, by the time of their last change.

        Each comes with whether it is the last.

        Saving or deleting an annotation changes its task. The next page is asked for by time instead of by
        its number, so changes made meanwhile move no task past the reader; the last of a page come twice.

        Args:
            project_id: Project of the tasks.
            since: Earliest change; None for all tasks.
            page_size: Tasks per request.
        """
        page, seen = 1, 0
        while True:
            query = {"project": project_id, "fields": "all", "page_size": page_size, "page": page}
            try:
                answer = self._connection.ask_object(
                    "GET", "/api/tasks", params={**query, "query": _changed_since(since)}
                )
            except LabelStudioNotFound:
                if page == 1:
                    raise
                return
            tasks: list[Json] = answer.get("tasks") or []
            seen += len(tasks)
            is_last = is_last_page(answer, tasks, seen)
            yield tasks, is_last
            if is_last:
                return
            last = moment_of(tasks[-1].get("updated_at"))
            moved = last is not None and (since is None or last > since)
            since, page, seen = (last, 1, 0) if moved else (since, page + 1, seen)

    def task_list(self, project_id: int) -> Iterator[Json]:
        """Yields a project's tasks, by ID, without annotations and predictions."""
        return self._connection.pages("/api/tasks", {"project": project_id, "page_size": PAGE_SIZE}, "tasks")

    def next_tasks(self, project_id: int, count: int) -> list[Json]:
        """Returns the first unannotated tasks, by ID."""
        query = {"project": project_id, "page": 1, "page_size": count, "query": _UNANNOTATED}
        tasks: list[Json] = self._connection.ask_object("GET", "/api/tasks", params=query).get("tasks") or []
        return tasks

    def unannotated_tasks(self, project_id: int) -> Iterator[Json]:
        """Yields all unannotated tasks, by ID, without predictions."""
        return self._connection.pages("/api/tasks", {"project": project_id, "query": _UNANNOTATED}, "tasks")

    def task(self, task_id: int) -> Json:
        return self._connection.ask_object("GET", f"/api/tasks/{task_id}/")

    def update_task(self, task_id: int, data: Mapping[str, Any]) -> Json:
        return self._connection.ask_object("PATCH", f"/api/tasks/{task_id}/", json={"data": data})

    def annotations(self, task_id: int) -> list[Json]:
        return self._connection.ask_list("GET", f"/api/tasks/{task_id}/annotations/")

    def drafts(self, task_id: int, timeout_s: float) -> list[Json]:
        """Returns the unsaved changes of all annotators of a task."""
        return self._connection.ask_list("GET", f"/api/tasks/{task_id}/drafts", timeout=timeout_s)

    def annotation(self, annotation_id: int) -> Json:
        return self._connection.ask_object("GET", f"/api/annotations/{annotation_id}/")

    def create_prediction(
        self,
        task_id: int,
        result: Sequence[Mapping[str, Any]],
        model_version: str,
        score: float | None = None,
    ) -> Json:
        body = {"task": task_id, "result": list(result), "model_version": model_version, "score": score}
        return self._connection.ask_object("POST", "/api/predictions/", json=body)

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> None:
        """Creates predictions, each {"task", "result", "model_version", "score"}, in one request.

        Raises:
            LabelStudioError: it silently dropped some that do not match the labeling config.
        """
        answer = self._connection.ask_object(
            "POST",
            f"/api/projects/{project_id}/import/predictions",
            json=[dict(prediction) for prediction in predictions],
            timeout=UPLOAD_TIMEOUT_S,
        )
        if answer.get("created") != len(predictions):
            raise LabelStudioError(
                f"Label Studio accepted {answer.get('created')} of {len(predictions)} predictions: the "
                "others do not fit the project's labeling config"
            )

    def update_prediction(self, prediction_id: int, **fields: Any) -> Json:
        return self._connection.ask_object("PATCH", f"/api/predictions/{prediction_id}/", json=fields)

    def predictions(self, task_id: int) -> list[Json]:
        return self._connection.ask_list("GET", "/api/predictions/", params={"task": task_id})

    def export(self, project_id: int) -> list[Json]:
        """Returns all annotated tasks of a project with annotations, in Label Studio's JSON."""
        return self._connection.ask_list(
            "GET",
            f"/api/projects/{project_id}/export",
            params={"exportType": "JSON"},
            timeout=UPLOAD_TIMEOUT_S,
        )

    def ml_backends(self, project_id: int) -> list[Json]:
        """Returns a project's backends; Label Studio checks the health of each first."""
        return self._connection.ask_list("GET", "/api/ml", params={"project": project_id})

    def connect_ml_backend(
        self,
        project_id: int,
        url: str,
        title: str,
        basic_auth: tuple[str, str] | None = None,
        extra_params: Mapping[str, Any] | None = None,
    ) -> Json:
        """Connects a backend for interactive use; Label Studio checks its /health and /setup."""
        body = {"project": project_id, **_ml_fields(url, title, basic_auth, extra_params)}
        return self._connection.ask_object("POST", "/api/ml", json=body)

    def update_ml_backend(
        self,
        record: Mapping[str, Any],
        url: str,
        title: str,
        basic_auth: tuple[str, str] | None = None,
        extra_params: Mapping[str, Any] | None = None,
    ) -> Json:
        """Changes a backend. Label Studio rejects partial records, so the whole record is sent."""
        body = {**record, **_ml_fields(url, title, basic_auth, extra_params)}
        return self._connection.ask_object("PATCH", f"/api/ml/{record['id']}", json=body)

    def delete_ml_backend(self, backend_id: int) -> None:
        """Removes a backend; Label Studio keeps its webhook."""
        self._connection.request("DELETE", f"/api/ml/{backend_id}")

    def ml_backend_versions(self, backend_id: int) -> Json:
        """Requests a backend's versions through Label Studio: {"versions": [...]}."""
        return self._connection.ask_object("GET", f"/api/ml/{backend_id}/versions")

    def webhooks(self, project_id: int) -> list[Json]:
        return self._connection.ask_list("GET", "/api/webhooks/", params={"project": project_id})

    def create_webhook(self, project_id: int, url: str, headers: Mapping[str, str]) -> Json:
        body = {"project": project_id, "url": url, **_webhook_fields(headers)}
        return self._connection.ask_object("POST", "/api/webhooks/", json=body)

    def update_webhook(self, webhook_id: int, headers: Mapping[str, str]) -> Json:
        return self._connection.ask_object(
            "PATCH", f"/api/webhooks/{webhook_id}/", json=_webhook_fields(headers)
        )

    def delete_webhook(self, webhook_id: int) -> None:
        self._connection.request("DELETE", f"/api/webhooks/{webhook_id}/")


def _ml_fields(
    url: str, title: str, basic_auth: tuple[str, str] | None, extra_params: Mapping[str, Any] | None
) -> Json:
    fields: Json = {"url": url, "title": title, "is_interactive": True, "auth_method": "NONE"}
    if basic_auth:
        user, password = basic_auth
        fields |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
    if extra_params is not None:
        fields["extra_params"] = dict(extra_params)
    return fields


def _webhook_fields(headers: Mapping[str, str]) -> Json:
    return {
        "headers": dict(headers),
        "send_payload": True,
        "send_for_all_actions": True,
        "is_active": True,
    }
