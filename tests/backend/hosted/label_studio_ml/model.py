"""Stand-in for a hosted model's base class: a store of strings by project, and a record of calls."""

from __future__ import annotations

from typing import Any, ClassVar


class LabelStudioMLBase:
    """One object for each request."""

    store: ClassVar[dict[tuple[str, str], str]] = {}

    def __init__(self, project_id: str | None = None, label_config: str | None = None) -> None:
        self.project_id = project_id or ""
        if label_config is not None:
            self.set("label_config", label_config)
        self.setup()

    def setup(self) -> None:
        """For models to override."""

    def get(self, key: str) -> str | None:
        return self.store.get((self.project_id, key))

    def set(self, key: str, value: str) -> None:
        assert isinstance(value, str), "the store keeps text"
        self.store[self.project_id, key] = value

    @property
    def label_config(self) -> Any:
        return self.get("label_config")
