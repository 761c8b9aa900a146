"""The pages of projects: their figures, and that each button asks for what its command does."""

from __future__ import annotations

import itertools
import json
from dataclasses import replace
from typing import Any, get_args

import pytest
import torch
from flask import Flask
from redis import Redis
from rq.job import JobStatus
from werkzeug.wrappers import Response

from backend.console.charts import CHART_WH, LABEL_HEIGHT, share_bars, share_chart
from backend.console.projects import EXPORT_FORMATS, LISTED_PROJECTS
from backend.corrections import CorrectionLog, DayCounts, Tally
from backend.settings import Settings
from backend.shared_redis import VERSIONS_CHANNEL, ServiceQueue, fetch_job
from backend.web.app import create_app
from backend.worker_requests import OPERATIONS_KEPT, RESULT_TTL_S, request_export
from sspsam.version_store.store import VersionCard
from tests.backend.colours import ColourPredictor
from tests.backend.console.browser import Person, at_project
from tests.backend.parts import service_of
from tests.backend.web_server import Web
from tests.facts import untold
from worker.export.writing import Format


@pytest.fixture
def label_studio() -> Any:
    listed = [{"id": 7, "title": "Kitchen"}, {"id": 9, "title": "Streets", "task_number": 3}]
    projects = {"count": len(listed), "results": listed}
    form = {"id": 9, "title": "Streets", "label_config": "<View></View>"}
    answers = {
        "/api/projects/": projects,
        "/api/projects/9/": form,
        "/api/ml": [],
        "/api/webhooks/": [],
    }
    with Web(
        {path: Response(json.dumps(one), content_type="application/json") for path, one in answers.items()}
    ) as web:
        yield web


@pytest.fixture
def settings(settings: Settings, label_studio: Web) -> Settings:
    return settings.model_copy(update={"label_studio_url": label_studio.url})


@pytest.fixture
def app(settings: Settings, redis_server: Redis) -> Flask:
    """Without a loaded model: these pages need none."""
    return create_app(settings, redis_server, ColourPredictor())


@pytest.fixture
def person(app: Flask) -> Person:
    person = at_project(app)
    service_of(app).redis_store.projects.note_title("7", "Kitchen")
    return person


def published(app: Flask, **changes: Any) -> str:
    card = replace(VersionCard(line="project-7"), **changes)
    return service_of(app).versions.publish({"shift": torch.tensor(1)}, card, {}).version_id


def queued(redis: Redis, queue: str) -> list[tuple[str, dict[str, Any]]]:
    """Function and arguments of each waiting job."""
    jobs = [fetch_job(job_id, redis) for job_id in ServiceQueue(queue, redis).get_job_ids()]
    return [(str(job.func_name), dict(job.kwargs)) for job in jobs]


def test_projects_to_connect_come_from_label_studio(person: Person) -> None:
    page = person.page("/projects")
    assert untold(page.text, "Kitchen", "Streets", "3 tasks") == []
    links = page.values("a", "href")
    assert "/projects/7" in links
    assert [link for link in links if link.endswith("/connect")] == ["/projects/9/connect"]


@pytest.mark.parametrize("more", [0, 1])
def test_connected_projects_take_no_place_of_others(person: Person, label_studio: Web, more: int) -> None:
    others = [{"id": 20 + at} for at in range(LISTED_PROJECTS + more)]
    listed = {"count": len(others) + 1, "results": [{"id": 7, "title": "Kitchen"}, *others]}
    label_studio.answers["/api/projects/"] = Response(json.dumps(listed), content_type="application/json")
    page = person.page("/projects")
    links = [link for link in page.values("a", "href") if link.endswith("/connect")]
    assert links == [f"/projects/{other['id']}/connect" for other in others[:LISTED_PROJECTS]]
    assert ("there are more" in page.text) == (more > 0)


def test_without_label_studio_the_page_says_what_to_do(person: Person, label_studio: Web) -> None:
    label_studio.answers.clear()
    assert untold(person.page("/projects").text, "Kitchen", "Label Studio") == []


def test_connecting_shows_the_changes_first(person: Person, label_studio: Web) -> None:
    page = person.page("/projects/9/connect")
    assert untold(page.text, "Streets", "no ML backend", "no active webhook", "+", "<BrushLabels") == []
    assert {request.method for request in label_studio.asked} == {"GET"}
    answer = person.send("/projects/9/connect", seen="another")
    assert answer.status_code == 303
    assert "changed meanwhile" in person.page("/projects/9/connect").text
    assert {request.method for request in label_studio.asked} == {"GET"}, "nothing was changed"


@pytest.mark.parametrize(
    ("path", "fields", "queue", "function", "kwargs"),
    [
        ("finetune", {}, "reconcile", "worker.jobs.maybe_finetune", {"trigger": "now"}),
        (
            "prelabel",
            {"phrases": "a cup\n\n the jug "},
            "reconcile",
            "worker.requested_jobs.start_batch",
            {
                "command": "prelabel",
                "source": {"kind": "phrases", "phrases": ["a cup", "the jug"], "column": ""},
            },
        ),
        (
            "prelabel",
            {},
            "reconcile",
            "worker.requested_jobs.start_batch",
            {"command": "prelabel", "source": {"kind": "labels", "phrases": [], "column": ""}},
        ),
        ("rank", {}, "reconcile", "worker.requested_jobs.start_batch", {"command": "rank"}),
        (
            "prefetch",
            {"limit": "40"},
            "reconcile",
            "worker.requested_jobs.start_batch",
            {"command": "prefetch", "limit": 40},
        ),
        (
            "export",
            {"format": "png"},
            "prelabel",
            "worker.requested_jobs.export_project",
            {"file_format": "png"},
        ),
        ("adopt", {"source": "9"}, "events", "worker.requested_jobs.adopt_version", {"source_id": 9}),
    ],
)
def test_buttons_ask_the_worker(
    person: Person,
    redis_server: Redis,
    path: str,
    fields: dict[str, str],
    queue: str,
    function: str,
    kwargs: dict[str, Any],
) -> None:
    assert person.send(f"/projects/7/{path}", **fields).headers["Location"] == "/projects/7"
    assert queued(redis_server, queue) == [(function, {"project_id": 7, **kwargs})]
    (job,) = ServiceQueue(queue, redis_server).get_jobs()
    assert (job.result_ttl, job.failure_ttl) == (RESULT_TTL_S, RESULT_TTL_S), "as long as the page says"
    page = person.page("/projects/7")
    assert "waiting" in page.text
    assert untold(person.page("/audit").text, "project 7", "operator") == []


@pytest.mark.parametrize(
    ("path", "fields", "told"),
    [
        ("prefetch", {"limit": "-1"}, "expected a number"),
        ("prefetch", {}, "expected a number"),
        ("prefetch", {"limit": "9" * 5000}, "expected a number"),
        ("adopt", {"source": "x"}, "expected a number"),
        ("export", {"format": "../x"}, "expected one of the formats"),
        ("prelabel", {"phrases": "x" * 2001}, "use fewer"),
        ("promote", {"version": "ssp-sam-test-0099"}, "no version"),
        ("promote", {"version": "../../x"}, "no version"),
        ("roll-back", {}, "nothing to roll back to"),
    ],
)
def test_what_cannot_be_done_is_said_and_recorded(
    person: Person, redis_server: Redis, path: str, fields: dict[str, str], told: str
) -> None:
    assert person.send(f"/projects/7/{path}", **fields).status_code == 303
    assert told in person.page("/projects/7").text
    assert "failed: " in person.page("/audit").text
    assert [queued(redis_server, name) for name in ("events", "reconcile", "prelabel")] == [[], [], []]


def test_versions_are_promoted_and_rolled_back_in_the_projects_line(
    app: Flask, person: Person, redis_server: Redis
) -> None:
    versions = service_of(app).versions
    first, second = published(app), published(app)
    heard = redis_server.pubsub()
    heard.subscribe(VERSIONS_CHANNEL)
    for version in (first, second):
        person.send("/projects/7/promote", version=version)
        assert versions.current("project-7") == version
    person.send("/projects/7/roll-back", serving=second)
    assert versions.current("project-7") == first
    assert versions.current("project-9") == versions.base_version, "other projects are as before"
    assert versions.get(second).status == "rejected"
    messages = [heard.get_message(timeout=1) for _ in range(4)]
    assert [json.loads(one["data"])["version"] for one in messages[1:] if one] == [first, second, first]


def test_a_version_of_another_line_is_not_promoted(app: Flask, person: Person) -> None:
    other = published(app, line="project-9")
    person.send("/projects/7/promote", version=other)
    assert "belongs to project-9" in person.page("/projects/7").text


def test_a_double_click_rolls_back_once(app: Flask, person: Person) -> None:
    first, second, third = published(app), published(app), published(app)
    for version in (first, second, third):
        person.send("/projects/7/promote", version=version)
    page = person.page("/projects/7")
    assert third in page.values("input", "value")
    for serving in (third, third, ""):
        person.send("/projects/7/roll-back", serving=serving)
        assert service_of(app).versions.current("project-7") == second
    assert f"{second} serves meanwhile" in person.page("/projects/7").text


def test_only_the_listed_versions_are_removed(app: Flask, person: Person) -> None:
    versions = service_of(app).versions
    for _ in range(7):
        versions.reject(published(app), "worse")
    seen = person.page("/projects").values("input", "value")[-1]
    versions.reject(published(app), "worse")
    for given in (seen, ""):
        person.send("/versions/prune", seen=given)
        assert len(versions.list()) == 9
        assert "others now" in person.page("/projects").text


def test_unused_versions_are_listed_and_removed(app: Flask, person: Person) -> None:
    for _ in range(7):
        service_of(app).versions.reject(published(app), "worse")
    page = person.page("/projects")
    assert "2 versions are neither served" in page.text
    person.send("/versions/prune", seen=page.values("input", "value")[-1])
    assert len(service_of(app).versions.list()) == 6
    assert "2 versions removed" in person.page("/projects").text


def test_progress_of_a_batch_is_that_of_its_chunks(person: Person, redis_server: Redis) -> None:
    person.send("/projects/7/prelabel")
    (job_id,) = ServiceQueue("reconcile", redis_server).get_job_ids()
    job = fetch_job(job_id, redis_server)
    chunk = ServiceQueue("prelabel", redis_server).enqueue_call(
        "worker.jobs.prelabel_chunk", kwargs={"project_id": 7}, job_id="run-b"
    )
    ServiceQueue("reconcile", redis_server).remove(job_id)
    result = {"run": "run", "tasks": 20, "chunks": ["a", "b"], "jobs": ["run-a", "run-b"]}
    finish(job, result, redis_server)
    report = {"tasks": 8, "posted": 5, "masks": 9, "skipped": 2, "problems": {"41": "its image is <gone>"}}
    redis_server.hset("sspsam:prelabel:run", "a", json.dumps(report))

    page = person.page("/projects/7")
    assert (
        untold(page.text, "running", "8 of 20 tasks", "5 predictions posted", "task 41: its image is <gone>")
        == []
    )
    assert "/projects/7/operations" in page.values("div", "hx-get")

    person.send("/projects/7/cancel", job=job_id)
    assert ServiceQueue("prelabel", redis_server).get_job_ids() == []
    assert chunk.get_status() == "canceled"
    part = person.page("/projects/7/operations")
    assert "stopped" in part.text
    assert part.values("div", "hx-get") == [], "nothing runs any more"


@pytest.mark.parametrize(
    ("status", "told"),
    [("failed", "failed"), ("canceled", "stopped"), ("deferred", "running"), ("finished", "done")],
)
def test_a_ranking_is_done_when_its_tasks_are_in_order(
    person: Person, redis_server: Redis, status: JobStatus, told: str
) -> None:
    person.send("/projects/7/rank")
    (job_id,) = ServiceQueue("reconcile", redis_server).get_job_ids()
    queue = ServiceQueue("prelabel", redis_server)
    order = queue.enqueue_call("worker.jobs.order_project", kwargs={"project_id": 7}, job_id="run-order")
    order.set_status(status)
    result = {"run": "run", "tasks": 8, "chunks": ["a"], "jobs": ["run-a", "run-order"]}
    finish(fetch_job(job_id, redis_server), result, redis_server)
    report = {"tasks": 8, "posted": 8, "skipped": 0, "problems": {}}
    redis_server.hset("sspsam:prelabel:run", "a", json.dumps(report))

    assert f"{told} 8 of 8 tasks" in person.page("/projects/7/operations").text


def finish(job: Any, result: Any, redis: Redis) -> None:
    """As a worker would."""
    from rq.results import Result

    Result.create(job, Result.Type.SUCCESSFUL, ttl=300, return_value=result)
    job.set_status("finished")


def test_jobs_of_other_projects_are_neither_shown_nor_cancelled(person: Person, redis_server: Redis) -> None:
    other = request_export(redis_server, 9, "coco")
    person.send("/projects/7/cancel", job=other.id)
    assert other.get_status(refresh=True) == "queued"
    redis_server.lpush("sspsam:operations:7", other.id)
    assert "Export" not in person.page("/projects/7/operations").text


def test_few_operations_are_kept(person: Person, redis_server: Redis) -> None:
    for _ in range(OPERATIONS_KEPT + 3):
        request_export(redis_server, 7, "coco")
    assert redis_server.llen("sspsam:operations:7") == OPERATIONS_KEPT


def test_exports_are_given_out_as_files(app: Flask, person: Person, settings: Settings) -> None:
    folder = settings.model_dir / "exports" / "7"
    folder.mkdir(parents=True)
    (folder / "labels.json").write_text("<html>")
    (folder / "link.json").symlink_to("/etc/passwd")
    answer = person.open("/projects/7/exports/labels.json")
    assert answer.data == b"<html>"
    assert untold(answer.headers["Content-Disposition"], "attachment", "labels.json") == []
    assert answer.content_type == "application/octet-stream"
    answer.close()
    for name in ("link.json", "nothing.json", "..%2f7%2flabels.json", ".hidden"):
        assert person.open(f"/projects/7/exports/{name}").status_code == 404
    assert person.open("/projects/8/exports/labels.json").status_code == 404


def test_corrections_are_charted_by_day(person: Person, redis_server: Redis) -> None:
    log = CorrectionLog(redis_server)
    assert "after labels were saved on two days" in person.page("/projects/7").text
    log.note(7, 1, [Tally("v", "cup", accepted=1, edited=3)], "2026-05-01")
    log.note(7, 2, [Tally("v", "cup", accepted=3, missed=1)], "2026-05-02")
    page = person.page("/projects/7")
    (label,) = [text for text in page.values("svg", "aria-label") if text.startswith("From")]
    assert (
        untold(label, "2026-05-01 to 2026-05-02", "accepted as proposed 25% to 75%", "not found 0% to 25%")
        == []
    )
    assert len(page.values("polyline", "points")) == 3
    log.note(7, 1, [Tally("v", "cup", accepted=4)], "2026-05-03")
    assert [(day.day, dict(day.counts)["accepted"]) for day in log.days(7) if day.masks] == [
        ("2026-05-02", 3),
        ("2026-05-03", 4),
    ], "an annotation that is saved again moves to its new day"


def test_counts_of_an_earlier_release_get_their_day(redis_server: Redis) -> None:
    log, tally = CorrectionLog(redis_server), Tally("v", "cup", accepted=1)
    log.note(7, 1, [tally])
    assert log.days(7) == []
    log.note(7, 1, [tally], "2026-05-01")
    log.note(7, 1, [tally], "2026-05-09")
    assert log.days(7) == [DayCounts("2026-05-01", {"accepted": 1})], "nothing has changed since"
    assert [one.tally.accepted for one in log.sums()] == [1]


def test_labels_of_a_chart_are_apart() -> None:
    days = [DayCounts("2026-05-01", {"accepted": 1}), DayCounts("2026-05-02", {"accepted": 1})]
    chart = share_chart(days)
    assert chart is not None
    places = sorted(line.label_y for line in chart.lines)
    assert all(later - earlier >= LABEL_HEIGHT for earlier, later in itertools.pairwise(places))
    assert places[-1] <= CHART_WH[1]


def test_bars_are_shares_of_all_masks() -> None:
    (bar,) = share_bars([Tally("v", "", accepted=2, edited=1, added=1), Tally("w", "")])
    assert (bar.masks, bar.parts) == (
        4,
        [("accepted", 0.0, 50.0), ("edited", 50.0, 25.0), ("missed", 75.0, 0.0)],
    )


def test_the_next_fine_tune_has_a_progress_bar(person: Person, redis_server: Redis) -> None:
    decision = {"at": "2026-05-01T13:00:00+00:00", "trigger": "annotation", "start": False}
    redis_server.set("sspsam:decision:7", json.dumps({**decision, "reason": "6 of 8 new corrected masks"}))
    page = person.page("/projects/7")
    assert "6 of 8 corrections to the next fine-tune" in page.text
    assert page.values("progress", "max") == ["8"]


def test_a_project_that_is_not_connected_has_no_page(person: Person) -> None:
    assert person.open("/projects/99").status_code == 404
    assert person.open("/projects/x").status_code == 404


def test_the_formats_are_those_of_the_command() -> None:
    assert get_args(Format) == EXPORT_FORMATS
