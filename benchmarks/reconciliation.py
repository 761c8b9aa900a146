"""Growth of a reconciliation with the number of tasks, against a simulated Label Studio.

A tenth of the tasks are annotated. Measured: the first pass, a pass with nothing new, one after ten saves,
and one after ten tasks with annotations were deleted. Fails if a pass grows faster than the number of tasks.

    python benchmarks/reconciliation.py [--tasks 1000 3000 10000 30000]
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from bisect import bisect_left
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
from common.sections import table, write_section
from common.serving import redis_at

from backend.settings import Settings
from tests.worker.label_studio_server import KEY, LabelStudioServer, region
from worker.corrections.reconciling import reconcile
from worker.services import Services

PROJECT = 1
SIZES = (1000, 3000, 10_000, 30_000)
ANNOTATED = 10
"""One task of this number is annotated."""
CHANGED = 10
HW = (48, 64)
SLACK = 1.5
"""Tolerated growth beyond that of the number of tasks, for noise of the machine."""
QUICK_S = 0.5
"""Growth below this duration is noise."""
Json = dict[str, Any]


@dataclass
class IndexedLabelStudio(LabelStudioServer):
    """The simulated server, with an index of its tasks by time, and of annotations by task."""

    by_task: dict[int, list[Json]] = field(default_factory=dict)
    in_order: list[Json] = field(default_factory=list)

    def index(self) -> None:
        self.by_task = {}
        for annotation in self.annotations.values():
            self.by_task.setdefault(annotation["task"], []).append(annotation)
        self.in_order = sorted(self.tasks.values(), key=lambda task: str(task["updated_at"]))

    def with_annotations(self, task: Json) -> Json:
        return {**task, "annotations": self.by_task.get(task["id"], []), "predictions": []}

    def _page(self, project: int, page: int, size: int, query: str) -> Json | None:
        filters = json.loads(query or "{}").get("filters", {}).get("items", [])
        since = filters[0]["value"] if filters else ""
        first = bisect_left(self.in_order, since, key=lambda task: str(task["updated_at"]))
        first += (page - 1) * size
        shown = [self.with_annotations(task) for task in self.in_order[first : first + size]]
        return {"tasks": shown} if shown or page == 1 else None


def project(server: IndexedLabelStudio, tasks: int) -> None:
    """Tasks of one image, changed one second after the other."""
    server.add_project(PROJECT)
    mask = np.zeros(HW, dtype=np.bool_)
    mask[10:30, 10:30] = True
    server.add_task(1, PROJECT, np.zeros((*HW, 3), dtype=np.uint8), "scene.png")
    regions = region("drawn", "the ring", mask)
    for number in range(1, tasks + 1):
        moment = (datetime(2026, 1, 1, tzinfo=UTC) + timedelta(seconds=number)).strftime(
            "%Y-%m-%dT%H:%M:%S.%fZ"
        )
        server.tasks[number] = {**server.tasks[1], "id": number, "updated_at": moment}
        if number % ANNOTATED == 0:
            saved = {
                "id": number,
                "task": number,
                "was_cancelled": False,
                "updated_at": moment,
                "result": regions,
            }
            server.annotations[number] = saved
    server.index()


def change(server: IndexedLabelStudio) -> None:
    later = datetime(2026, 6, 1, tzinfo=UTC)
    for number in range(1, CHANGED + 1):
        task = number * ANNOTATED
        moment = (later + timedelta(seconds=number)).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        server.annotations[task] = {**server.annotations[task], "updated_at": moment}
        server.tasks[task] = {**server.tasks[task], "updated_at": moment}
    server.index()


def delete(server: IndexedLabelStudio) -> None:
    for number in range(CHANGED + 1, 2 * CHANGED + 1):
        del server.tasks[number * ANNOTATED], server.annotations[number * ANNOTATED]
    server.index()


def measure(tasks: int) -> dict[str, tuple[float, int]]:
    """Kind of pass -> seconds, and requests for pages of tasks."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="sspsam-")))
        server = stack.enter_context(IndexedLabelStudio())
        project(server, tasks)
        settings = Settings(
            label_studio_url=server.url,
            label_studio_api_key=KEY,
            redis_url=stack.enter_context(redis_at(folder)),
            model_dir=folder,
            preset="ssp-sam-test",
        )
        services = Services(settings)

        def timed(before: Callable[[], object], collected: int, forgotten: int) -> tuple[float, int]:
            before()
            server.requests.clear()
            began_s = time.perf_counter()
            result = reconcile(services, PROJECT, budget_s=3600)
            took_s = time.perf_counter() - began_s
            assert (result.collected, result.forgotten, result.problems) == (collected, forgotten, 0), result
            return took_s, server.requests.count("/api/tasks")

        return {
            "first pass": timed(lambda: None, tasks // ANNOTATED, 0),
            "nothing new": timed(lambda: None, 0, 0),
            f"{CHANGED} saves": timed(lambda: change(server), CHANGED, 0),
            f"{CHANGED} tasks deleted": timed(lambda: delete(server), 0, CHANGED),
        }


def main() -> None:
    """Measures, writes the section, and fails if a pass grows faster than the tasks."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tasks", type=int, nargs="+", default=list(SIZES))
    sizes = parser.parse_args().tasks
    measured = {tasks: measure(tasks) for tasks in sizes}
    kinds = list(measured[sizes[0]])
    rows = [
        [f"{tasks:,}", *(f"{found[kind][0]:.2f} s, {found[kind][1]}" for kind in kinds)]
        for tasks, found in measured.items()
    ]
    write_section(
        "Reconciliation",
        f"Duration and requests for pages of tasks; one of {ANNOTATED} tasks is annotated. The simulated "
        "server answers at once; with Label Studio, its own time for each request is added.",
        table(["tasks", *kinds], rows),
    )
    first, last = measured[sizes[0]], measured[sizes[-1]]
    growth = sizes[-1] / sizes[0]
    too_fast = [
        kind for kind in kinds if last[kind][0] > QUICK_S + SLACK * growth * max(first[kind][0], 0.01)
    ]
    if too_fast:
        raise SystemExit(f"faster growth than that of the tasks: {', '.join(too_fast)}")


if __name__ == "__main__":
    main()
