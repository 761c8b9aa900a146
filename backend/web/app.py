"""The Flask app: routes, access, errors, metrics. `Engine.start`, not its creation, loads the model."""

from __future__ import annotations

import logging
import re
import time
import uuid
from typing import Any
from urllib.parse import urlencode

import msgspec
import numpy as np
from flask import Flask, Response, g, jsonify, redirect, request
from flask.json.provider import DefaultJSONProvider
from redis import Redis
from werkzeug.exceptions import HTTPException
from werkzeug.wrappers import Response as AnyResponse

from backend.console.administration import administration
from backend.console.assets import assets
from backend.console.jobs_page import jobs
from backend.console.overview import RecentRequests
from backend.console.pages import RECENT, error_page, prepare_pages, wants_page
from backend.console.projects import projects
from backend.console.sessions import prepare_sessions
from backend.errors import AccessError, BackendError, RequestError, TooManyRequestsError
from backend.logs import REQUEST_ID_HEADER, request_id
from backend.service import build_service
from backend.serving.shared_model import SwappablePredictor
from backend.settings import Settings
from backend.web.access import MAX_REQUEST_BYTES, SIGN_IN_PATH, Gate, require_secrets
from backend.web.api import routes
from backend.web.origins import SAFE_METHODS
from backend.web.sign_in import GATE, sign_in

SECURITY_HEADERS = {
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; base-uri 'none'; form-action 'none'; "
    "frame-ancestors 'none'",
}
"""Default headers of every response; for pages see `backend.console.pages`."""
PAGES = (administration, jobs, projects, sign_in)
"""Blueprints of the console."""


class FastJSON(DefaultJSONProvider):
    """JSON by msgspec: ten times as fast as the standard library for the long number lists of brush RLE."""

    def dumps(self, obj: Any, **options: Any) -> str:
        return msgspec.json.encode(obj, enc_hook=_plain_number).decode()


def _plain_number(value: object) -> object:
    """Converts a NumPy scalar; called for values that msgspec cannot encode.

    Raises:
        NotImplementedError: any other type.
    """
    if isinstance(value, np.generic):
        return value.item()
    raise NotImplementedError(f"cannot write {type(value).__name__} as JSON")


_SANE_ID = re.compile(r"[A-Za-z0-9._-]{1,64}")

logger = logging.getLogger(__name__)


def create_app(
    settings: Settings, redis: Redis | None = None, predictor: SwappablePredictor | None = None
) -> Flask:
    """Creates the app.

    Args:
        settings: Settings from the environment.
        redis: Replaces the connection to REDIS_URL.
        predictor: Replaces the preset's predictor.

    Returns:
        An app whose parts are a `backend.service.Service` in `app.extensions["sspsam"]`.

    Raises:
        SettingsError: no credentials for callers are configured, and OPEN_ACCESS is off.
    """
    require_secrets(settings)
    app = Flask("backend", static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = MAX_REQUEST_BYTES
    app.json = FastJSON(app)
    service = build_service(settings, redis, predictor)
    gate = Gate(settings, service.redis_store, [blueprint.name for blueprint in PAGES])
    app.extensions |= {"sspsam": service, GATE: gate}
    app.extensions[RECENT] = recent = RecentRequests()
    prepare_sessions(app, settings)
    prepare_pages(app)
    for blueprint in (routes, assets, *PAGES):
        app.register_blueprint(blueprint)
    app.register_error_handler(BackendError, _answer_error)
    app.register_error_handler(HTTPException, _answer_http_error)
    app.register_error_handler(UnicodeEncodeError, _answer_half_character)
    app.register_error_handler(RecursionError, _answer_depth)
    app.register_error_handler(Exception, _answer_bug)

    @app.before_request
    def start() -> None:
        g.since_s = time.monotonic()
        given = request.headers.get(REQUEST_ID_HEADER, "")
        request_id.set(given if _SANE_ID.fullmatch(given) else uuid.uuid4().hex[:12])
        g.role = gate.check(request)

    @app.after_request
    def count(response: Response) -> Response:
        endpoint = (request.endpoint or "unknown").rpartition(".")[2]
        service.metrics.requests.labels(endpoint, response.status_code).inc()
        took_s = time.monotonic() - g.since_s
        service.metrics.latency.labels(endpoint).observe(took_s)
        if endpoint == "predict" and response.status_code == 200:
            recent.note(took_s, service.metrics.phrase_count())
        response.headers[REQUEST_ID_HEADER] = request_id.get()
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response

    return app


def _answer_error(error: BackendError) -> AnyResponse:
    logger.warning("%s %s: %s", request.method, request.path, error)
    if isinstance(error, AccessError) and (wants_page() or request.headers.get("HX-Request")):
        return _ask_to_sign_in()
    response = _answer(error.status, str(error))
    if isinstance(error, AccessError):
        response.headers["WWW-Authenticate"] = 'Basic realm="SSP-SAM Assist"'
    if isinstance(error, TooManyRequestsError):
        response.headers["Retry-After"] = "60"
    return response


def _ask_to_sign_in() -> AnyResponse:
    """For browsers; a part of a page that is loaded later has the whole page replaced."""
    if request.headers.get("HX-Request"):
        return Response(status=401, headers={"HX-Redirect": SIGN_IN_PATH})
    after = request.full_path.rstrip("?") if request.method in SAFE_METHODS else "/"
    return redirect(f"{SIGN_IN_PATH}?{urlencode({'after': after})}", 303)


def _answer(status: int, message: str) -> Response:
    if wants_page():
        return error_page(status, message)
    response = jsonify(error=message, request_id=request_id.get())
    response.status_code = status
    return response


def _answer_http_error(error: HTTPException) -> Response:
    return _answer(error.code or 500, str(error.description))


def _answer_half_character(error: UnicodeEncodeError) -> AnyResponse:
    """Rejects lone surrogates: valid in JSON, but not encodable in UTF-8 and therefore not storable."""
    return _answer_error(RequestError("the body contains an invalid character (a lone surrogate)"))


def _answer_depth(error: RecursionError) -> AnyResponse:
    """Rejects values that can be read, but are nested too deeply for what is done with them."""
    return _answer_error(RequestError("the body is nested too deeply"))


def _answer_bug(error: Exception) -> Response:
    """Logs the traceback and hides it from the caller."""
    logger.error("%s %s", request.method, request.path, exc_info=error)
    return _answer(500, "an error inside the backend: see its log")
