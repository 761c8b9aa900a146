"""Requests that a page of another site sends through a user's browser, which adds the user's credentials.

Browsers state the page's origin in every request that may change something, but `Sec-Fetch-Site` only over
TLS and to localhost. Label Studio and other programs send neither.

A page can also give its own name the address of this machine (DNS rebinding). For the browser its requests
are then not foreign, but their Host is the page's name. They carry no credentials: OPEN_ACCESS must check it.
"""

from __future__ import annotations

from ipaddress import ip_address
from urllib.parse import urlsplit

from flask import Request

from backend.errors import ContentTypeError, RequestError
from backend.settings import Settings

SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
"""They change nothing."""
CROSS_SITE = frozenset({"cross-site", "same-site"})
JSON_TYPE = "application/json"
_DEFAULT_PORTS = {"http": ":80", "https": ":443"}


class OriginCheck:
    """Refuses requests of other sites' pages. Thread-safe.

    Args:
        settings: Names of this backend, and whether callers need credentials.
    """

    def __init__(self, settings: Settings) -> None:
        listed = {name.lower() for name in settings.allowed_hosts}
        public = urlsplit(settings.public_url)
        self._any_host = not listed and settings.basic_auth is not None
        self._names = {_name_of(place) for place in (*listed, public.netloc, settings.host)} - {""}
        self._places = listed | {_place(public.netloc, public.scheme)}

    def check(self, request: Request) -> None:
        """Checks a request's Host, Origin and content type.

        Raises:
            RequestError: it is for another host, or a page of another site sent it.
            ContentTypeError: it may change something, and its body is not JSON.
        """
        self._check_host(request.host)
        if request.method in SAFE_METHODS:
            return
        origin = request.headers.get("Origin") or request.headers.get("Referer")
        foreign = request.headers.get("Sec-Fetch-Site") in CROSS_SITE
        if foreign or (origin and not self._is_own(origin, request.host)):
            raise RequestError("requests from pages of other sites are refused")
        # The types that a page can send without asking this server before (CORS) are others than JSON.
        if not origin and request.content_type and request.mimetype != JSON_TYPE:
            raise ContentTypeError(f"expected a body of type {JSON_TYPE}, not {request.mimetype[:40]!r}")

    def _check_host(self, host: str) -> None:
        name = _name_of(host)
        if self._any_host or name in self._names or name == "localhost" or _is_address(name):
            return
        raise RequestError(
            f"this backend does not answer as {name[:100]!r}: add it to ALLOWED_HOSTS, or set PUBLIC_URL"
        )

    def _is_own(self, origin: str, host: str) -> bool:
        try:
            parts = urlsplit(origin)
        except ValueError:
            return False
        place = _place(parts.netloc, parts.scheme)
        return bool(place) and (place == _place(host, parts.scheme) or place in self._places)


def _place(netloc: str, scheme: str) -> str:
    """Host and port; without the port, if it is the scheme's default."""
    return netloc.lower().removesuffix(_DEFAULT_PORTS.get(scheme, " "))


def _name_of(place: str) -> str:
    """The host of `host:port`; empty if it is malformed."""
    try:
        return urlsplit(f"//{place}").hostname or ""
    except ValueError:
        return ""


def _is_address(name: str) -> bool:
    """Whether a host is an IP address, which no page can take as its name."""
    try:
        return bool(ip_address(name))
    except ValueError:
        return False
