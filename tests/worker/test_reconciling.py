"""Reconciliation against a simulated Label Studio: what it reads, where it goes on, and what it forgets."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import numpy as np
import numpy.typing as npt
import pytest
from rq.job import Retry
from rq.utils import utcformat

from backend.labelstudio.connection import PAGE_SIZE
from backend.shared_redis import COLLECTED_KEY, RECONCILED_KEY, fetch_job
from backend.state.known_projects import KnownProject
from tests.worker.label_studio_server import LabelStudioServer, region
from worker import jobs
from worker.corrections.reconciling import FULL_PASS_EVERY, reconcile
from worker.queueing.queues import ask_for_reconciliation, reconcile_queue
from worker.services import Services

Mask = npt.NDArray[np.bool_]
PROJECT = 3
NOW = datetime(2026, 5, 1, tzinfo=UTC)


@pytest.fixture(autouse=True)
def annotated(services: Services, label_studio: LabelStudioServer, mask: Mask) -> None:
    """Three tasks on one image, each with an annotation of the same number."""
    label_studio.add_project(PROJECT)
    services.redis_store.projects.note(KnownProject(str(PROJECT)))
    image = np.zeros((*mask.shape, 3), dtype=np.uint8)
    for number in (1, 2, 3):
        label_studio.add_task(number, PROJECT, image, "scene.png")
        label_studio.save(number, number, region("a", f"ring {number}", mask))


def collected(services: Services) -> list[int]:
    return services.collection(PROJECT).annotations()


def asked_for(label_studio: LabelStudioServer, path: str = "/api/tasks") -> int:
    """How often this was requested since the last call."""
    count = label_studio.requests.count(path)
    label_studio.requests.clear()
    return count


def pass_over(services: Services, after: timedelta = timedelta(0)) -> tuple[int, int]:
    """What a pass collected and forgot."""
    result = reconcile(services, PROJECT, now=NOW + after)
    assert result.complete
    return result.collected, result.forgotten


def test_a_pass_with_nothing_new_asks_for_one_page(
    services: Services, label_studio: LabelStudioServer
) -> None:
    for number in range(100, 100 + 3 * PAGE_SIZE):
        label_studio.tasks[number] = {
            **label_studio.tasks[1],
            "id": number,
            "updated_at": "2025-01-01T00:00:00Z",
        }
    assert pass_over(services) == (3, 0)
    assert asked_for(label_studio) >= 4
    assert pass_over(services) == (0, 0)
    assert asked_for(label_studio) == 1
    assert label_studio.requests == []


def test_what_changed_is_collected(services: Services, label_studio: LabelStudioServer, mask: Mask) -> None:
    pass_over(services)
    label_studio.save(2, 2, region("a", "another ring", mask))
    label_studio.save(4, 1, region("b", "a second ring", mask))
    label_studio.delete(3)
    asked_for(label_studio)
    assert pass_over(services) == (2, 1)
    assert asked_for(label_studio) == 1
    assert collected(services) == [1, 2, 4]


def test_the_annotations_of_a_deleted_task_are_forgotten(
    services: Services, label_studio: LabelStudioServer
) -> None:
    """No other task changes with it."""
    pass_over(services)
    label_studio.delete_task(2)
    assert pass_over(services) == (0, 1)
    assert collected(services) == [1, 3]
    asked_for(label_studio)
    assert pass_over(services) == (0, 0)
    assert asked_for(label_studio) == 1, "the list of tasks is not read again"


def test_tasks_of_one_time_are_all_read(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    """As after an import: more of them than fit on a page."""
    for number in range(100, 100 + 2 * PAGE_SIZE + 10):
        label_studio.tasks[number] = {**label_studio.tasks[1], "id": number}
    label_studio.annotations[500] = {
        **label_studio.annotations[1],
        "id": 500,
        "task": 100 + 2 * PAGE_SIZE + 5,
    }
    assert pass_over(services) == (4, 0)


@pytest.mark.parametrize("most", [1, 2])
def test_a_server_with_small_pages_loses_no_label(
    services: Services, label_studio: LabelStudioServer, most: int
) -> None:
    label_studio.most_per_page = most
    assert pass_over(services) == (3, 0)
    label_studio.delete_task(1)
    assert pass_over(services) == (0, 1)
    assert collected(services) == [2, 3]


@pytest.mark.parametrize(("most", "passes"), [(PAGE_SIZE, 4), (50, 7)])
def test_a_pass_that_runs_out_of_time_is_continued(
    services: Services, label_studio: LabelStudioServer, most: int, passes: int
) -> None:
    label_studio.most_per_page = most
    for number in range(100, 100 + 3 * PAGE_SIZE):
        later = (datetime(2026, 2, 1, tzinfo=UTC) + timedelta(minutes=2 * number)).isoformat()
        label_studio.tasks[number] = {
            **label_studio.tasks[1],
            "id": number,
            "updated_at": later[:-6] + ".000000Z",
        }
    pages = []
    for _ in range(10):
        result = reconcile(services, PROJECT, budget_s=0)
        pages.append(asked_for(label_studio))
        if result.complete:
            break
    assert pages == [1] * passes


def test_the_job_of_an_unfinished_pass_goes_to_the_end_of_its_queue(
    services: Services, label_studio: LabelStudioServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(100, 100 + PAGE_SIZE):
        later = {"id": number, "updated_at": "2026-02-01T00:00:00.000000Z"}
        label_studio.tasks[number] = {**label_studio.tasks[1], **later}
    monkeypatch.setattr(jobs, "reconcile", lambda services, project: reconcile(services, project, budget_s=0))
    answer = jobs.reconcile_project(PROJECT)
    assert isinstance(answer, Retry)
    assert answer.intervals == [0]
    assert collected(services) == [1, 2, 3], "what was read is kept"


def test_each_project_is_one_job_of_a_queue_of_their_own(services: Services) -> None:
    services.redis_store.projects.note(KnownProject("9"))
    assert jobs.reconcile_projects() == {"3": True, "9": True}
    assert jobs.reconcile_projects() == {"3": False, "9": False}
    assert reconcile_queue(services.redis).get_job_ids() == ["reconcile-3", "reconcile-9"]


@pytest.mark.parametrize("lost", ["redis", "records", "one file", "position"])
def test_what_is_lost_here_is_read_again(
    services: Services, label_studio: LabelStudioServer, lost: str
) -> None:
    pass_over(services)
    records = services.collection(PROJECT).records()
    if lost == "redis":
        services.redis.flushall()
    if lost in ("records", "one file"):
        for number in collected(services)[: 1 if lost == "one file" else None]:
            (services.collection(PROJECT).folder / f"{number}.jsonl").unlink()
    if lost == "position":
        services.redis.set(RECONCILED_KEY.format(project=PROJECT), "[")
    expected = {"redis": 0, "records": 3, "one file": 1, "position": 0}[lost]
    assert pass_over(services) == (expected, 0)
    assert services.collection(PROJECT).records() == records
    assert services.redis.hlen(COLLECTED_KEY.format(project=PROJECT)) == 3


def test_what_was_deleted_meanwhile_is_forgotten_after_redis_was_lost(
    services: Services, label_studio: LabelStudioServer
) -> None:
    pass_over(services)
    services.redis.flushall()
    label_studio.delete(1)
    label_studio.delete_task(2)
    assert pass_over(services) == (0, 2)
    assert collected(services) == [3]


def test_once_a_day_every_task_is_read(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    """For what changed without a trace."""
    pass_over(services)
    label_studio.save(1, 1, region("a", "another ring", mask), updated_at="2026-01-01T09:00:00.000000Z")
    label_studio.tasks[1]["updated_at"] = "2025-01-01T00:00:00.000000Z"
    assert pass_over(services) == (0, 0)
    assert pass_over(services, after=FULL_PASS_EVERY) == (1, 0)


def test_deleted_annotations_are_kept_while_label_studio_is_away(
    services: Services, monkeypatch: pytest.MonkeyPatch
) -> None:
    pass_over(services)
    monkeypatch.setenv("LABEL_STUDIO_URL", "http://127.0.0.1:9")
    assert isinstance(jobs.forget_annotations(PROJECT, [1]), Retry)
    assert collected(services) == [1, 2, 3]


def test_what_was_proposed_survives_redis_and_the_records(
    services: Services, label_studio: LabelStudioServer, mask: Mask
) -> None:
    """For masks proposed by a prediction, which Label Studio keeps; other masks count as corrected."""
    label_studio.predictions.append(
        {
            "id": 1000,
            "task": 1,
            "model_version": "v7",
            "created_at": "2026-01-01T00:00:00.000000Z",
            "result": region("p1", "the ring", mask) + region("p2", "the dot", mask),
        }
    )
    label_studio.predictions.append({"id": 1001, "task": 1, "result": 7, "model_version": ["odd"]})
    label_studio.save(
        1, 1, region("p1", "the ring", mask) + region("p2", "the dot", ~mask) + region("p3", "a ring", mask)
    )
    pass_over(services)
    expected = {"the ring": (False, "v7"), "the dot": (True, "v7"), "a ring": (True, None)}
    for _ in range(2):
        records = services.collection(PROJECT).of_annotation(1)
        found = {record.phrase: (record.corrected, record.served_version) for record in records}
        assert found == expected
        services.redis.flushall()
        for number in collected(services):
            (services.collection(PROJECT).folder / f"{number}.jsonl").unlink()
        pass_over(services)


@pytest.mark.parametrize("lost", ["unreadable", "left its queue"])
def test_a_job_that_was_lost_does_not_keep_its_project_from_reconciliation(
    services: Services, lost: str
) -> None:
    assert ask_for_reconciliation(services.redis, PROJECT)
    assert not ask_for_reconciliation(services.redis, PROJECT)
    queue = reconcile_queue(services.redis)
    [number] = queue.get_job_ids()
    services.redis.lrem(queue.key, 1, number)
    assert not ask_for_reconciliation(services.redis, PROJECT), "a worker may be taking it"
    if lost == "unreadable":
        services.redis.hset(f"rq:job:{number}", "timeout", "unlimited")
    else:
        services.redis.hset(f"rq:job:{number}", "enqueued_at", "2026-01-01T00:00:00.000000Z")
    assert ask_for_reconciliation(services.redis, PROJECT)
    assert queue.get_job_ids() == [number]


@pytest.mark.parametrize("status", ["canceled", "stopped", "finished", "failed"])
def test_a_job_that_has_ended_does_not_keep_its_project_from_reconciliation(
    services: Services, status: str
) -> None:
    assert ask_for_reconciliation(services.redis, PROJECT)
    queue = reconcile_queue(services.redis)
    [number] = queue.get_job_ids()
    services.redis.lrem(queue.key, 1, number)
    services.redis.hset(f"rq:job:{number}", "status", status)
    if status == "failed":
        services.redis.hset(f"rq:job:{number}", "ended_at", utcformat(datetime.now(UTC)))
        assert not ask_for_reconciliation(services.redis, PROJECT), "it has just failed"
        services.redis.hset(f"rq:job:{number}", "ended_at", "2026-01-01T00:00:00.000000Z")
    assert ask_for_reconciliation(services.redis, PROJECT)
    assert queue.get_job_ids() == [number]


def test_a_reconciliation_that_an_operator_stopped_comes_back(services: Services) -> None:
    assert ask_for_reconciliation(services.redis, PROJECT)
    fetch_job(f"reconcile-{PROJECT}", services.redis).cancel()
    assert ask_for_reconciliation(services.redis, PROJECT)
    assert reconcile_queue(services.redis).get_job_ids() == [f"reconcile-{PROJECT}"]
