"""Style sheets and scripts. Their addresses contain their digest, so browsers keep them for good."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from functools import cache
from importlib.resources import files

from flask import Blueprint, Response, abort

ASSETS_PATH = "/assets/"
"""Open to everyone: the sign-in page needs them."""
CONTENT_TYPES: Mapping[str, str] = {
    "pico.classless.min.css": "text/css; charset=utf-8",
    "console.css": "text/css; charset=utf-8",
    "htmx.min.js": "text/javascript; charset=utf-8",
    "console.js": "text/javascript; charset=utf-8",
}
DIGEST_CHARACTERS = 16

assets = Blueprint("assets", __name__)


@cache
def _content(name: str) -> tuple[bytes, str]:
    """Content and digest of an asset."""
    content = files("backend").joinpath("static", name).read_bytes()
    return content, hashlib.sha256(content).hexdigest()[:DIGEST_CHARACTERS]


def asset_path(name: str) -> str:
    """Address of an asset."""
    return f"{ASSETS_PATH}{_content(name)[1]}/{name}"


@assets.get(f"{ASSETS_PATH}<digest>/<name>")
def asset(digest: str, name: str) -> Response:
    if name not in CONTENT_TYPES or digest != _content(name)[1]:
        abort(404, "no such asset: reload the page")
    kept = {"Cache-Control": "public, max-age=31536000, immutable"}
    return Response(_content(name)[0], headers=kept, content_type=CONTENT_TYPES[name])
