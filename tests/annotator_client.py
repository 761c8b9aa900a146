"""Client for Label Studio's API as its editor and pages use it, for tests and benchmarks acting as users."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import requests

from backend.labelstudio.client import UPLOAD_TIMEOUT_S, LabelStudioClient
from backend.labelstudio.connection import Json


class AnnotatorClient(LabelStudioClient):
    """Does what people do in Label Studio and the product never does."""

    def whoami(self) -> Json:
        """Returns the user of the API key."""
        return self._connection.ask_object("GET", "/api/current-user/whoami")

    def invite(self, email: str, password: str) -> AnnotatorClient:
        """Signs up another member of the organization, by the link that its owner gives away."""
        token = self._connection.ask_object("GET", "/api/invite")["token"]
        address = f"{self.url}/user/signup/?token={token}"
        with requests.Session() as session:
            session.get(address, timeout=UPLOAD_TIMEOUT_S).raise_for_status()
            form = {"email": email, "password": password}
            form["csrfmiddlewaretoken"] = session.cookies["csrftoken"]
            headers = {"Referer": address}
            session.post(address, form, headers=headers, timeout=UPLOAD_TIMEOUT_S).raise_for_status()
            answer = session.get(f"{self.url}/api/current-user/token", timeout=UPLOAD_TIMEOUT_S)
            answer.raise_for_status()
            return AnnotatorClient(self.url, answer.json()["token"])

    def save_draft(self, task_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        """What the editor does some seconds after a change of a new annotation."""
        return self._connection.ask_object(
            "POST", f"/api/tasks/{task_id}/drafts", json={"result": list(result), "lead_time": 1}
        )

    def update_draft(self, draft_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        """The same later on."""
        return self._connection.ask_object(
            "PATCH", f"/api/drafts/{draft_id}/", json={"result": list(result), "lead_time": 2}
        )

    def delete_project(self, project_id: int) -> None:
        self._connection.request("DELETE", f"/api/projects/{project_id}/")

    def import_tasks(self, project_id: int, tasks: Sequence[Mapping[str, Any]]) -> Json:
        """Creates tasks, each a dict of data such as {"image": url}.

        Returns:
            Label Studio's counts, such as {"task_count": 3, ...}.
        """
        return self._connection.ask_object(
            "POST",
            f"/api/projects/{project_id}/import",
            json=[{"data": dict(task)} for task in tasks],
            timeout=UPLOAD_TIMEOUT_S,
        )

    def delete_task(self, task_id: int) -> None:
        self._connection.request("DELETE", f"/api/tasks/{task_id}/")

    def create_annotation(self, task_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        return self._connection.ask_object(
            "POST", f"/api/tasks/{task_id}/annotations/", json={"result": list(result)}
        )

    def update_annotation(self, annotation_id: int, result: Sequence[Mapping[str, Any]]) -> Json:
        return self._connection.ask_object(
            "PATCH", f"/api/annotations/{annotation_id}/", json={"result": list(result)}
        )

    def delete_annotation(self, annotation_id: int) -> None:
        self._connection.request("DELETE", f"/api/annotations/{annotation_id}/")

    def start_training(self, backend_id: int) -> None:
        """The "Start Training" menu entry."""
        self._connection.request("POST", f"/api/ml/{backend_id}/train")

    def interactive_predict(self, backend_id: int, task_id: int, context: Mapping[str, Any]) -> Json:
        """The editor's request when a phrase is entered."""
        return self._connection.ask_object(
            "POST",
            f"/api/ml/{backend_id}/interactive-annotating",
            json={"task": task_id, "context": dict(context)},
            timeout=UPLOAD_TIMEOUT_S,
        )
