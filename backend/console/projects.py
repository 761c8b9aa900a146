"""Pages of the projects: what each needs, how well its model does, its versions, and the work to ask for."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from itertools import islice
from typing import Any

from flask import Blueprint, Response, abort, redirect, request, send_file
from redis import RedisError
from werkzeug.wrappers import Response as AnyResponse

from backend.console.charts import CHART_WH, share_bars, share_chart
from backend.console.dashboard import start_page
from backend.console.fine_tunes import CURVE_WH
from backend.console.operations import Operation, cancel, export_file, operations
from backend.console.pages import audited, page, service
from backend.errors import BackendError, LabelStudioError, QueueUnavailableError, RequestError
from backend.labelstudio import setup
from backend.labelstudio.client import LabelStudioClient
from backend.labelstudio.config_patch import completed_config, config_diff
from backend.shared_redis import announce_version
from backend.worker_requests import (
    note_operation,
    request_adoption,
    request_batch,
    request_export,
    request_finetune,
)
from sspsam.version_store.pruning import PrunePlan, plan_pruning
from sspsam.version_store.pruning import prune as remove_versions
from sspsam.version_store.store import VersionError

LISTED_PROJECTS = 200
"""Of Label Studio without a connection, on the page of projects."""
LABEL_STUDIO_TIMEOUT_S = 8.0
PHRASES_MAX_CHARACTERS = 2000
EXPORT_FORMATS = ("coco", "coco-polygons", "refcoco", "png", "yolo", "yolo-detect")
_TOWARDS = re.compile(r"(\d{1,9}) of (\d{1,9}) new corrected masks")
"""In the reason of a decision."""
_PROJECT = "/projects/<int:project>"

projects = Blueprint("projects", __name__)


def _client() -> LabelStudioClient:
    settings = service().settings
    key = settings.label_studio_api_key.get_secret_value()
    return LabelStudioClient(settings.label_studio_url, key, LABEL_STUDIO_TIMEOUT_S)


@projects.get("/projects")
def every() -> Response:
    """Connected projects, and those of Label Studio that are not connected."""
    found = start_page(service())
    connected = {row.project.project_id for row in found.projects}
    others, problem = [], ""
    try:
        unconnected = (it for it in _client().projects() if str(it.get("id")) not in connected)
        for other in islice(unconnected, LISTED_PROJECTS + 1):  # one more tells that there are more
            others.append((int(other["id"]), str(other.get("title") or ""), other.get("task_number") or 0))
    except (LabelStudioError, ValueError, TypeError) as error:
        problem = str(error)
    plan = _prune_plan()
    return page(
        "projects.html",
        page=found,
        others=others[:LISTED_PROJECTS],
        has_more=len(others) > LISTED_PROJECTS,
        problem=problem,
        plan=plan,
        seen=_names_digest(plan),
        towards=_towards,
    )


@projects.get(_PROJECT)
def one(project: int) -> Response:
    found = start_page(service(), str(project))
    row = next((row for row in found.projects if row.project.project_id == str(project)), None)
    if row is None:
        abort(404, f"project {project} is not connected: connect it on the page Projects")
    days = service().redis_store.worker.correction_days(project)
    return page(
        "project.html",
        page=found,
        row=row,
        number=project,
        towards=_towards(row.last_decision),
        chart=share_chart(days),
        chart_wh=CHART_WH,
        bars=share_bars(found.corrections),
        curve_wh=CURVE_WH,
        operations=_operations(project),
        formats=EXPORT_FORMATS,
        serving=service().engine.version_of(str(project)),
        rolled_back=_rolled_back(project),
        sources=_sources(project),
    )


@projects.get(f"{_PROJECT}/operations")
def progress(project: int) -> Response:
    """The part of the page that is loaded again while something runs."""
    return page("operations.html", number=project, operations=_operations(project))


@projects.get(f"{_PROJECT}/connect")
def preview(project: int) -> Response:
    """What connecting would change."""
    client, problem, missing, diff, before = _client(), "", [], "", ""
    title = ""
    try:
        found = client.project(project)
        title = str(found.get("title") or "")
        before, diff = _planned(found)
        missing = setup.check_project(client, project, service().settings.backend_url)
    except BackendError as error:
        problem = str(error)
    return page(
        "connect.html",
        number=project,
        title=title,
        missing=missing,
        diff=diff,
        problem=problem,
        seen=_digest(before),
        backend_url=service().settings.backend_url,
    )


@projects.post(f"{_PROJECT}/connect")
def connect(project: int) -> AnyResponse:
    settings, client = service().settings, _client()
    with audited("connect", f"project {project}") as lines:
        before, _ = _planned(client.project(project))
        if request.form.get("seen") != _digest(before):
            raise RequestError("the form was changed meanwhile: look at the changes again, then connect")
        secret = settings.webhook_secret.get_secret_value()
        rest = (settings.backend_url, secret, settings.basic_auth)
        lines += setup.connect_project(client, project, *rest, may_change_config=lambda: True)
        lines.append(setup.probe_webhook(client, project, *rest))
    return redirect(f"/projects/{project}/connect", 303)


def _planned(found: Mapping[str, Any]) -> tuple[str, str]:
    """The form of a project, and how connecting would change it, as a diff."""
    before = str(found.get("label_config") or setup.EMPTY_CONFIG)
    after = completed_config(before) if setup.config_of(dict(found)).missing() else before
    return before, "" if after == before else config_diff(before, after)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


@projects.post(f"{_PROJECT}/promote")
def promote(project: int) -> AnyResponse:
    version, store = request.form.get("version", "")[:200], service().versions
    with audited("promote", f"{version}, project {project}") as lines:
        line = store.line_of(project)
        store.promote(version, "promoted by hand", line)
        lines.append(_announce(line))
    return _back(project)


@projects.post(f"{_PROJECT}/roll-back")
def roll_back(project: int) -> AnyResponse:
    store = service().versions
    with audited("roll back", f"project {project}") as lines:
        line = store.line_of(project)
        # What the page has shown: the second click of a double click rolls back no further.
        store.rollback("rolled back by hand", line, request.form.get("serving", ""))
        lines.append(_announce(line))
    return _back(project)


def _announce(line: str) -> str:
    """Notifies running backends; those that miss the message poll every few seconds."""
    current = service().versions.current(line)
    try:
        announce_version(service().redis, line, current)
    except RedisError:
        return f"{current} serves within a few seconds"
    return f"{current} serves from now on"


@projects.post(f"{_PROJECT}/adopt")
def adopt(project: int) -> AnyResponse:
    with audited("adopt", f"project {project} from {request.form.get('source', '')[:20]}") as lines:
        request_adoption(service().redis, project, _number("source"))
        lines.append("the worker copies the version: see below")
    return _back(project)


@projects.post(f"{_PROJECT}/finetune")
def finetune(project: int) -> AnyResponse:
    redis = service().redis
    with audited("fine-tune now", f"project {project}") as lines:
        try:
            note_operation(redis, project, request_finetune(redis, project).id)
        except RedisError as error:
            raise QueueUnavailableError("Redis does not accept jobs: check REDIS_URL") from error
        lines.append("the worker reads the latest labels and decides: see below")
    return _back(project)


@projects.post(f"{_PROJECT}/<any(prelabel, rank, prefetch):command>")
def batch(project: int, command: str) -> AnyResponse:
    with audited(command, f"project {project}") as lines:
        request_batch(service().redis, project, command, _batch_options(command))
        lines.append("asked the worker: see the progress below")
    return _back(project)


def _batch_options(command: str) -> dict[str, Any]:
    if command == "prefetch":
        return {"limit": _number("limit")}
    phrases = [line.strip() for line in request.form.get("phrases", "").splitlines() if line.strip()]
    if sum(map(len, phrases)) > PHRASES_MAX_CHARACTERS:
        raise RequestError(f"phrases of more than {PHRASES_MAX_CHARACTERS} characters: use fewer")
    if phrases:
        return {"source": {"kind": "phrases", "phrases": phrases, "column": ""}}
    return {} if command == "rank" else {"source": {"kind": "labels", "phrases": [], "column": ""}}


@projects.post(f"{_PROJECT}/export")
def export(project: int) -> AnyResponse:
    file_format = request.form.get("format", "")
    with audited("export", f"project {project}, {file_format[:20]}") as lines:
        if file_format not in EXPORT_FORMATS:
            raise RequestError(f"expected one of the formats {', '.join(EXPORT_FORMATS)}")
        request_export(service().redis, project, file_format)
        lines.append("asked the worker: the file can be downloaded below when it is done")
    return _back(project)


@projects.post(f"{_PROJECT}/cancel")
def stop(project: int) -> AnyResponse:
    job_id = request.form.get("job", "")[:200]
    with audited("cancel", f"{job_id}, project {project}") as lines:
        try:
            lines.append(cancel(service().redis, project, job_id))
        except RedisError as error:
            raise QueueUnavailableError("Redis does not respond: check REDIS_URL") from error
    return _back(project)


@projects.get(f"{_PROJECT}/exports/<name>")
def download(project: int, name: str) -> AnyResponse:
    path = export_file(service().settings.model_dir.absolute(), project, name)
    if path is None:
        abort(404, f"there is no export {name[:100]!r} on this machine: export again")
    return send_file(path, mimetype="application/octet-stream", as_attachment=True, download_name=name)


@projects.post("/versions/prune")
def prune() -> AnyResponse:
    with audited("prune") as lines:
        plan = plan_pruning(service().versions)
        if request.form.get("seen") != _names_digest(plan):
            raise RequestError("the unused versions are others now: look at their names again")
        remove_versions(service().versions, plan)
        lines.append(f"{len(plan.removed)} versions removed, {plan.bytes_freed / 1e6:.1f} MB freed")
    return redirect("/projects", 303)


def _prune_plan() -> PrunePlan | None:
    try:
        return plan_pruning(service().versions)
    except (VersionError, OSError):  # the page names it among its warnings
        return None


def _names_digest(plan: PrunePlan | None) -> str:
    """Of all that a plan removes."""
    return "" if plan is None else _digest("\n".join(sorted([*plan.removed, *plan.leftovers])))


def _number(name: str) -> int:
    text = request.form.get(name, "")
    if not (text.isascii() and text.isdecimal() and len(text) < 10):
        raise RequestError(f"expected a number in the field {name!r}")
    return int(text)


def _back(project: int) -> AnyResponse:
    return redirect(f"/projects/{project}", 303)


def _operations(project: int) -> list[Operation] | None:
    """None if Redis does not respond."""
    try:
        return operations(service().redis, project)
    except RedisError:
        return None


def _towards(decision: str) -> tuple[int, int] | None:
    """How many corrections there are, and how many start a fine-tune, if the last decision says so."""
    found = _TOWARDS.search(decision)
    return (int(found[1]), int(found[2])) if found else None


def _rolled_back(project: int) -> str:
    """The version that a rollback would replace; empty if there is nothing to roll back to."""
    try:
        state = service().versions.state()
        line = state.line(state.line_of(project))
    except (VersionError, OSError):
        return ""
    return line.version_id if line.stack else ""


def _sources(project: int) -> list[tuple[str, str]]:
    """Other projects whose version can be adopted: (number, title)."""
    known = service().redis_store.projects.all()
    return [(one.project_id, one.title) for one in known if one.project_id != str(project)]
