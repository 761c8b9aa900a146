"""HTTP requests to a Label Studio server, authenticated with an API key (https://api.labelstud.io).

A key is either a legacy token, sent as it is, or a personal access token: a JWT that only serves to obtain
access tokens valid for 300 seconds.
"""

from __future__ import annotations

import re
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import requests
from requests.auth import AuthBase

from backend.errors import (
    LabelStudioBlocksError,
    LabelStudioError,
    LabelStudioNotFound,
    LabelStudioUnauthorized,
    LabelStudioUnavailable,
)

Json = dict[str, Any]

TIMEOUT_S = 20.0
PAGE_SIZE = 100
ACCESS_TOKEN_AGE_S = 240.0
"""Access tokens are valid for 300 s."""
_REASON_CHARACTERS = 300
BLOCKED = "reserved network address"
"""Label Studio's message for addresses blocked by its settings."""
_HTML_TAG = re.compile(r"<[^<>]*>")


def is_last_page(answer: Mapping[str, Any], found: Sequence[Json], seen: int) -> bool:
    """Whether a list ends with this page.

    Its length does not tell: a server may limit pages to fewer items than were asked for.

    Args:
        answer: The response, which states the length of the whole list.
        found: Items of this page.
        seen: Number of items up to here, these included.
    """
    total = answer.get("total", answer.get("count"))
    return not found or (isinstance(total, int) and 0 < total <= seen)


class Connection:
    """A Label Studio server with our API key. Thread-safe. The constructor opens nothing.

    Every request raises LabelStudioUnavailable if the server does not respond, LabelStudioUnauthorized if it
    refuses the key, LabelStudioNotFound for an unknown ID, LabelStudioError otherwise.

    Args:
        url: URL of Label Studio.
        api_key: Personal access token or legacy token.
        timeout_s: For each request.
        access_token_age_s: Age at which an access token is replaced.
    """

    def __init__(self, url: str, api_key: str, timeout_s: float, access_token_age_s: float) -> None:
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._session = requests.Session()
        self._auth = _KeyAuth(self.url, api_key, timeout_s, access_token_age_s)

    def authorization(self) -> str:
        """The Authorization header for this server."""
        return self._auth.header()

    def renew(self) -> bool:
        """Drops a refused access token; returns whether a retry is worthwhile."""
        return self._auth.renew()

    def pages(self, path: str, query: Mapping[str, Any], items: str) -> Iterator[Json]:
        """Yields items page by page, until as many have come as the list has; see `is_last_page`."""
        page, seen, size = 1, 0, int(query.get("page_size", PAGE_SIZE))
        while True:
            try:
                answer = self.ask_object("GET", path, params={**query, "page_size": size, "page": page})
            except LabelStudioNotFound:  # beyond the last page
                if page == 1:
                    raise
                return
            found = answer.get(items) or []
            yield from found
            seen += len(found)
            if is_last_page(answer, found, seen):
                return
            page += 1

    def ask_object(self, method: str, path: str, **options: Any) -> Json:
        """Sends a request; returns the object in the response."""
        answer = self._answer(method, path, **options)
        if not isinstance(answer, dict):
            raise LabelStudioError(f"Label Studio answered {method} {path} with {answer!r:.100}")
        return answer

    def ask_list(self, method: str, path: str, **options: Any) -> list[Json]:
        """Sends a request; returns the list in the response."""
        answer = self._answer(method, path, **options)
        if not isinstance(answer, list):
            raise LabelStudioError(f"Label Studio answered {method} {path} with {answer!r:.100}")
        return answer

    def _answer(self, method: str, path: str, **options: Any) -> Any:
        response = self.request(method, path, **options)
        try:
            return response.json()
        except (ValueError, RecursionError) as error:
            raise LabelStudioError(
                f"the server at {self.url} is not Label Studio: {method} {path} returned no JSON"
            ) from error

    def request(self, method: str, path: str, **options: Any) -> requests.Response:
        """Sends a request; retries with a new access token if the old one was refused."""
        response = self._send(method, path, **options)
        if response.status_code == 401 and self._auth.renew():
            response = self._send(method, path, **options)
        _check(response, self.url, f"{method} {path}")
        return response

    def _send(
        self, method: str, path: str, timeout: float | None = None, **options: Any
    ) -> requests.Response:
        try:
            return self._session.request(
                method, self.url + path, auth=self._auth, timeout=timeout or self.timeout_s, **options
            )
        except requests.RequestException as error:
            raise LabelStudioUnavailable(
                f"Label Studio does not respond at {self.url} ({type(error).__name__}): is it running, and "
                "is LABEL_STUDIO_URL correct?"
            ) from error


class _KeyAuth(AuthBase):
    """Authenticates requests. Passed as `auth`, so that a .netrc file cannot replace it."""

    def __init__(self, url: str, api_key: str, timeout_s: float, access_token_age_s: float) -> None:
        self._url = url
        self._api_key = api_key.strip()
        self._timeout_s = timeout_s
        self._access_token_age_s = access_token_age_s
        self._is_personal = self._api_key.count(".") == 2  # a JWT
        self._access = ""
        self._access_since_s = 0.0
        self._lock = threading.Lock()

    def __call__(self, request: requests.PreparedRequest) -> requests.PreparedRequest:
        request.headers["Authorization"] = self.header()
        return request

    def header(self) -> str:
        if not self._api_key:
            raise LabelStudioUnauthorized("no API key for Label Studio: set LABEL_STUDIO_API_KEY")
        if not self._is_personal:
            return f"Token {self._api_key}"
        with self._lock:
            if not self._access or time.monotonic() - self._access_since_s > self._access_token_age_s:
                self._access = self._fetch_access()
                self._access_since_s = time.monotonic()
            return f"Bearer {self._access}"

    def renew(self) -> bool:
        """Drops a refused access token; returns whether a retry is worthwhile."""
        with self._lock:
            self._access = ""
        return self._is_personal

    def _fetch_access(self) -> str:
        path = "/api/token/refresh/"
        try:
            response = requests.post(
                self._url + path, json={"refresh": self._api_key}, auth=_unsigned, timeout=self._timeout_s
            )
        except requests.RequestException as error:
            raise LabelStudioUnavailable(
                f"Label Studio does not respond at {self._url}: is it running?"
            ) from error
        _check(response, self._url, f"POST {path}")
        try:
            return str(response.json()["access"])
        except (ValueError, KeyError, TypeError) as error:
            raise LabelStudioError(
                f"the server at {self._url} is not Label Studio: no access token"
            ) from error


def _unsigned(request: requests.PreparedRequest) -> requests.PreparedRequest:
    return request


def _check(response: requests.Response, url: str, what: str) -> None:
    """Raises the error for a response."""
    if response.ok:
        return
    reason = _reason(response)
    if BLOCKED in reason:
        raise LabelStudioBlocksError(
            f"Label Studio at {url} blocks private addresses ({reason}): start it with "
            "ML_BLOCK_LOCAL_IP=false, and with SSRF_PROTECTION_ENABLED=false, without which its webhooks "
            "do not arrive"
        )
    if response.status_code in (401, 403) and "URL" not in reason:
        raise LabelStudioUnauthorized(
            f"Label Studio at {url} refuses the API key ({response.status_code}: {reason}): set "
            "LABEL_STUDIO_API_KEY to a valid one"
        )
    if response.status_code == 404:
        raise LabelStudioNotFound(f"Label Studio at {url} found nothing there: {what} ({reason})")
    raise LabelStudioError(f"Label Studio at {url} answered {what} with {response.status_code}: {reason}")


def _reason(response: requests.Response) -> str:
    try:
        body = response.json()
    except ValueError:
        return response.reason or "no reason given"
    while isinstance(body, dict | list) and body:
        values = list(body.values()) if isinstance(body, dict) else body
        named = body.get("validation_errors") or body.get("detail") if isinstance(body, dict) else None
        if not named and len(values) > 1:
            break
        body = named or values[0]
    return _HTML_TAG.sub("", str(body))[:_REASON_CHARACTERS]
