"""A small HTTP server that responds like Label Studio 1.23.2 to the few requests that we make."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from io import BytesIO
from typing import Any
from urllib.parse import parse_qs, urlsplit

import numpy as np
import numpy.typing as npt
from PIL import Image

from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.labelstudio.connection import PAGE_SIZE
from sspsam.images.brush_rle import mask_to_brush_rle
from tests.loopback import Loopback

KEY = "f" * 40
Json = dict[str, Any]


def region(
    region_id: str, phrase: str | None, mask: npt.NDArray[np.bool_], label: str = "object"
) -> list[Json]:
    """The results of one region, as the editor saves them: the geometry twice."""
    height, width = mask.shape
    geometry = {"format": "rle", "rle": mask_to_brush_rle(mask)}
    shared: Json = {
        "id": region_id,
        "to_name": "image",
        "origin": "manual",
        "original_width": width,
        "original_height": height,
        "image_rotation": 0,
    }
    brush = shared | {
        "from_name": "mask",
        "type": "brushlabels",
        "value": geometry | {"brushlabels": [label]},
    }
    if phrase is None:
        return [brush]
    return [
        brush,
        shared | {"from_name": "phrase", "type": "textarea", "value": geometry | {"text": [phrase]}},
    ]


def prompt(*phrases: str) -> Json:
    """What is left in the prompt box."""
    return {
        "id": "mxww4uiEnM",
        "from_name": "prompt",
        "to_name": "image",
        "type": "textarea",
        "origin": "manual",
        "value": {"text": list(phrases)},
    }


def absent(*phrases: str) -> Json:
    """The box of confirmed absences as it is saved."""
    return {**prompt(*phrases), "id": "absent0001", "from_name": "absent"}


@dataclass
class LabelStudioServer(Loopback):
    """Projects, tasks and annotations that a test puts in and changes."""

    projects: dict[int, Json] = field(default_factory=dict)
    tasks: dict[int, Json] = field(default_factory=dict)
    annotations: dict[int, Json] = field(default_factory=dict)
    files: dict[str, bytes] = field(default_factory=dict)
    predictions: list[Json] = field(default_factory=list)
    posts: list[int] = field(default_factory=list)
    """How many predictions came in each request."""
    refuse_posts: bool = False
    hold: str = ""
    """Requests for paths that begin like this are not answered, unless it is empty."""
    requests: list[str] = field(default_factory=list)
    most_per_page: int = PAGE_SIZE
    """Tasks of a page, whatever is asked for."""
    clock: int = 0
    """Minutes, for updated_at."""
    port: int = 0

    def make_server(self) -> ThreadingHTTPServer:
        handler = type("Handler", (_Handler,), {"label_studio": self})
        return ThreadingHTTPServer(("127.0.0.1", self.port), handler)

    def add_project(self, project: int, label_config: str = RECOMMENDED_CONFIG) -> None:
        title = f"Project {project}"
        self.projects[project] = {"id": project, "title": title, "label_config": label_config}

    def add_task(
        self, task: int, project: int, image: npt.NDArray[np.uint8], name: str | None = None
    ) -> None:
        """Adds a task whose image is served as an upload."""
        path = f"/data/upload/{project}/{name or f'{task:08x}-scene.png'}"
        data = BytesIO()
        Image.fromarray(image).save(data, "PNG")
        self.files[path] = data.getvalue()
        fields: Json = {"id": task, "project": project, "data": {"image": path}, "is_labeled": True}
        self.tasks[task] = fields | {"updated_at": self._now()}

    def save(self, annotation: int, task: int, result: Sequence[Json], **fields: Any) -> None:
        """Submits or updates an annotation."""
        now = self.tasks[task]["updated_at"] = self._tick()
        self.annotations[annotation] = {
            "id": annotation,
            "task": task,
            "project": self.tasks[task]["project"],
            "completed_by": 1,
            "was_cancelled": False,
            "updated_at": now,
            "result": list(result),
            **fields,
        }

    def delete(self, annotation: int) -> None:
        """Deletes an annotation, which changes its task."""
        task = self.annotations.pop(annotation)["task"]
        self.tasks[task]["updated_at"] = self._tick()

    def delete_task(self, task: int) -> None:
        """Deletes a task with its annotations, which changes no other."""
        del self.tasks[task]
        for number in [n for n, annotation in self.annotations.items() if annotation["task"] == task]:
            del self.annotations[number]

    def _tick(self) -> str:
        self.clock += 1
        return self._now()

    def _now(self) -> str:
        moment = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(minutes=self.clock)
        return moment.strftime("%Y-%m-%dT%H:%M:%S.%fZ")

    def with_annotations(self, task: Json) -> Json:
        mine = [annotation for annotation in self.annotations.values() if annotation["task"] == task["id"]]
        predicted = [one for one in self.predictions if one["task"] == task["id"]]
        return {**task, "annotations": mine, "predictions": predicted}

    def post(self, path: str, body: Any) -> Json | None:
        """The body of an answer to a POST; None is 404."""
        if path == "/api/predictions/":
            self.predictions.append({**body, "id": 1000 + len(self.predictions)})
            return self.predictions[-1]
        if not re.fullmatch(r"/api/projects/\d+/import/predictions", path):
            return None
        first = 1000 + len(self.predictions)
        self.predictions += [{**one, "id": number} for number, one in enumerate(body, first)]
        self.posts.append(len(body))
        return {"created": len(body)}

    def patch(self, path: str, body: Json) -> Json | None:
        """The body of an answer to a PATCH; None is 404."""
        kind, number = path.strip("/").split("/")[1:3]
        things = self.projects.values() if kind == "projects" else self.predictions
        found = next((thing for thing in things if thing.get("id") == int(number)), None)
        if found is not None:
            found.update(body)
        return found

    def answer(self, path: str, query: dict[str, list[str]]) -> Json | list[Json] | None:
        """The body of a GET; None is 404."""
        parts = [int(part) for part in re.findall(r"/(\d+)(?=/|$)", path)]
        shape = re.sub(r"/\d+", "/N", path).rstrip("/")
        if shape == "/api/projects/N":
            project = self.projects.get(parts[0])
            return None if project is None else {**project, **self._counts(parts[0])}
        if shape == "/api/projects":
            return {"results": list(self.projects.values()), "count": len(self.projects)}
        if shape == "/api/annotations/N":
            return self.annotations.get(parts[0])
        if shape == "/api/tasks/N":
            task = self.tasks.get(parts[0])
            return None if task is None else self.with_annotations(task)
        if shape == "/api/projects/N/export":
            tasks = [self.with_annotations(task) for task in self._tasks_of(parts[0])]
            return [task for task in tasks if task["annotations"]]
        if shape == "/api/users":
            return [{"id": 1, "email": "a@example.com"}, {"id": 9, "email": "B@example.com"}]
        if shape == "/api/tasks":
            page, size = int(query["page"][0]), min(int(query["page_size"][0]), self.most_per_page)
            return self._page(int(query["project"][0]), page, size, query.get("query", [""])[0])
        return None

    def _page(self, project: int, page: int, size: int, query: str) -> Json | None:
        asked: Json = json.loads(query or "{}")
        tasks = [self.with_annotations(task) for task in self._tasks_of(project)]
        for item in asked.get("filters", {}).get("items", []):
            if item["filter"] == "filter:tasks:total_annotations":
                tasks = [task for task in tasks if not task["annotations"]]
            else:
                assert item["filter"] == "filter:tasks:updated_at"
                datetime.strptime(item["value"], "%Y-%m-%dT%H:%M:%S.%fZ")  # as it does
                tasks = [task for task in tasks if task["updated_at"] >= item["value"]]
        if asked.get("ordering") == ["tasks:updated_at"]:
            tasks.sort(key=lambda task: str(task["updated_at"]))
        shown = tasks[(page - 1) * size : page * size]
        return {"tasks": shown, "total": len(tasks)} if shown or page == 1 else None

    def _counts(self, project: int) -> Json:
        tasks = {task["id"] for task in self._tasks_of(project)}
        cancelled = [bool(one["was_cancelled"]) for one in self.annotations.values() if one["task"] in tasks]
        return {
            "task_number": len(tasks),
            "total_annotations_number": cancelled.count(False),
            "skipped_annotations_number": cancelled.count(True),
        }

    def _tasks_of(self, project: int) -> list[Json]:
        return [task for task in self.tasks.values() if task["project"] == project]


class _Handler(BaseHTTPRequestHandler):
    label_studio: LabelStudioServer

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.label_studio.requests.append(parts.path)
        while self.label_studio.hold and parts.path.startswith(self.label_studio.hold):
            time.sleep(0.02)
        if self.headers.get("Authorization") != f"Token {KEY}":
            self._send(401, b'{"detail": "Invalid token."}', "application/json")
        elif parts.path in self.label_studio.files:
            self._send(200, self.label_studio.files[parts.path], "image/png")
        else:
            body = self.label_studio.answer(parts.path, parse_qs(parts.query))
            found = body is not None
            text = json.dumps(body if found else {"detail": "Not found."})
            self._send(200 if found else 404, text.encode(), "application/json")

    def do_PATCH(self) -> None:
        answer = self.label_studio.patch(self.path, self._body())
        self._send(404 if answer is None else 200, json.dumps(answer).encode(), "application/json")

    def do_POST(self) -> None:
        body = self._body()
        if self.label_studio.refuse_posts:
            self._send(502, b"{}", "application/json")
            return
        answer = self.label_studio.post(self.path, body)
        self._send(404 if answer is None else 201, json.dumps(answer).encode(), "application/json")

    def _body(self) -> Any:
        return json.loads(self.rfile.read(int(self.headers["Content-Length"])))

    def log_message(self, format: str, *args: object) -> None:
        """Says nothing."""

    def _send(self, status: int, body: bytes, kind: str) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)
