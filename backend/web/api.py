"""The routes: Label Studio's ML backend protocol, pages for users, and Prometheus metrics."""

from __future__ import annotations

import logging
from typing import Any

from flask import Blueprint, Response, abort, current_app, jsonify, request

from backend.console.dashboard import start_page
from backend.console.fine_tunes import CURVE_WH, SHOWN_TYPES, shown_file
from backend.console.overview import overview
from backend.console.pages import RECENT, page, service
from backend.events import read_event
from backend.labelstudio.config import RECOMMENDED_CONFIG
from backend.metrics import Metrics
from backend.queries import PredictQuery, parse_setup, project_number

REPORT_POLICY = (
    "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src 'self' data:; frame-ancestors 'none'"
)

routes = Blueprint("api", __name__)
logger = logging.getLogger(__name__)


@routes.get("/health")
def health() -> Response:
    """Needs no credentials, so it names the version for requests without a project, and no projects."""
    status = service().engine.status()
    return jsonify(status="UP", model_class="SSP-SAM", model_version=status.version, model_state=status.state)


@routes.get("/ready")
def ready() -> tuple[Response, int]:
    """Readiness for load balancers: 503 until the model is loaded. /health responds from the start."""
    state = service().engine.status().state
    return jsonify(model_state=state), 200 if state == "ready" else 503


@routes.post("/setup")
def setup() -> Response:
    project = parse_setup(_body())
    service().register_project(project)
    return jsonify(model_version=service().engine.version_of(project.project_id))


@routes.post("/predict")
def predict() -> Response:
    query = PredictQuery.parse(_body())
    assistant = service().assistant
    try:
        return jsonify(results=assistant.answer(query))
    except Exception:  # Label Studio hides the HTTP status from annotators: their form must show the error
        logger.exception("project %s: no answer", query.project_id)
        return jsonify(results=assistant.report_failure(query))


@routes.post("/webhook")
def webhook() -> tuple[Response, int]:
    jobs = service().take_event(read_event(request.get_data()) or _body())
    answer = {"status": "queued" if jobs else "ignored", "jobs": jobs}
    return jsonify({**answer, "job": jobs[0]} if jobs else answer), 201 if jobs else 200


@routes.get("/webhook")
def last_event() -> Response:
    """Time of the last webhook of `?project=`; `sspsam connect` uses it to test the webhook."""
    return jsonify(
        last_event=service().redis_store.projects.get_last_webhook_time(request.args.get("project", ""))
    )


@routes.get("/versions")
def versions() -> Response:
    """The version that serves `?project=` first, then the others that may serve it, newest first."""
    return jsonify(versions=service().version_ids(request.args.get("project", "")))


@routes.get("/metrics")
def metrics() -> Response:
    parts = service()
    parts.metrics.set_corrections(
        (parts.engine.line_of(str(counted.project)), counted.tally)
        for counted in parts.redis_store.worker.corrections()
    )
    parts.metrics.set_skipped(parts.skipped.counts())
    status, embeddings = parts.engine.status(), parts.engine.embeddings
    refused = [(refusal.line, refusal.version) for refusal in status.refusals]
    parts.metrics.set_lines(status.lines, refused, status.loaded_versions, status.loaded_bytes)
    text = parts.metrics.render(
        status.version, status.state, len(embeddings), embeddings.size_bytes, parts.engine.waiting()
    )
    return Response(text, content_type=Metrics.content_type)


@routes.get("/")
def index() -> Response:
    """The start page for browsers; other clients get the response of /health."""
    if request.accept_mimetypes.best_match(["application/json", "text/html"], "text/html") != "text/html":
        return health()
    found = start_page(service(), project_number(request.args.get("project", "")))
    figures = overview(service(), current_app.extensions[RECENT])
    return page("start.html", page=found, figures=figures, recommended=RECOMMENDED_CONFIG, curve_wh=CURVE_WH)


@routes.get("/reports/<version_id>/<name>")
def report(version_id: str, name: str) -> Response:
    """A file of a fine-tune. It contains users' phrases, so the browser must run no script in it."""
    path = shown_file(service().versions, version_id, name)
    if path is None:
        abort(404, f"{version_id} has no {name} to show")
    policy = {"Content-Security-Policy": REPORT_POLICY}
    return Response(path.read_bytes(), headers=policy, content_type=SHOWN_TYPES[path.suffix])


def _body() -> Any:
    """The request's JSON, regardless of its content type; None if it is invalid or nested too deeply."""
    try:
        return request.get_json(force=True, silent=True)
    except RecursionError:
        return None
