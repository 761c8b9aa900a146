"""Reconciliation of every project in this process, as the worker of its queue does it."""

from __future__ import annotations

from typing import Any

from worker import jobs
from worker.services import Services


def reconcile_all(services: Services) -> dict[str, Any]:
    """What each project's job returns."""
    return {str(project): jobs.reconcile_project(project) for project in services.known_projects()}
