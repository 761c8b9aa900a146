"""Annotators as the backend sees them: their drafts come with each request, some seconds old."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import count
from typing import Any

from flask.testing import FlaskClient

from backend.labelstudio.config import RECOMMENDED_CONFIG
from tests.backend.editor import Json, ask, task

_versions = count(1)


@dataclass
class Annotator:
    """One annotator with one unsaved annotation of task 1; every answer is accepted."""

    client: FlaskClient
    user: int
    config: str = RECOMMENDED_CONFIG
    fields: Json = field(default_factory=dict)
    """Further fields of the task."""
    results: list[Json] = field(default_factory=list)
    """What the editor shows."""
    drafts: list[Json] = field(default_factory=list)
    """As last saved."""

    def ask(self, *results: Json) -> Json:
        """Sends results of the form with the draft as last saved, and accepts the answer."""
        one = task(drafts=self.drafts, **self.fields)
        answer = ask(self.client, *results, one=one, config=self.config)
        new = {result["id"] for result in answer["result"]}
        self.results = [result for result in self.results if result["id"] not in new] + answer["result"]
        return answer

    def save(self, **more: Any) -> Json:
        """The editor saves its draft."""
        self.drafts = [draft(self.user, self.results, **more)]
        return self.drafts[0]

    def delete(self, region_id: str) -> None:
        self.results = [result for result in self.results if result["id"] != region_id]


def draft(user: int, results: list[Json], number: int = 0, **more: Any) -> Json:
    """A draft as Label Studio sends it: a later one has another time."""
    name = f"{user}@example.com"
    return {
        "id": number or 100 + user,
        "user": name,
        "created_username": f"{name}, {user}",
        "updated_at": f"2026-01-01T00:00:{next(_versions):06}Z",
        "annotation": None,
        "result": list(results),
        **more,
    }
