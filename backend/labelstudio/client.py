"""Label Studio's API, as far as we use it (https://api.labelstud.io).

A key is either a legacy token, sent as it is, or a personal access token: a JWT that is good for nothing
but to get access tokens of 300 seconds.
"""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import requests
from requests.auth import AuthBase

from backend.errors import (
    LabelStudioBlocksError,
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)

Json = dict[str, Any]

TIMEOUT_S = 20.0
UPLOAD_TIMEOUT_S = 300.0
PAGE_SIZE = 100
ACCESS_TOKEN_AGE_S = 240.0
"""Access tokens are valid for 300 s."""
WEBHOOK_SECRET_HEADER = "X-ML-Secret"
_REASON_CHARACTERS = 300
BLOCKED = "reserved network address"
"""What Label Studio says of an address that its settings forbid."""
_UNANNOTATED = json.dumps(
    {
        "filters": {
            "conjunction": "and",
            "items": [
                {
                    "filter": "filter:tasks:total_annotations",
                    "operator": "equal",
                    "type": "Number",
                    "value": 0,
                }
            ],
        }
    }
)
"""Query of tasks that nobody has annotated."""
_HTML_TAG = re.compile(r"<[^>]*>")


class LabelStudioClient:
    """One Label Studio server and our key to it. Safe to share between threads. Making one opens nothing.

    Every method raises LabelStudioUnavailable when the server does not answer, LabelStudioUnauthorized when
    it refuses the key, LabelStudioNotFound for an id it does not know, LabelStudioError for the rest.

    Args:
        url: Where Label Studio answers.
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
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._auth = _KeyAuth(self.url, api_key, timeout_s, access_token_age_s)

    def same_origin(self, url: str) -> bool:
        """Whether a URL is on this server, so that it may see our key."""
        return _origin(url) == _origin(self.url)

    def authorization(self) -> str:
        """The Authorization header that opens this server; send it nowhere else."""
        return self._auth.header()

    def whoami(self) -> Json:
        """Returns the user whose key this is."""
        return self._json("GET", "/api/current-user/whoami")

    def projects(self) -> Iterator[Json]:
        """Yields the projects that the key can see."""
        return self._pages("/api/projects/", {}, "results")

    def project(self, project_id: int) -> Json:
        return self._json("GET", f"/api/projects/{project_id}/")

    def create_project(self, title: str, label_config: str, **fields: Any) -> Json:
        return self._json(
            "POST", "/api/projects/", json={"title": title, "label_config": label_config, **fields}
        )

    def update_project(self, project_id: int, **fields: Any) -> Json:
        return self._json("PATCH", f"/api/projects/{project_id}/", json=fields)

    def delete_project(self, project_id: int) -> None:
        self._request("DELETE", f"/api/projects/{project_id}/")

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> Json:
        """Adds tasks, each a dict of data such as {"image": url}.

        Returns:
            Label Studio's counts, such as {"task_count": 3, ...}.
        """
        return self._json(
            "POST",
            f"/api/projects/{project_id}/import",
            json=[{"data": dict(task)} for task in tasks],
            timeout=UPLOAD_TIMEOUT_S,
        )

    def upload_images(self, project_id: int, paths: Sequence[Path]) -> Json:
        """Uploads files; Label Studio makes a task of each.

        Returns:
            Label Studio's counts, such as {"task_count": 3, "file_upload_ids": [...], ...}.
        """
        with ExitStack() as files:
            # Of parts that share a name, Label Studio takes the last alone.
            parts = {
                f"file{number}": (path.name, files.enter_context(path.open("rb")))
                for number, path in enumerate(paths)
            }
            return self._json(
                "POST", f"/api/projects/{project_id}/import", files=parts, timeout=UPLOAD_TIMEOUT_S
            )

    def users(self) -> list[Json]:
        """Returns the users of the organization."""
        return self._list("GET", "/api/users/")

    def tasks(self, project_id: int, page_size: int = PAGE_SIZE) -> Iterator[Json]:
        """Yields the tasks of a project with their annotations, by id; a page of them is in memory."""
        query = {"project": project_id, "fields": "all", "page_size": page_size}
        return self._pages("/api/tasks", query, "tasks")

    def task_list(self, project_id: int) -> Iterator[Json]:
        """Yields the tasks of a project, by id, without what hangs on them."""
        return self._pages("/api/tasks", {"project": project_id, "page_size": PAGE_SIZE}, "tasks")

    def next_tasks(self, project_id: int, count: int) -> list[Json]:
        """Returns the first tasks, by id, that nobody has annotated."""
        query = {"project": project_id, "page": 1, "page_size": count, "query": _UNANNOTATED}
        tasks: list[Json] = self._json("GET", "/api/tasks", params=query).get("tasks") or []
        return tasks

    def unannotated_tasks(self, project_id: int) -> Iterator[Json]:
        """Yields all tasks, by id, that nobody has annotated, without what hangs on them."""
        return self._pages("/api/tasks", {"project": project_id, "query": _UNANNOTATED}, "tasks")

    def task(self, task_id: int) -> Json:
        return self._json("GET", f"/api/tasks/{task_id}/")

    def update_task(self, task_id: int, data: Mapping[str, Any]) -> Json:
        return self._json("PATCH", f"/api/tasks/{task_id}/", json={"data": data})

    def delete_task(self, task_id: int) -> None:
        self._request("DELETE", f"/api/tasks/{task_id}/")

    def annotations(self, task_id: int) -> list[Json]:
        return self._list("GET", f"/api/tasks/{task_id}/annotations/")

    def annotation(self, annotation_id: int) -> Json:
        return self._json("GET", f"/api/annotations/{annotation_id}/")

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        return self._json("POST", f"/api/tasks/{task_id}/annotations/", json={"result": list(result)})

    def update_annotation(self, annotation_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        return self._json("PATCH", f"/api/annotations/{annotation_id}/", json={"result": list(result)})

    def delete_annotation(self, annotation_id: int) -> None:
        self._request("DELETE", f"/api/annotations/{annotation_id}/")

    def create_prediction(
        self,
        task_id: int,
        result: Sequence[Mapping[str, Any]],
        model_version: str,
        score: float | None = None,
    ) -> Json:
        body = {"task": task_id, "result": list(result), "model_version": model_version, "score": score}
        return self._json("POST", "/api/predictions/", json=body)

    def import_predictions(self, project_id: int, predictions: Sequence[Mapping[str, Any]]) -> Json:
        """Adds predictions, each {"task", "result", "model_version", "score"}, in one request.

        Returns:
            Label Studio's count, {"created": N}.
        """
        return self._json(
            "POST",
            f"/api/projects/{project_id}/import/predictions",
            json=[dict(prediction) for prediction in predictions],
            timeout=UPLOAD_TIMEOUT_S,
        )

    def update_prediction(self, prediction_id: int, **fields: Any) -> Json:
        return self._json("PATCH", f"/api/predictions/{prediction_id}/", json=fields)

    def predictions(self, task_id: int) -> list[Json]:
        return self._list("GET", "/api/predictions/", params={"task": task_id})

    def export(self, project_id: int) -> list[Json]:
        """Returns every annotated task of a project with its annotations, in Label Studio's own JSON."""
        return self._list(
            "GET",
            f"/api/projects/{project_id}/export",
            params={"exportType": "JSON"},
            timeout=UPLOAD_TIMEOUT_S,
        )

    def ml_backends(self, project_id: int) -> list[Json]:
        """Returns the backends of a project; Label Studio asks each of them for its health first."""
        return self._list("GET", "/api/ml", params={"project": project_id})

    def connect_ml_backend(
        self, project_id: int, url: str, title: str, basic_auth: tuple[str, str] | None = None
    ) -> Json:
        """Connects a backend for interactive use; Label Studio checks its /health and /setup."""
        body = {"project": project_id, **_ml_fields(url, title, basic_auth)}
        return self._json("POST", "/api/ml", json=body)

    def update_ml_backend(
        self, record: Mapping[str, Any], url: str, title: str, basic_auth: tuple[str, str] | None = None
    ) -> Json:
        """Changes a backend. Label Studio fails on a partial record, so all of it is sent."""
        body = {**record, **_ml_fields(url, title, basic_auth)}
        return self._json("PATCH", f"/api/ml/{record['id']}", json=body)

    def delete_ml_backend(self, backend_id: int) -> None:
        """Removes a backend; Label Studio leaves its webhook behind."""
        self._request("DELETE", f"/api/ml/{backend_id}")

    def ml_backend_versions(self, backend_id: int) -> Json:
        """Asks a backend, through Label Studio, for its versions: {"versions": [...]}."""
        return self._json("GET", f"/api/ml/{backend_id}/versions")

    def start_training(self, backend_id: int) -> None:
        """What the "Start Training" menu entry does."""
        self._request("POST", f"/api/ml/{backend_id}/train")

    def interactive_predict(self, backend_id: int, task_id: int, context: Mapping[str, Any]) -> Json:
        """What the editor sends when a phrase is entered."""
        return self._json(
            "POST",
            f"/api/ml/{backend_id}/interactive-annotating",
            json={"task": task_id, "context": dict(context)},
            timeout=UPLOAD_TIMEOUT_S,
        )

    def webhooks(self, project_id: int) -> list[Json]:
        return self._list("GET", "/api/webhooks/", params={"project": project_id})

    def create_webhook(self, project_id: int, url: str, headers: Mapping[str, str]) -> Json:
        body = {"project": project_id, "url": url, **_webhook_fields(headers)}
        return self._json("POST", "/api/webhooks/", json=body)

    def update_webhook(self, webhook_id: int, headers: Mapping[str, str]) -> Json:
        return self._json("PATCH", f"/api/webhooks/{webhook_id}/", json=_webhook_fields(headers))

    def delete_webhook(self, webhook_id: int) -> None:
        self._request("DELETE", f"/api/webhooks/{webhook_id}/")

    def _pages(self, path: str, query: Mapping[str, Any], items: str) -> Iterator[Json]:
        """Yields items page by page, until one is not full; a page beyond the last is 404."""
        page, size = 1, int(query.get("page_size", PAGE_SIZE))
        while True:
            try:
                answer = self._json("GET", path, params={**query, "page_size": size, "page": page})
            except LabelStudioNotFound:
                if page == 1:
                    raise
                return
            found = answer.get(items) or []
            yield from found
            if len(found) < size:
                return
            page += 1

    def _json(self, method: str, path: str, **options: Any) -> Json:
        answer = self._answer(method, path, **options)
        if not isinstance(answer, dict):
            raise LabelStudioError(f"Label Studio answered {method} {path} with {answer!r:.100}")
        return answer

    def _list(self, method: str, path: str, **options: Any) -> list[Json]:
        answer = self._answer(method, path, **options)
        if not isinstance(answer, list):
            raise LabelStudioError(f"Label Studio answered {method} {path} with {answer!r:.100}")
        return answer

    def _answer(self, method: str, path: str, **options: Any) -> Any:
        response = self._request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            raise LabelStudioError(
                f"what answers at {self.url} is not Label Studio: {method} {path} gave no JSON"
            ) from error

    def _request(self, method: str, path: str, **options: Any) -> requests.Response:
        response = self._send(method, path, **options)
        if response.status_code == 401 and self._auth.renew():
            response = self._send(method, path, **options)
        _check(response, self.url, f"{method} {path}")
        return response

    def _send(
        self, method: str, path: str, timeout: float | None = None, **options: Any
    ) -> requests.Response:
        try:
            return self._session.request(
                method, self.url + path, auth=self._auth, timeout=timeout or self.timeout_s, **options
            )
        except requests.RequestException as error:
            raise LabelStudioUnavailable(
                f"Label Studio does not answer at {self.url} ({type(error).__name__}): "
                "is it running, and is LABEL_STUDIO_URL right?"
            ) from error


class _KeyAuth(AuthBase):
    """Signs requests. Given as `auth`, so that a .netrc file does not replace it."""

    def __init__(self, url: str, api_key: str, timeout_s: float, access_token_age_s: float) -> None:
        self._url = url
        self._api_key = api_key.strip()
        self._timeout_s = timeout_s
        self._access_token_age_s = access_token_age_s
        self._is_personal = self._api_key.count(".") == 2  # a JWT
        self._access = ""
        self._access_since_s = 0.0
        self._lock = threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self.header()
        return request

    def header(self) -> str:
        if not self._api_key:
            raise LabelStudioUnauthorized("no key to Label Studio: set LABEL_STUDIO_API_KEY")
        if not self._is_personal:
            return f"Token {self._api_key}"
        with self._lock:
            if not self._access or time.monotonic() - self._access_since_s > self._access_token_age_s:
                self._access = self._fetch_access()
                self._access_since_s = time.monotonic()
            return f"Bearer {self._access}"

    def renew(self) -> bool:
        """Drops an access token that was refused; whether it is worth to ask again."""
        with self._lock:
            self._access = ""
        return self._is_personal

    def _fetch_access(self) -> str:
        path = "/api/token/refresh/"
        try:
            response = requests.post(
                self._url + path, json={"refresh": self._api_key}, auth=_unsigned, timeout=self._timeout_s
            )
        except requests.RequestException as error:
            raise LabelStudioUnavailable(
                f"Label Studio does not answer at {self._url}: is it running?"
            ) from error
        _check(response, self._url, f"POST {path}")
        try:
            return str(response.json()["access"])
        except (ValueError, KeyError, TypeError) as error:
            raise LabelStudioError(
                f"what answers at {self._url} is not Label Studio: no access token"
            ) from error


def _unsigned(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _check(response: requests.Response, url: str, what: str) -> None:
    """Raises the error that an answer stands for."""
    if response.ok:
        return
    reason = _reason(response)
    if BLOCKED in reason:
        raise LabelStudioBlocksError(
            f"Label Studio at {url} does not speak to private addresses ({reason}): start it with "
            "ML_BLOCK_LOCAL_IP=false, and with SSRF_PROTECTION_ENABLED=false, without which its webhooks do "
            "not arrive"
        )
    if response.status_code in (401, 403) and "URL" not in reason:
        raise LabelStudioUnauthorized(
            f"Label Studio at {url} refuses our key ({response.status_code}: {reason}): "
            "set LABEL_STUDIO_API_KEY to a valid one"
        )
    if response.status_code == 404:
        raise LabelStudioNotFound(f"Label Studio at {url} has nothing there: {what} ({reason})")
    raise LabelStudioError(f"Label Studio at {url} answered {what} with {response.status_code}: {reason}")


def _reason(response: requests.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.reason or "no reason given"
    while isinstance(body, dict | list) and body:
        values = list(body.values()) if isinstance(body, dict) else body
        named = body.get("validation_errors") or body.get("detail") if isinstance(body, dict) else None
        if not named and len(values) > 1:
            break
        body = named or values[0]
    return _HTML_TAG.sub("", str(body))[:_REASON_CHARACTERS]


def _origin(url: str) -> tuple[str, str | None, int | None]:
    parts = urlsplit(url)
    default = {"http": 80, "https": 443}.get(parts.scheme)
    return parts.scheme, parts.hostname, parts.port or default


def _ml_fields(url: str, title: str, basic_auth: tuple[str, str] | None) -> Json:
    fields: Json = {"url": url, "title": title, "is_interactive": True, "auth_method": "NONE"}
    if basic_auth:
        user, password = basic_auth
        fields |= {"auth_method": "BASIC_AUTH", "basic_auth_user": user, "basic_auth_pass": password}
    return fields


def _webhook_fields(headers: Mapping[str, str]) -> Json:
    return {
        "headers": dict(headers),
        "send_payload": True,
        "send_for_all_actions": True,
        "is_active": True,
    }
