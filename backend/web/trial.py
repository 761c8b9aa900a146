"""A page that answers phrases on an uploaded picture, to see the model before a Label Studio is connected.

It runs by itself on this machine, without Redis and versions. Pictures stay in memory.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Mapping
from threading import Lock
from typing import IO, Any

from flask import Flask, Request, Response, render_template, request
from PIL import Image, UnidentifiedImageError
from werkzeug.exceptions import HTTPException

from backend.errors import BackendError, ImageFormatError, RequestError
from backend.images.store import DAMAGED
from backend.settings import Settings
from backend.web.access import check_access
from backend.web.origins import OriginCheck
from sspsam import PhraseError, Predictor
from sspsam.drawing import draw_referents
from sspsam.images.frames import UInt8Image
from sspsam.images.image_io import picture_to_pixels

UPLOAD_MAX_BYTES = 25 * 2**20
MAX_PHRASES = 8
PHRASE_MAX_CHARACTERS = 1000
SHOWN_SIDE_PX = 1600
"""Longest side of the drawn picture."""
SERVER_OPTIONS: Mapping[str, Any] = {
    "threads": 2,
    "ident": None,
    "max_request_body_size": UPLOAD_MAX_BYTES + 2**16,  # of a little more, the app says what the limit is
    # By default, what exceeds 512 KiB or 1 MiB is written to a temporary file.
    "inbuf_overflow": 2 * UPLOAD_MAX_BYTES,
    "outbuf_overflow": 2 * UPLOAD_MAX_BYTES,
}
FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "same-origin",
    "Cache-Control": "no-store",
}


class InMemoryRequest(Request):
    """Keeps uploads in memory: by default, large ones are written to a temporary file."""

    def _get_file_stream(self, *args: Any, **values: Any) -> IO[bytes]:
        return io.BytesIO()


def serve_trial(app: Flask, port: int) -> None:
    """Serves the app on this machine until it is stopped."""
    import waitress

    waitress.serve(app, host="127.0.0.1", port=port, **SERVER_OPTIONS)


def create_trial(settings: Settings, predictor: Predictor) -> Flask:
    """Creates the app.

    Args:
        settings: Credentials, names of this backend, and limits of pictures.
        predictor: Answers; used by one request at a time.
    """
    app = Flask("backend", static_folder=None)
    app.request_class = InMemoryRequest
    app.config["MAX_CONTENT_LENGTH"] = UPLOAD_MAX_BYTES
    origins, lock = OriginCheck(settings), Lock()

    @app.before_request
    def check() -> None:
        origins.check(request)
        check_access(request, settings)

    @app.get("/")
    def show() -> str:
        return _page(predictor)

    @app.post("/")
    def answer() -> str:
        phrases = _phrases(request.form.get("phrases", ""))
        picture = _read(request.files.get("picture"), settings.image_max_pixels)
        try:
            with lock:
                referents = predictor.predict(predictor.embed(picture), phrases)
        except PhraseError as error:
            raise RequestError(str(error)) from error
        drawn = draw_referents(picture, referents)
        drawn.thumbnail((SHOWN_SIDE_PX, SHOWN_SIDE_PX))
        encoded = io.BytesIO()
        drawn.convert("RGB").save(encoded, "JPEG", quality=90)
        return _page(predictor, phrases, base64.b64encode(encoded.getvalue()).decode())

    @app.errorhandler(BackendError)
    def explain(error: BackendError) -> tuple[str, int, dict[str, str]]:
        asks = {"WWW-Authenticate": 'Basic realm="SSP-SAM Assist"'} if error.status == 401 else {}
        return _page(predictor, error=str(error)), error.status, asks

    @app.errorhandler(HTTPException)
    def explain_http(error: HTTPException) -> tuple[str, int]:
        large = error.code == 413
        text = f"the picture has more than {UPLOAD_MAX_BYTES // 2**20} MB" if large else error.description
        return _page(predictor, error=str(text)), error.code or 500

    @app.after_request
    def protect(response: Response) -> Response:
        response.headers.extend(HEADERS)
        return response

    return app


def _page(predictor: Predictor, phrases: list[str] | None = None, drawn: str = "", error: str = "") -> str:
    return render_template(
        "trial.html", model=predictor.preset, phrases=phrases or [], drawn=drawn, error=error
    )


def _phrases(text: str) -> list[str]:
    """One phrase a line."""
    phrases = [line.strip() for line in text.splitlines() if line.strip()]
    if not 1 <= len(phrases) <= MAX_PHRASES or len(text) > PHRASE_MAX_CHARACTERS:
        raise RequestError(
            f"type 1 to {MAX_PHRASES} phrases, one a line, and at most {PHRASE_MAX_CHARACTERS} characters"
        )
    return phrases


def _read(uploaded: Any, max_pixels: int) -> UInt8Image:
    """The uploaded picture, upright."""
    if uploaded is None or not uploaded.filename:
        raise RequestError("choose a picture")
    try:
        with Image.open(uploaded.stream, formats=FORMATS) as picture:
            if not 0 < picture.width * picture.height <= max_pixels:  # before anything is decoded
                raise ImageFormatError(f"the picture has more than {max_pixels:,} pixels")
            return picture_to_pixels(picture)
    except UnidentifiedImageError as error:
        raise ImageFormatError(f"this is no picture in a supported format: {', '.join(FORMATS)}") from error
    except (*DAMAGED, Image.DecompressionBombError) as error:
        raise ImageFormatError(f"the picture cannot be read: {error}") from error
